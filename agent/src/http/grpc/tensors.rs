//! From the tensors of a gRPC request to those of a model, and back.

use bytes::Bytes;
use engine::{Data, DataType, Tensor, TensorSpec, Tensors, binary};

use super::super::failure::Failure;
use super::super::repository::dims;
use super::message::{Contents, InferInputTensor, TensorMetadata};

/// The inputs of a request. Contents are either all raw or none is, as the protocol has it.
pub(super) fn inputs(given: Vec<InferInputTensor>, raw: &[Bytes]) -> Result<Tensors, Failure> {
    if !raw.is_empty() && raw.len() != given.len() {
        let (raw, inputs) = (raw.len(), given.len());
        return Err(Failure::bad_request(format!("raw_input_contents has {raw} items for {inputs} inputs")));
    }
    let mut inputs = Tensors::new();
    for (place, input) in given.into_iter().enumerate() {
        let wrong =
            |why: &dyn std::fmt::Display| Failure::bad_request(format!("tensor `{}`: {why}", input.name));
        if input.parameters.contains_key("shared_memory_region") {
            return Err(wrong(&"shared memory is not supported"));
        }
        let data_type = DataType::from_oip_name(&input.datatype);
        let data_type = data_type.ok_or_else(|| wrong(&format!("unknown datatype {}", input.datatype)))?;
        let shape: Result<Vec<usize>, _> =
            input.shape.iter().map(|length| usize::try_from(*length)).collect();
        let shape = shape.map_err(|_| wrong(&format!("shape {:?} has a negative length", input.shape)))?;
        let read = match (raw.get(place), input.contents) {
            (Some(_), Some(_)) => return Err(wrong(&"it has both contents and raw_input_contents")),
            (Some(bytes), None) => binary::read(data_type, shape, bytes).map_err(|error| wrong(&error))?,
            (None, contents) => {
                let data = data(data_type, contents.unwrap_or_default()).map_err(|why| wrong(&why))?;
                Tensor::new(shape, data).map_err(|error| wrong(&error))?
            }
        };
        inputs.push(input.name, read);
    }
    Ok(inputs)
}

/// What is said of an output, and its elements.
pub(super) fn output(name: &str, tensor: &Tensor) -> (TensorMetadata, Bytes) {
    let mut bytes = Vec::new();
    binary::write(tensor, &mut bytes);
    let shape = tensor.shape().iter().map(|length| *length as i64).collect();
    let datatype = tensor.data_type().oip_name().to_owned();
    (TensorMetadata { name: name.to_owned(), datatype, shape }, bytes.into())
}

/// What a model says of an input or output.
pub(super) fn metadata(spec: &TensorSpec) -> TensorMetadata {
    let datatype = spec.data_type.oip_name().to_owned();
    TensorMetadata { name: spec.name.clone(), datatype, shape: dims(spec) }
}

/// The number of a type in `model_config.proto`.
pub(super) fn type_number(data_type: DataType) -> i32 {
    match data_type {
        DataType::Bool => 1,
        DataType::U8 => 2,
        DataType::U16 => 3,
        DataType::U32 => 4,
        DataType::U64 => 5,
        DataType::I8 => 6,
        DataType::I16 => 7,
        DataType::I32 => 8,
        DataType::I64 => 9,
        DataType::F16 => 10,
        DataType::F32 => 11,
        DataType::F64 => 12,
        DataType::String => 13,
    }
}

