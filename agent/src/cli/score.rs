//! `score`: a file of inputs on a bundle, on this machine, without an agent.

use std::path::PathBuf;

use clap::Args;
use cloud_sync::bundle::Bundle;
use engine::json::{JsonTensor, read_all, write_all};
use engine::{Provider, Tensors};
use serde::Deserialize;

use super::{EngineArguments, print, read_input, read_onnx};
use crate::error::Error;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A directory with a model.toml, a .onnx file or a .bundle file
    bundle: PathBuf,
    /// Inputs as JSON: {"inputs": [{"name", "shape", "datatype", "data"}, …]}; - reads standard input
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
    let body = read_input(&arguments.input)?;
    let mut loaded = engine::load(&onnx, &arguments.engine.load_options(arguments.provider))?;
    let inputs = inputs(&body).map_err(|why| Error::Input { path: arguments.input.clone(), why })?;
    let outputs = loaded.model.score(&inputs)?;
    let answer = serde_json::json!({ "outputs": write_all(&outputs) });
    print(&format!("{answer}\n"))
}

#[derive(Deserialize)]
struct Body {
    inputs: Vec<JsonTensor>,
}

fn inputs(body: &[u8]) -> Result<Tensors, String> {
    let body: Body = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    read_all(body.inputs).map_err(|error| error.to_string())
}
