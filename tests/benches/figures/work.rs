//! What every server is asked to score: three models, and for each the same request in every form.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use e2e::data::MODEL;
use e2e::files;
use e2e::process::Failure;
use prost::Message;
use serde_json::{Value, json};

use crate::floor::{InferRequest, InputTensor};
use crate::sample;

const JSON: &str = "content-type: application/json";

/// A model and one request for it.
pub(crate) struct Work {
    /// The model's name, and where its file is: in a folder without other models.
    pub(crate) name: &'static str,
    pub(crate) onnx: PathBuf,
    /// Threads of one score: as the agent would choose them for it.
    pub(crate) threads: usize,
    pub(crate) input: &'static str,
    pub(crate) shape: Vec<usize>,
    numbers: Vec<f32>,
}

impl Work {
    /// All of them, under names that a model may have in `directory`.
    pub(crate) fn all(directory: &Path) -> Result<[Self; 3], Failure> {
        Ok([Self::perceptron(directory)?, Self::sample()?, Self::squeezenet(directory)?])
    }

    /// A perceptron of a few microseconds, which leaves nothing but the servers to be compared.
    fn perceptron(directory: &Path) -> Result<Self, Failure> {
        let onnx = copy("perceptron.onnx", directory, "perceptron")?;
        Ok(Self { name: "perceptron", onnx, ..Self::sample()? })
    }

    /// The sample: some dozens of microseconds.
    pub(crate) fn sample() -> Result<Self, Failure> {
        let numbers = sample::window()?;
        let (onnx, shape) = (sample::bundle().join("model.onnx"), vec![1, numbers.len()]);
        Ok(Self { name: MODEL, onnx, threads: 1, input: "load", shape, numbers })
    }

    /// Squeezenet, as the ONNX project tests with it. Its weights are made up, its arithmetic is not.
    fn squeezenet(directory: &Path) -> Result<Self, Failure> {
        let onnx = copy("onnx/light/light_squeezenet.onnx", directory, "squeezenet")?;
        let shape = vec![1, 3, 224, 224];
        // Numbers with as many digits as those of pictures have that were scaled and shifted.
        let numbers =
            (0..shape.iter().product()).map(|at: usize| ((at * 7919 % 10_007) as f32).sqrt() / 37.0 - 1.3);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { name: "squeezenet", onnx, threads, input: "data_0", numbers: numbers.collect(), shape })
    }

    /// The body that clients of the Open Inference Protocol send.
    pub(crate) fn inputs(&self) -> Value {
        let input =
            json!({ "name": self.input, "shape": self.shape, "datatype": "FP32", "data": self.numbers });
        json!({ "inputs": [input] })
    }

    /// A request with that body.
    pub(crate) fn json(&self) -> Vec<u8> {
        Self::over_http(&self.infer(), JSON, self.inputs().to_string().into_bytes())
    }

    /// The body that Azure ML's clients send to `/score`.
    pub(crate) fn rows(&self) -> Value {
        json!({ "data": nested(&self.shape, &self.numbers) })
    }

    /// A request with that body.
    pub(crate) fn score(&self) -> Vec<u8> {
        Self::over_http("/score", JSON, self.rows().to_string().into_bytes())
    }

    /// Instances for which there are cores.
    pub(crate) fn instances(&self) -> usize {
        (std::thread::available_parallelism().map_or(1, usize::from) / self.threads).max(1)
    }

    /// A request with its tensor, and the answer's, as bytes after the JSON.
    pub(crate) fn binary(&self) -> Vec<u8> {
        let tensor = self.bytes();
        let input = json!({
            "name": self.input, "shape": self.shape, "datatype": "FP32",
            "parameters": { "binary_data_size": tensor.len() },
        });
        let head = json!({ "inputs": [input], "parameters": { "binary_data_output": true } }).to_string();
        let header = format!(
            "content-type: application/octet-stream\r\ninference-header-content-length: {}",
            head.len()
        );
        Self::over_http(&self.infer(), &header, [head.as_bytes(), &tensor].concat())
    }

    /// The message of a call over gRPC, with the tensor as bytes.
    pub(crate) fn grpc(&self) -> Bytes {
        let shape = self.shape.iter().map(|length| *length as i64).collect();
        let input = InputTensor { name: self.input.to_owned(), datatype: "FP32".to_owned(), shape };
        let message = InferRequest {
            model_name: self.name.to_owned(),
            inputs: vec![input],
            raw_input_contents: vec![self.bytes().into()],
        };
        message.encode_to_vec().into()
    }

    /// The tensor that is asked, for who asks the engine itself.
    pub(crate) fn tensors(&self) -> Result<engine::Tensors, Failure> {
        let tensor = engine::Tensor::from_vec(self.shape.clone(), self.numbers.clone());
        Ok([(self.input, tensor.map_err(|error| error.to_string())?)].into_iter().collect())
    }

    /// The tensor's numbers as they travel.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// The path at which tensors are scored.
    pub(crate) fn infer(&self) -> String {
        format!("/v2/models/{}/infer", self.name)
    }

    fn over_http(path: &str, header: &str, body: Vec<u8>) -> Vec<u8> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{header}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        [head.into_bytes(), body].concat()
    }
}

/// Copies a model that `tests/fetch-models` has brought to a folder of its name, which Azure ML's server wants.
fn copy(from: &str, directory: &Path, name: &str) -> Result<PathBuf, Failure> {
    let from = e2e::target_root().join("test-models").join(from);
    let bytes = std::fs::read(&from)
        .map_err(|error| format!("reading {}: {error}; run tests/fetch-models", from.display()))?;
    let onnx = directory.join(format!("models/{name}/{name}.onnx"));
    files::write(&onnx, bytes)?;
    Ok(onnx)
}

/// Numbers as lists in lists.
fn nested(shape: &[usize], numbers: &[f32]) -> Value {
    match shape {
        [] | [_] => json!(numbers),
        [length, rest @ ..] => {
            numbers.chunks((numbers.len() / length).max(1)).map(|part| nested(rest, part)).collect()
        }
    }
}
