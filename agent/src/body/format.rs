//! How a message over MQTT carries inputs and predictions: JSON, CBOR, or the bare elements of tensors.
//!
//! - JSON: any form that [`read()`] takes, answered with a [`Prediction`].
//! - CBOR: the same in RFC 8949's bytes.
//! - Raw: the inputs in the signature's order, each as the Open Inference Protocol's binary tensors, without any header,
//!   answered with the outputs in the same way. Lengths follow from the signature: the first dimension alone may be free,
//!   and every input has as many rows.

use engine::{DataType, Signature, TensorSpec, Tensors, binary};

use super::read::{Body, BodyError, read};
use super::write::Prediction;
use crate::service::Answer;

/// The form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Text.
    #[default]
    Json,
    /// The same as JSON in fewer bytes.
    Cbor,
    /// Elements alone, little-endian.
    Raw,
}

impl Format {
    /// All, by the names that configuration has for them.
    pub const NAMES: [(&str, Self); 3] = [("json", Self::Json), ("cbor", Self::Cbor), ("raw", Self::Raw)];

    /// The form that a content type stands for; JSON where it is none of the others.
    pub fn of_content_type(content_type: Option<&str>) -> Self {
        let known = [Self::Cbor, Self::Raw].into_iter();
        known.into_iter().find(|format| content_type == Some(format.content_type())).unwrap_or_default()
    }

    /// What is said of a body in this form.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Cbor => "application/cbor",
            Self::Raw => "application/octet-stream",
        }
    }

    /// Reads a message for a model of this signature.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn read(self, message: &[u8], signature: &Signature) -> Result<Body, BodyError> {
        match self {
            Self::Json => read(message, signature),
            Self::Cbor => {
                // By way of text, so that one reader decides what is an input. Messages are small.
                let value: serde_json::Value = serde_cbor::from_slice(message).map_err(|error| {
                    BodyError::Request(format!("the body is no CBOR that JSON could say: {error}"))
                })?;
                read(value.to_string().as_bytes(), signature)
            }
            Self::Raw => raw(message, signature).map(|inputs| Body { inputs, id: None, traceparent: None }),
        }
    }

    /// Writes an answer.
    ///
    /// # Errors
    /// None that is known: there is nothing in an answer that these forms can't say.
    pub fn write(self, answer: &Answer) -> Result<Vec<u8>, String> {
        match self {
            Self::Json => serde_json::to_vec(&Prediction(answer)).map_err(|error| error.to_string()),
            Self::Cbor => serde_cbor::to_vec(&Prediction(answer)).map_err(|error| error.to_string()),
            Self::Raw => {
                let mut bytes = Vec::new();
                answer.scored.outputs.iter().for_each(|(_, tensor)| binary::write(tensor, &mut bytes));
                Ok(bytes)
            }
        }
    }
}

fn raw(message: &[u8], signature: &Signature) -> Result<Tensors, BodyError> {
    let kinds = || signature.inputs.iter().map(TensorSpec::to_string).collect::<Vec<_>>().join(", ");
    let wrong = |why: String| BodyError::Request(format!("{why}: expected the elements of {}", kinds()));
    let sizes = signature.inputs.iter().map(size).collect::<Option<Vec<_>>>();
    let sizes =
        sizes.ok_or_else(|| wrong("raw messages have no length for some dimension or text".to_owned()))?;
    let sum = |is_free: bool| {
        sizes
            .iter()
            .filter(|(free, _)| *free == is_free)
            .fold(0usize, |sum, (_, size)| sum.saturating_add(*size))
    };
    let (fixed, row) = (sum(false), sum(true));
    let rows = match message.len().checked_sub(fixed) {
        Some(0) if row == 0 => Some(0),
        Some(rest) if row > 0 && rest > 0 && rest.is_multiple_of(row) => Some(rest / row),
        _ => None,
    };
    let wanted = match (fixed, row) {
        (fixed, 0) => format!("{fixed}"),
        (0, row) => format!("whole rows of {row}"),
        (fixed, row) => format!("{fixed} and whole rows of {row}"),
    };
    let rows = rows.ok_or_else(|| wrong(format!("the body has {} bytes, not {wanted}", message.len())))?;
    let mut rest = message;
    let tensors = signature.inputs.iter().zip(sizes).map(|(spec, (is_free, size))| {
        let shape = spec.shape.iter().map(|length| length.unwrap_or(rows)).collect();
        let (elements, after) =
            rest.split_at_checked(if is_free { size * rows } else { size }).unwrap_or((rest, &[]));
        rest = after;
        let tensor = binary::read(spec.data_type, shape, elements);
        let tensor = tensor.map_err(|error| wrong(format!("input `{}`: {error}", spec.name)))?;
        Ok((spec.name.clone(), tensor))
    });
    tensors.collect()
}

