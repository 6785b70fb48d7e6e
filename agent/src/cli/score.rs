//! `score`: a file of inputs on a bundle, on this machine, without an agent.

use std::path::PathBuf;

use clap::Args;
use cloud_sync::bundle::Bundle;
use engine::Provider;
use engine::json::write_all;

use super::{EngineArguments, print, read_input, read_onnx};
use crate::body::{self, BodyError};
use crate::error::Error;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A directory with a model.toml, a .onnx file or a .bundle file
    bundle: PathBuf,
    /// Inputs as JSON, in any form that /score takes: {"inputs": [{"name", "shape", "datatype", "data"}, …]} or
    /// {"data": …}; - reads standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// What runs it: auto, tract, cpu, cuda, tensorrt, openvino or xnnpack
    #[arg(long, value_name = "PROVIDER", default_value = "auto")]
    provider: Provider,
    #[command(flatten)]
    engine: EngineArguments,
}

pub(super) fn score(arguments: &Arguments) -> Result<(), Error> {
    let onnx = read_onnx(&Bundle::open(&arguments.bundle)?)?;
    let file = read_input(&arguments.input)?;
    let mut loaded = engine::load(&onnx, &arguments.engine.load_options(arguments.provider))?;
    let wrong = |error: BodyError| Error::Input { path: arguments.input.clone(), why: error.to_string() };
    let body = body::read(&file, loaded.model.signature()).map_err(wrong)?;
    let outputs = loaded.model.score(&body.inputs)?;
    let answer = serde_json::json!({ "outputs": write_all(&outputs) });
    print(&format!("{answer}\n"))
}