/// The elements in the field that is for their type; the others must be empty.
fn data(data_type: DataType, contents: Contents) -> Result<Data, String> {
    let Contents {
        bool_contents: bools,
        int_contents: ints,
        int64_contents: longs,
        uint_contents: unsigned,
        uint64_contents: unsigned_longs,
        fp32_contents: floats,
        fp64_contents: doubles,
        bytes_contents: texts,
    } = contents;
    let given = [bools.len(), ints.len(), longs.len(), unsigned.len(), unsigned_longs.len(), floats.len()];
    let given = given.iter().sum::<usize>() + doubles.len() + texts.len();
    let data = match data_type {
        DataType::Bool => Data::Bool(bools),
        DataType::I8 => Data::I8(narrow(ints, data_type)?),
        DataType::I16 => Data::I16(narrow(ints, data_type)?),
        DataType::I32 => Data::I32(ints),
        DataType::I64 => Data::I64(longs),
        DataType::U8 => Data::U8(narrow(unsigned, data_type)?),
        DataType::U16 => Data::U16(narrow(unsigned, data_type)?),
        DataType::U32 => Data::U32(unsigned),
        DataType::U64 => Data::U64(unsigned_longs),
        DataType::F32 => Data::F32(floats),
        DataType::F64 => Data::F64(doubles),
        DataType::F16 => return Err("FP16 is taken in raw_input_contents only".to_owned()),
        DataType::String => Data::String(texts),
    };
    if data.len() == given {
        Ok(data)
    } else {
        Err(format!("its contents are not all in the field for {data_type}"))
    }
}

fn narrow<W: Copy + std::fmt::Display, N: TryFrom<W>>(
    wide: Vec<W>,
    data_type: DataType,
) -> Result<Vec<N>, String> {
    let convert = |(position, element): (usize, W)| {
        N::try_from(element).map_err(|_| format!("element {position} ({element}) is not of type {data_type}"))
    };
    wide.into_iter().enumerate().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(datatype: &str, shape: &[i64], contents: Option<Contents>) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        }
    }

    #[test]
    fn raw_and_typed_contents_are_the_same_tensor() {
        let typed = Contents { fp32_contents: vec![1.0, 2.5], ..Contents::default() };
        let typed = inputs(vec![input("FP32", &[2], Some(typed))], &[]).unwrap();
        let raw: Vec<u8> = [1f32, 2.5].iter().flat_map(|element| element.to_le_bytes()).collect();
        assert_eq!(inputs(vec![input("FP32", &[2], None)], &[raw.into()]).unwrap(), typed);
        let bytes = Contents { int_contents: vec![-1, 127], ..Contents::default() };
        let bytes = inputs(vec![input("INT8", &[2, 1], Some(bytes))], &[]).unwrap();
        assert_eq!(bytes.get("x").unwrap().as_slice(), Some(&[-1i8, 127][..]));
    }

    #[test]
    fn each_mistake_names_the_tensor() {
        let says =
            |given: InferInputTensor, raw: &[Bytes]| inputs(vec![given], raw).unwrap_err().line().to_owned();
        let ints = |ints: &[i32]| Some(Contents { int_contents: ints.to_vec(), ..Contents::default() });
        let bytes = |length: usize| [Bytes::from(vec![0; length])];
        assert_eq!(says(input("FP8", &[1], None), &[]), "tensor `x`: unknown datatype FP8");
        assert!(says(input("FP32", &[-1], None), &[]).contains("negative"));
        assert!(says(input("INT8", &[1], ints(&[128])), &[]).contains("element 0 (128) is not of type INT8"));
        assert!(says(input("FP32", &[1], ints(&[1])), &[]).contains("not all in the field for FP32"));
        assert!(says(input("FP16", &[1], ints(&[1])), &[]).contains("raw_input_contents only"));
        assert!(says(input("FP32", &[1], ints(&[1])), &bytes(4)).contains("both contents and raw"));
        assert!(says(input("FP32", &[2], None), &bytes(4)).contains("holds 2 elements, 1 were given"));
        assert!(says(input("FP32", &[i64::MAX, i64::MAX], None), &bytes(4)).contains("is too large"));
        let two = [bytes(4), bytes(4)].concat();
        assert_eq!(says(input("FP32", &[1], None), &two), "raw_input_contents has 2 items for 1 inputs");
    }
}
