//! Requests of the Open Inference Protocol v2: JSON and, behind it, elements as bytes (see [`engine::binary`]).
//!
//! What is not supported is refused, never passed over: shared memory, sequences of requests.

use std::borrow::Cow;
use std::time::Duration;

use engine::json::{Cursor, JsonTensor};
use engine::{Signature, Tensor, Tensors};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::classify::classify;
use super::read::MAX_ID_BYTES;
use super::{BodyError, Format};

/// A request, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Inference {
    /// Its id, of at most 100 bytes.
    pub id: Option<String>,
    /// The inputs. Names and shapes are not checked yet: scoring does.
    pub inputs: Tensors,
    /// What is to come back.
    pub outputs: WantedOutputs,
    /// How long its caller waits, where that is said.
    pub timeout: Option<Duration>,
}

/// The outputs that the caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedOutputs {
    /// All of them.
    All {
        /// As bytes.
        as_bytes: bool,
    },
    /// These, each of which the model has, once.
    These(Vec<WantedOutput>),
}

/// An output that the caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedOutput {
    /// Its name.
    pub name: String,
    /// Whether as bytes.
    pub as_bytes: bool,
    /// Not itself, but the so many largest of each of its rows.
    pub classes: Option<usize>,
}

/// An output that goes back: its name, the tensor, and whether as bytes.
pub type ChosenOutput<'a> = (&'a str, Cow<'a, Tensor>, bool);

impl WantedOutputs {
    /// These, if a model of this signature has them, and each is asked for once.
    ///
    /// # Errors
    /// The first that is unknown or asked for twice.
    pub fn these(wanted: Vec<WantedOutput>, signature: &Signature) -> Result<Self, BodyError> {
        for (place, WantedOutput { name, .. }) in wanted.iter().enumerate() {
            let refuse = |why: String| Err(refused(format!("output `{name}` {why}")));
            if !signature.outputs.iter().any(|spec| spec.name == *name) {
                let known: Vec<String> =
                    signature.outputs.iter().map(|spec| format!("`{}`", spec.name)).collect();
                return refuse(format!("is unknown: the model gives {}", known.join(", ")));
            }
            if wanted.iter().take(place).any(|earlier| earlier.name == *name) {
                return refuse("is asked for twice".to_owned());
            }
        }
        Ok(Self::These(wanted))
    }

    /// What goes back of what a model gave, in the order in which it was asked for. `labels` name its classes.
    ///
    /// # Errors
    /// An output can't be classified.
    pub fn choose<'a>(
        &self,
        given: &'a Tensors,
        labels: &[String],
    ) -> Result<Vec<ChosenOutput<'a>>, BodyError> {
        let these = match self {
            Self::All { as_bytes } => {
                return Ok(given
                    .iter()
                    .map(|(name, tensor)| (name, Cow::Borrowed(tensor), *as_bytes))
                    .collect());
            }
            Self::These(these) => these,
        };
        let mut chosen = Vec::with_capacity(these.len());
        for WantedOutput { name, as_bytes, classes } in these {
            let Some((name, tensor)) = given.iter().find(|(known, _)| known == name) else { continue };
            let tensor = match classes {
                None => Cow::Borrowed(tensor),
                Some(classes) => {
                    let classified = classify(tensor, *classes, labels);
                    Cow::Owned(classified.map_err(|why| refused(format!("output `{name}`: {why}")))?)
                }
            };
            chosen.push((name, tensor, *as_bytes));
        }
        Ok(chosen)
    }
}