/// Whether the first dimension is free, and the bytes of a row or, where it is not, of the whole; `None` where that does
/// not follow from the signature.
fn size(spec: &TensorSpec) -> Option<(bool, usize)> {
    let element = match spec.data_type {
        DataType::String => return None,
        DataType::Bool | DataType::I8 | DataType::U8 => 1usize,
        DataType::F16 | DataType::I16 | DataType::U16 => 2,
        DataType::F32 | DataType::I32 | DataType::U32 => 4,
        DataType::F64 | DataType::I64 | DataType::U64 => 8,
    };
    let (is_free, fixed) = match spec.shape.split_first() {
        Some((None, rest)) => (true, rest),
        _ => (false, spec.shape.as_slice()),
    };
    let bytes = fixed.iter().try_fold(element, |bytes, length| bytes.checked_mul((*length)?));
    bytes.map(|bytes| (is_free, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, data_type: DataType, shape: &[Option<usize>]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), data_type, shape: shape.to_vec() }
    }

    #[test]
    fn raw_rows_are_counted_by_their_bytes() {
        let inputs = vec![
            spec("a", DataType::F32, &[None, Some(2)]),
            spec("b", DataType::I64, &[None]),
            spec("c", DataType::U8, &[Some(3)]),
        ];
        let signature = Signature { inputs, outputs: Vec::new() };
        let mut message = Vec::new();
        [1f32, 2., 3., 4.].iter().for_each(|number| message.extend(number.to_le_bytes()));
        [5i64, 6].iter().for_each(|number| message.extend(number.to_le_bytes()));
        message.extend([7, 8, 9]);
        let read = |message: &[u8]| Format::Raw.read(message, &signature);
        let inputs = read(&message).unwrap().inputs;
        assert_eq!(inputs.get("a").unwrap().as_slice::<f32>(), Some([1f32, 2., 3., 4.].as_slice()));
        assert_eq!(inputs.get("a").unwrap().shape(), [2, 2]);
        assert_eq!(inputs.get("b").unwrap().as_slice::<i64>(), Some([5i64, 6].as_slice()));
        assert_eq!(inputs.get("c").unwrap().as_slice::<u8>(), Some([7u8, 8, 9].as_slice()));
        for wrong in [&[][..], &message[..3], &message[1..]] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("whole rows of 16") && error.contains("a: FP32 [-1, 2]"), "{error}");
        }
        let text = Signature { inputs: vec![spec("t", DataType::String, &[None])], outputs: Vec::new() };
        assert!(Format::Raw.read(&[0; 4], &text).is_err());
        let free = Signature { inputs: vec![spec("x", DataType::F32, &[None, None])], outputs: Vec::new() };
        assert!(Format::Raw.read(&[0; 4], &free).is_err());
        let huge = [Some(usize::MAX), Some(2)];
        let huge = Signature { inputs: vec![spec("x", DataType::F32, &huge)], outputs: Vec::new() };
        assert!(Format::Raw.read(&[0; 4], &huge).is_err());
    }

    #[test]
    fn cbor_says_what_json_says() {
        let inputs = vec![spec("load", DataType::F32, &[None, Some(2)])];
        let signature = Signature { inputs, outputs: Vec::new() };
        let body = serde_json::json!({ "id": "7", "data": [[0.1, 2], [3, -4e30]] });
        let json = Format::Json.read(body.to_string().as_bytes(), &signature).unwrap();
        let cbor = serde_cbor::to_vec(&body).unwrap();
        assert_eq!(Format::Cbor.read(&cbor, &signature).unwrap(), json);
        for wrong in [&cbor[..9], b"\xff", b"", b"\x5f\x41", b"[[1, 2]]"] {
            assert!(Format::Cbor.read(wrong, &signature).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_content_type_names_a_form() {
        for (_, format) in Format::NAMES {
            assert_eq!(Format::of_content_type(Some(format.content_type())), format);
        }
        assert_eq!(Format::of_content_type(None), Format::Json);
        assert_eq!(Format::of_content_type(Some("text/plain")), Format::Json);
    }
}
