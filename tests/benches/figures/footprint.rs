//! What the programs take: on the disk as they ship, and in memory when nothing is asked of them.

use std::path::Path;
use std::time::Duration;

use e2e::data::MODEL;
use e2e::process::{Failure, Process, program};
use engine::LoadError;

use crate::measure::{Unit, alone, skipped};
use crate::sample;
use crate::site::Site;

/// Readings of the resident memory, and the pause between them: two seconds, in which what was just done settles.
const READINGS: usize = 20;
/// See [`READINGS`].
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    for name in ["edgewise-agent", "edgewise"] {
        let size =
            std::fs::metadata(program(name)).map_err(|error| format!("measuring {name}: {error}"))?.len();
        alone(&format!("size of {name}, stripped"), Unit::Mebibytes, vec![mebibytes(size)]);
    }
    for options in sample::engines() {
        let provider = options.provider.to_string();
        if let Err(why @ LoadError::ProviderUnavailable { .. }) = sample::load(&options)? {
            skipped(&format!("resident, with the sample on {provider}"), &why.to_string());
            continue;
        }
        let library = options.onnxruntime.map(|library| library.display().to_string());
        let mut arguments = vec!["--provider", &provider];
        if let Some(library) = &library
            && provider != "tract"
        {
            arguments.extend(["--onnxruntime", library]);
        }
        let site = Site::start(&directory.join(format!("footprint-{provider}")), &[], &arguments)?;
        if provider == "tract" {
            alone("resident, edgewise serve, idle", Unit::Mebibytes, resident(&site.cloud.process)?);
            alone("resident, edgewise-agent, no model", Unit::Mebibytes, resident(&site.agent.process)?);
        }
        site.bring(&sample::bundle(), MODEL, 1)?;
        let figure = format!("resident, with the sample on {provider}");
        alone(&figure, Unit::Mebibytes, resident(&site.agent.process)?);
    }
    Ok(())
}

fn resident(process: &Process) -> Result<Vec<f64>, Failure> {
    let path = format!("/proc/{}/status", process.id());
    let read = |_| {
        std::thread::sleep(PAUSE);
        let status = std::fs::read_to_string(&path).map_err(|error| format!("reading {path}: {error}"))?;
        let kibibytes =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        let kibibytes: Option<u64> = kibibytes.and_then(|number| number.parse().ok());
        kibibytes.map(|number| mebibytes(number * 1024)).ok_or_else(|| format!("{path} has no VmRSS"))
    };
    (0..READINGS).map(read).collect()
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