/// Reads a request for a model of this signature, the first `json_length` bytes of which are JSON; without that, all. Where
/// it is 0, all are the elements of the only input, and the outputs go back as bytes.
///
/// # Errors
/// See [`BodyError`].
pub fn infer(body: &[u8], json_length: Option<usize>, signature: &Signature) -> Result<Inference, BodyError> {
    if json_length == Some(0) {
        let inputs = Format::Raw.read(body, signature)?.inputs;
        let outputs = WantedOutputs::All { as_bytes: true };
        return Ok(Inference { id: None, inputs, outputs, timeout: None });
    }
    let (head, blobs) = body.split_at_checked(json_length.unwrap_or(body.len())).ok_or_else(|| {
        refused(format!(
            "Inference-Header-Content-Length is more than the body, which has {} bytes",
            body.len()
        ))
    })?;
    let request = Request::read(head)?;
    if request.id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
        return Err(refused(format!("`id` is longer than {MAX_ID_BYTES} bytes")));
    }
    let RequestParameters { binary_data_output, timeout, sequence_id } =
        request.parameters.unwrap_or_default();
    if sequence_id.is_some_and(|id| !["0", "\"\""].contains(&id.get())) {
        return Err(BodyError::Request(NO_SEQUENCES.to_owned()));
    }
    let as_bytes = binary_data_output.unwrap_or(false);
    let outputs = match request.outputs {
        Some(outputs) if !outputs.is_empty() => wanted_outputs(outputs, as_bytes, signature)?,
        _ => WantedOutputs::All { as_bytes },
    };
    let tensors = request
        .inputs
        .ok_or_else(|| refused("the request can't be read: missing field `inputs`".to_owned()))?;
    let timeout = timeout.and_then(patience);
    Ok(Inference { id: request.id, inputs: inputs(tensors, blobs)?, outputs, timeout })
}

/// Why a request with a `sequence_id` is refused.
pub(crate) const NO_SEQUENCES: &str =
    "`sequence_id`: sequences of requests are not supported, each is scored by itself";

/// A request's parameter `timeout`, which is in microseconds; 0 for none.
pub(crate) fn patience(timeout: u64) -> Option<Duration> {
    Some(Duration::from_micros(timeout)).filter(|timeout| !timeout.is_zero())
}

/// What a request has beside the elements that follow its JSON.
#[derive(Default)]
struct Request {
    id: Option<String>,
    parameters: Option<RequestParameters>,
    inputs: Option<Vec<JsonTensor>>,
    outputs: Option<Vec<RequestedOutput>>,
}

impl Request {
    fn read(json: &[u8]) -> Result<Self, BodyError> {
        let mut cursor = Cursor::new(json);
        let mut request = Self::default();
        let wrong = |error| refused(format!("the request can't be read: {error}"));
        let read = cursor.object(|field, cursor| {
            match field {
                "id" => request.id = cursor.value()?,
                "parameters" => request.parameters = cursor.value()?,
                "outputs" => request.outputs = cursor.value()?,
                "inputs" => {
                    let inputs = request.inputs.get_or_insert_default();
                    cursor.list(|cursor| {
                        inputs.push(JsonTensor::read(cursor)?);
                        Ok::<_, BodyError>(())
                    })?;
                }
                _ => cursor.skip()?,
            }
            Ok(())
        });
        match read {
            Err(BodyError::Json(error)) => Err(wrong(error)),
            Err(other) => Err(other),
            Ok(()) => cursor.end().map_err(wrong).map(|()| request),
        }
    }
}

#[derive(Default, Deserialize)]
struct RequestParameters {
    binary_data_output: Option<bool>,
    timeout: Option<u64>,
    /// 0 and an empty text are none.
    sequence_id: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct RequestedOutput {
    name: String,
    parameters: Option<OutputParameters>,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
    classification: Option<usize>,
    shared_memory_region: Option<IgnoredAny>,
}

/// The inputs, each from the JSON or from its part of the bytes after it.
fn inputs(tensors: Vec<JsonTensor>, mut blobs: &[u8]) -> Result<Tensors, BodyError> {
    let mut inputs = Tensors::new();
    for tensor in tensors {
        let (name, tensor) = match tensor.parameters.binary_data_size {
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
    let mut wanted = Vec::new();
    for RequestedOutput { name, parameters } in outputs {
        let OutputParameters { binary_data, classification, shared_memory_region } =
            parameters.unwrap_or_default();
        if shared_memory_region.is_some() {
            return Err(refused(format!(
                "output `{name}` is asked for by shared memory, which is not supported"
            )));
        }
        if classification == Some(0) {
            return Err(refused(format!("output `{name}`: classification is no number of classes")));
        }
        wanted.push(WantedOutput {
            name,
            as_bytes: binary_data.unwrap_or(as_bytes),
            classes: classification,
        });
    }
    WantedOutputs::these(wanted, signature)
}

fn refused(why: String) -> BodyError {
    BodyError::Request(why)
}
