//! Requests of the Open Inference Protocol v2: JSON and, behind it, elements as bytes (see [`engine::binary`]).
//!
//! What is not supported is refused, never passed over: shared memory and classification.

use engine::json::JsonTensor;
use engine::{Signature, Tensors};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::BodyError;
use super::read::MAX_ID_BYTES;

/// A request, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Inference {
    /// Its id, of at most 100 bytes.
    pub id: Option<String>,
    /// The inputs. Names and shapes are not checked yet: scoring does.
    pub inputs: Tensors,
    /// What is to come back.
    pub outputs: WantedOutputs,
}

/// The outputs that the caller wants, and which of them as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedOutputs {
    /// All of them.
    All {
        /// As bytes.
        as_bytes: bool,
    },
    /// These, by name, each once; with true, as bytes.
    These(Vec<(String, bool)>),
}

/// Reads a request for a model of this signature, the first `json_length` bytes of which are JSON; without that, all.
///
/// # Errors
/// See [`BodyError`].
pub fn infer(body: &[u8], json_length: Option<usize>, signature: &Signature) -> Result<Inference, BodyError> {
    let (head, blobs) = body.split_at_checked(json_length.unwrap_or(body.len())).ok_or_else(|| {
        refused(format!(
            "Inference-Header-Content-Length is more than the body, which has {} bytes",
            body.len()
        ))
    })?;
    let request: Request = serde_json::from_slice(head)
        .map_err(|error| refused(format!("the request can't be read: {error}")))?;
    if request.id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
        return Err(refused(format!("`id` is longer than {MAX_ID_BYTES} bytes")));
    }
    let as_bytes = request.parameters.unwrap_or_default().binary_data_output.unwrap_or(false);
    let outputs = match request.outputs {
        Some(outputs) if !outputs.is_empty() => wanted_outputs(outputs, as_bytes, signature)?,
        _ => WantedOutputs::All { as_bytes },
    };
    Ok(Inference { id: request.id, inputs: inputs(request.inputs, blobs)?, outputs })
}

#[derive(Deserialize)]
struct Request {
    id: Option<String>,
    parameters: Option<RequestParameters>,
    inputs: Vec<JsonTensor>,
    outputs: Option<Vec<RequestedOutput>>,
}

#[derive(Default, Deserialize)]
struct RequestParameters {
    binary_data_output: Option<bool>,
}

#[derive(Deserialize)]
struct RequestedOutput {
    name: String,
    parameters: Option<OutputParameters>,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
    classification: Option<IgnoredAny>,
    shared_memory_region: Option<IgnoredAny>,
}

/// The inputs, each from the JSON or from its part of the bytes after it.
fn inputs(tensors: Vec<JsonTensor>, mut blobs: &[u8]) -> Result<Tensors, BodyError> {
    let mut inputs = Tensors::new();
    for tensor in tensors {
        let (name, tensor) = match tensor.parameters.unwrap_or_default().binary_data_size {
            None => tensor.into_tensor()?,
            Some(size) => {
                let (blob, rest) = blobs.split_at_checked(size).ok_or_else(|| {
                    let (name, left) = (&tensor.name, blobs.len());
                    refused(format!(
                        "tensor `{name}`: binary_data_size is {size}, the body has {left} more bytes"
                    ))
                })?;
                blobs = rest;
                tensor.with_bytes(blob)?
            }
        };
        inputs.push(name, tensor);
    }
    match blobs.len() {
        0 => Ok(inputs),
        more => Err(refused(format!("the body has {more} bytes that belong to no input"))),
    }
}

fn wanted_outputs(
    outputs: Vec<RequestedOutput>,
    as_bytes: bool,
    signature: &Signature,
) -> Result<WantedOutputs, BodyError> {
    let known = &signature.outputs;
    let mut wanted: Vec<(String, bool)> = Vec::new();
    for RequestedOutput { name, parameters } in outputs {
        let parameters = parameters.unwrap_or_default();
        let refuse = |why: String| Err(refused(format!("output `{name}` {why}")));
        if !known.iter().any(|spec| spec.name == name) {
            let known: Vec<String> = known.iter().map(|spec| format!("`{}`", spec.name)).collect();
            return refuse(format!("is unknown: the model gives {}", known.join(", ")));
        }
        if wanted.iter().any(|(earlier, _)| *earlier == name) {
            return refuse("is asked for twice".to_owned());
        }
        if parameters.classification.is_some() || parameters.shared_memory_region.is_some() {
            return refuse(
                "is asked for by classification or shared memory, which are not supported".to_owned(),
            );
        }
        wanted.push((name, parameters.binary_data.unwrap_or(as_bytes)));
    }
    Ok(WantedOutputs::These(wanted))
}

fn refused(why: String) -> BodyError {
    BodyError::Request(why)
}
