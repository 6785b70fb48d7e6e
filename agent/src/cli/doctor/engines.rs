//! What can run models here, and why the rest can't.

use engine::{Availability, Provider};

use super::page::{Finding, Part};
use crate::board::Board;
use crate::config::Config;

pub(super) fn examine(config: &Config, board: &Board) -> Part {
    let mut part = Part::new("engines");
    let options = config.load_options(&config.settings());
    let found = engine::available(&options);
    let mut told = None;
    for Availability { provider, version, library } in &found {
        let path = library.as_ref().map(|path| format!(" from {}", path.display()));
        let words = match version {
            Ok(version) => format!("{version}{}", path.unwrap_or_default()),
            Err(why) if told == Some(why) => "not here, for the same reason".to_owned(),
            Err(why) => format!("not here: {why}"),
        };
        told = version.as_ref().err();
        part.fact(provider.name(), Some(words));
    }
    let why_not = |wanted: Provider| {
        let found = found.iter().find(|found| found.provider == wanted);
        found.and_then(|found| found.version.as_ref().err())
    };
    let wanted = config.engine.provider;
    if let Some(why) = why_not(wanted) {
        part.findings.push(Finding::problem(format!(
            "engine.provider asks for {wanted}, which can't be had: {why}; set it to \"auto\""
        )));
    } else if let Some(why) = why_not(Provider::Cpu) {
        // A library that was named, or that is there and is of no use, is meant to be used.
        let finding = if cfg!(target_env = "musl") && config.engine.onnxruntime.is_none() {
            Finding::note("this is a static build, which can load no ONNX Runtime: models run on tract")
        } else if why.starts_with("no library") {
            Finding::note(
                "ONNX Runtime is not here, and models run on tract, which is slower on most of them; install its \
                 library, or name it by engine.onnxruntime",
            )
        } else if config.engine.onnxruntime.is_some() {
            Finding::problem(format!("ONNX Runtime can't be used: {why}; name another library, or none"))
        } else {
            Finding::warning(format!("ONNX Runtime is here and can't be used: {why}; models run on tract"))
        };
        part.findings.push(finding);
    }
    if board.gpus.iter().any(|gpu| gpu.contains("NVIDIA")) && why_not(Provider::Cuda).is_some() {
        part.findings.push(Finding::note(
            "there is a GPU, and no ONNX Runtime that was built for it: models run on the processor",
        ));
    }
    part
}
