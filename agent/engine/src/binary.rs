//! The binary tensors of the Open Inference Protocol: elements one after the other, little-endian, without a header.
//!
//! BOOL is a byte, 0 or not; FP16 its 16 bits; a BYTES element is its length as 4 bytes and then its UTF-8 text.

use std::ops::Range;

use half::f16;

use crate::tensor::{self, Data, DataType, ShapeError, Tensor};

/// Bytes that are no tensor of the type and shape that was said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BinaryError {
    /// The bytes end within an element.
    #[error("binary data of {bytes} bytes ends within an element of {data_type}")]
    Cut {
        /// The type.
        data_type: DataType,
        /// The number of bytes given.
        bytes: usize,
    },
    /// An element of BYTES that is no text.
    #[error("element {element} is not UTF-8")]
    NotText {
        /// Its position.
        element: usize,
    },
    /// The number of elements is not that of the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// Reads a tensor.
///
/// # Errors
/// See [`BinaryError`].
pub fn read(data_type: DataType, shape: Vec<usize>, bytes: &[u8]) -> Result<Tensor, BinaryError> {
    let data = match data_type {
        DataType::F32 => numbers(bytes, f32::from_le_bytes).map(Data::F32),
        DataType::F64 => numbers(bytes, f64::from_le_bytes).map(Data::F64),
        DataType::F16 => numbers(bytes, f16::from_le_bytes).map(Data::F16),
        DataType::I8 => numbers(bytes, i8::from_le_bytes).map(Data::I8),
        DataType::I16 => numbers(bytes, i16::from_le_bytes).map(Data::I16),
        DataType::I32 => numbers(bytes, i32::from_le_bytes).map(Data::I32),
        DataType::I64 => numbers(bytes, i64::from_le_bytes).map(Data::I64),
        DataType::U8 => numbers(bytes, u8::from_le_bytes).map(Data::U8),
        DataType::U16 => numbers(bytes, u16::from_le_bytes).map(Data::U16),
        DataType::U32 => numbers(bytes, u32::from_le_bytes).map(Data::U32),
        DataType::U64 => numbers(bytes, u64::from_le_bytes).map(Data::U64),
        DataType::Bool => numbers(bytes, |[byte]: [u8; 1]| byte != 0).map(Data::Bool),
        DataType::String => {
            // An empty text takes 4 bytes here and a whole string in memory, so more than the shape says is not read.
            strings(bytes, tensor::elements(&shape)?)?.map(Data::String)
        }
    };
    let data = data.ok_or(BinaryError::Cut { data_type, bytes: bytes.len() })?;
    Ok(Tensor::new(shape, data)?)
}

/// Appends the bytes of a tensor's elements to `to`.
pub fn write(tensor: &Tensor, to: &mut Vec<u8>) {
    write_range(tensor, 0..tensor.len(), to);
}

/// Appends the bytes of the elements in `range` to `to`; of none, where the tensor does not have them all.
pub fn write_range(tensor: &Tensor, range: Range<usize>, to: &mut Vec<u8>) {
    macro_rules! numbers {
        ($elements:expr) => {
            $elements.get(range).unwrap_or_default().iter().for_each(|number| to.extend(number.to_le_bytes()))
        };
    }
    match tensor.data() {
        Data::F32(elements) => numbers!(elements),
        Data::F64(elements) => numbers!(elements),
        Data::F16(elements) => numbers!(elements),
        Data::I8(elements) => numbers!(elements),
        Data::I16(elements) => numbers!(elements),
        Data::I32(elements) => numbers!(elements),
        Data::I64(elements) => numbers!(elements),
        Data::U8(elements) => to.extend(elements.get(range).unwrap_or_default()),
        Data::U16(elements) => numbers!(elements),
        Data::U32(elements) => numbers!(elements),
        Data::U64(elements) => numbers!(elements),
        Data::Bool(elements) => {
            to.extend(elements.get(range).unwrap_or_default().iter().map(|element| u8::from(*element)));
        }
        Data::String(elements) => elements.get(range).unwrap_or_default().iter().for_each(|element| {
            // The length has 4 bytes; a longer text than that can't have been scored.
            let length = u32::try_from(element.len()).unwrap_or(u32::MAX);
            to.extend(length.to_le_bytes());
            to.extend(element.as_bytes());
        }),
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
    let (elements, rest) = bytes.as_chunks::<N>();
    rest.is_empty().then(|| elements.iter().map(|element| of(*element)).collect())
}

/// At most one string more than `most`; `None` where the bytes end within one.
fn strings(mut bytes: &[u8], most: usize) -> Result<Option<Vec<String>>, BinaryError> {
    let mut all = Vec::new();
    while !bytes.is_empty() && all.len() <= most {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        let Some((text, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let text = std::str::from_utf8(text).map_err(|_| BinaryError::NotText { element: all.len() })?;
        all.push(text.to_owned());
        bytes = rest;
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(tensor: &Tensor) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(tensor, &mut bytes);
        bytes
    }

    #[test]
    fn every_type_reads_back() {
        let all = [
            Data::F32(vec![1.5, f32::NAN, -0.0]),
            Data::F64(vec![1.5, f64::INFINITY, f64::MIN]),
            Data::F16(vec![f16::ONE, f16::NEG_INFINITY, f16::MAX]),
            Data::I8(vec![-1, 0, 127]),
            Data::I16(vec![-1, 0, 256]),
            Data::I32(vec![-1, 0, 65536]),
            Data::I64(vec![-1, 0, i64::MAX]),
            Data::U8(vec![0, 1, 255]),
            Data::U16(vec![0, 1, 256]),
            Data::U32(vec![0, 1, 65536]),
            Data::U64(vec![0, 1, u64::MAX]),
            Data::Bool(vec![true, false, true]),
            Data::String(vec!["".into(), "äöü".into(), "x".into()]),
        ];
        assert_eq!(all.len(), DataType::ALL.len());
        for data in all {
            let tensor = Tensor::new(vec![3, 1], data).unwrap();
            let wire = bytes(&tensor);
            let read = read(tensor.data_type(), vec![3, 1], &wire).unwrap();
            assert_eq!(bytes(&read), wire, "{}", tensor.data_type());
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        assert_eq!(bytes(&Tensor::from_vec(vec![1], vec![258i32]).unwrap()), [2, 1, 0, 0]);
        let text = Tensor::from_vec(vec![1], vec!["ab".to_owned()]).unwrap();
        assert_eq!(bytes(&text), [2, 0, 0, 0, b'a', b'b']);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let says = |data_type, shape, bytes: &[u8]| read(data_type, shape, bytes).unwrap_err().to_string();
        assert_eq!(
            says(DataType::F32, vec![1], &[0; 5]),
            "binary data of 5 bytes ends within an element of FP32"
        );
        assert_eq!(says(DataType::F32, vec![1], &[0; 8]), "shape [1] holds 1 elements, 2 were given");
        let cut = "binary data of 5 bytes ends within an element of BYTES";
        assert_eq!(says(DataType::String, vec![1], &[2, 0, 0, 0, b'a']), cut);
        assert_eq!(says(DataType::String, vec![1], &[255, 255, 255, 255, b'a']), cut);
        assert_eq!(says(DataType::String, vec![1], &[1, 0, 0, 0, 0xff]), "element 0 is not UTF-8");
        assert_eq!(says(DataType::String, vec![1], &[0; 400]), "shape [1] holds 1 elements, 2 were given");
    }
}
