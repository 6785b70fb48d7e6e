//! The JSON tensors of the Open Inference Protocol v2: `{name, shape, datatype, data}`.
//!
//! Data is read flat or nested, row-major, and written flat. JSON has no NaN and no infinity: all three are written as
//! null, and null in a floating-point tensor reads as NaN. BYTES elements are strings. Elements are read straight into
//! the list that the tensor keeps; only where `data` stands before `datatype` is it passed over first.

mod cursor;
mod elements;
mod number;

use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::cursor::{Cursor, CursorError, Next};
pub use self::elements::Elements;
use crate::tensor::{Data, DataType, MAX_RANK, Tensor, Tensors};

/// The most elements one tensor may have on its way in: a full-HD image of three channels has 6.2 million, and this
/// many hold 64 MiB.
pub const MAX_ELEMENTS: usize = 8 << 20;

/// A tensor as a request carries it. Unknown fields and parameters are ignored.
#[derive(Clone, Debug)]
pub struct JsonTensor {
    /// Which input it is.
    pub name: String,
    /// The length of each dimension.
    pub shape: Vec<usize>,
    /// The element type.
    pub data_type: DataType,
    /// What else is said of it.
    pub parameters: TensorParameters,
    data: Option<Elements>,
}

/// The parameters of a tensor that decide where its elements are.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct TensorParameters {
    /// The elements follow the JSON as so many bytes, as in [`crate::binary`].
    pub binary_data_size: Option<usize>,
}

/// What is wrong with a tensor in JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor `{tensor}`: {why}")]
pub struct JsonError {
    /// The tensor's name; `?` where it is not known yet.
    pub tensor: String,
    /// What is wrong with it.
    pub why: String,
}

impl JsonTensor {
    /// Reads a tensor.
    ///
    /// # Errors
    /// A field is missing or wrong, the type is unknown, an element does not fit the type.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<JsonTensor, JsonError> {
        let mut fields = Fields::default();
        match fields.read(cursor).and_then(|()| fields.tensor(cursor)) {
            Ok(tensor) => Ok(tensor),
            Err(error) => {
                let tensor = fields.name.unwrap_or_else(|| "?".to_owned());
                Err(JsonError { tensor, why: error.to_string() })
            }
        }
    }

    /// The tensor by its name.
    ///
    /// # Errors
    /// Data that does not fit the shape, or that is missing.
    pub fn into_tensor(self) -> Result<(String, Tensor), JsonError> {
        let wrong = |why: String| JsonError { tensor: self.name.clone(), why };
        let elements = self.data.ok_or_else(|| wrong("its data is missing".to_owned()))?;
        let nesting = elements.nesting();
        let tensor = elements.into_tensor(&self.name, self.shape.clone())?;
        // A flat list may stand for any shape.
        if nesting.len() > 1 && nesting != self.shape && !tensor.is_empty() {
            return Err(wrong(format!("data is nested as {nesting:?}, its shape is {:?}", self.shape)));
        }
        Ok((self.name, tensor))
    }

    /// The tensor by its name, its elements from `bytes` as in [`crate::binary`] instead of from the JSON.
    ///
    /// # Errors
    /// Data in the JSON as well, bytes that do not fit the shape.
    pub fn with_bytes(self, bytes: &[u8]) -> Result<(String, Tensor), JsonError> {
        let read = match self.data {
            Some(_) => Err("it has both data and binary data".to_owned()),
            None => crate::binary::read(self.data_type, self.shape, bytes).map_err(|error| error.to_string()),
        };
        match read {
            Ok(tensor) => Ok((self.name, tensor)),
            Err(why) => Err(JsonError { tensor: self.name, why }),
        }
    }
}

/// The fields of a tensor that were seen so far.
#[derive(Default)]
struct Fields {
    name: Option<String>,
    shape: Option<Vec<usize>>,
    data_type: Option<DataType>,
    parameters: Option<TensorParameters>,
    data: Option<Elements>,
}

impl Fields {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), CursorError> {
        let mut deferred = None;
        cursor.object(|field, cursor| {
            let is_twice = match field {
                "name" => self.name.replace(cursor.text()?.into_owned()).is_some(),
                "shape" => self.shape.replace(shape(cursor)?).is_some(),
                "datatype" => self.data_type.replace(data_type(cursor)?).is_some(),
                "parameters" => {
                    self.parameters.replace(cursor.value::<Option<_>>()?.unwrap_or_default()).is_some()
                }
                "data" if cursor.null()? => false,
                "data" => match self.data_type {
                    Some(data_type) => self.data.replace(elements(data_type, cursor)?).is_some(),
                    None => deferred.replace(cursor.defer()?).is_some(),
                },
                _ => {
                    cursor.skip()?;
                    false
                }
            };
            if is_twice { Err(cursor.wrong(&format!("duplicate field `{field}`"))) } else { Ok(()) }
        })?;
        if let (Some(mut data), Some(data_type)) = (deferred, self.data_type) {
            if self.data.is_some() {
                return Err(cursor.wrong("duplicate field `data`"));
            }
            self.data = Some(elements(data_type, &mut data)?);
        }
        Ok(())
    }

    fn tensor(&mut self, cursor: &Cursor<'_>) -> Result<JsonTensor, CursorError> {
        let missing = |field: &str| cursor.wrong(&format!("missing field `{field}`"));
        let shape = self.shape.take().ok_or_else(|| missing("shape"))?;
        let data_type = self.data_type.ok_or_else(|| missing("datatype"))?;
        let name = self.name.take().ok_or_else(|| missing("name"))?;
        let parameters = self.parameters.unwrap_or_default();
        Ok(JsonTensor { name, shape, data_type, parameters, data: self.data.take() })
    }
}

fn shape(cursor: &mut Cursor<'_>) -> Result<Vec<usize>, CursorError> {
    let mut shape = Vec::new();
    cursor.list(|cursor| {
        if shape.len() == MAX_RANK {
            return Err(cursor.wrong(&format!("expected a shape of at most {MAX_RANK} dimensions")));
        }
        let length =
            cursor.value().map_err(|_| cursor.wrong("expected a shape of whole numbers, 0 or more"))?;
        shape.push(length);
        Ok(())
    })?;
    Ok(shape)
}

fn elements(data_type: DataType, cursor: &mut Cursor<'_>) -> Result<Elements, CursorError> {
    let mut elements = Elements::new(data_type);
    elements.read(cursor).map(|()| elements)
}

fn data_type(cursor: &mut Cursor<'_>) -> Result<DataType, CursorError> {
    let name = cursor.text()?;
    DataType::from_oip_name(&name).ok_or_else(|| {
        let known: Vec<&str> = DataType::ALL.iter().map(|data_type| data_type.oip_name()).collect();
        let name: String = name.chars().take(32).collect();
        cursor.wrong(&format!("unknown datatype {name}: expected one of {}", known.join(", ")))
    })
}

impl<'de> Deserialize<'de> for JsonTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonTensor, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?;
        JsonTensor::read(&mut Cursor::new(json.get().as_bytes())).map_err(de::Error::custom)
    }
}

/// The tensors of a request.
///
/// # Errors
/// The first tensor that is wrong, by name.
pub fn read_all(tensors: impl IntoIterator<Item = JsonTensor>) -> Result<Tensors, JsonError> {
    tensors.into_iter().map(JsonTensor::into_tensor).collect()
}

/// A tensor as a response carries it: flat data.
#[derive(Serialize)]
pub struct JsonOutput<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    data: Flat<'a>,
}

/// The tensors of a response, in order.
pub fn write_all(tensors: &Tensors) -> Vec<JsonOutput<'_>> {
    tensors.iter().map(|(name, tensor)| write(name, tensor)).collect()
}

/// One tensor of a response.
pub fn write<'a>(name: &'a str, tensor: &'a Tensor) -> JsonOutput<'a> {
    let datatype = tensor.data_type().oip_name();
    JsonOutput { name, shape: tensor.shape(), datatype, data: Flat(tensor.data()) }
}

struct Flat<'a>(&'a Data);

impl Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // serde_json itself writes a float that is not finite as null.
        match self.0 {
            Data::F32(elements) => serializer.collect_seq(elements),
            Data::F64(elements) => serializer.collect_seq(elements),
            Data::F16(elements) => serializer.collect_seq(elements.iter().map(|element| element.to_f32())),
            Data::I8(elements) => serializer.collect_seq(elements),
            Data::I16(elements) => serializer.collect_seq(elements),
            Data::I32(elements) => serializer.collect_seq(elements),
            Data::I64(elements) => serializer.collect_seq(elements),
            Data::U8(elements) => serializer.collect_seq(elements),
            Data::U16(elements) => serializer.collect_seq(elements),
            Data::U32(elements) => serializer.collect_seq(elements),
            Data::U64(elements) => serializer.collect_seq(elements),
            Data::Bool(elements) => serializer.collect_seq(elements),
            Data::String(elements) => serializer.collect_seq(elements),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::tensor;

    fn parse(json: &str) -> Result<(String, Tensor), String> {
        let tensor = JsonTensor::read(&mut Cursor::new(json.as_bytes()));
        tensor.and_then(JsonTensor::into_tensor).map_err(|error| error.to_string())
    }

    fn data_of(length: usize) -> impl Strategy<Value = Data> {
        use prop::collection::vec;
        prop_oneof![
            vec(any::<f32>().prop_filter("finite", |float| float.is_finite()), length).prop_map(Data::F32),
            vec(any::<f64>().prop_filter("finite", |float| float.is_finite()), length).prop_map(Data::F64),
            vec(
                any::<u16>().prop_map(f16::from_bits).prop_filter("finite", |float| float.is_finite()),
                length
            )
            .prop_map(Data::F16),
            vec(any::<i8>(), length).prop_map(Data::I8),
            vec(any::<i16>(), length).prop_map(Data::I16),
            vec(any::<i32>(), length).prop_map(Data::I32),
            vec(any::<i64>(), length).prop_map(Data::I64),
            vec(any::<u8>(), length).prop_map(Data::U8),
            vec(any::<u16>(), length).prop_map(Data::U16),
            vec(any::<u32>(), length).prop_map(Data::U32),
            vec(any::<u64>(), length).prop_map(Data::U64),
            vec(any::<bool>(), length).prop_map(Data::Bool),
            vec(any::<String>(), length).prop_map(Data::String),
        ]
    }

    fn tensor() -> impl Strategy<Value = Tensor> {
        prop::collection::vec(0usize..4, 0..4).prop_flat_map(|shape| {
            let length = tensor::elements(&shape).unwrap();
            data_of(length).prop_map(move |data| Tensor::new(shape.clone(), data).unwrap())
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(tensor in tensor(), name in any::<String>()) {
            let text = serde_json::to_string(&write(&name, &tensor)).unwrap();
            prop_assert_eq!(parse(&text), Ok((name, tensor)));
        }
    }

    #[test]
    fn nested_data_is_the_same_as_flat() {
        let flat = parse(r#"{"name":"x","shape":[2,3],"datatype":"INT32","data":[1,2,3,4,5,6]}"#);
        let nested = parse(
            r#"{"data":[[1,2,3],[4,5,6]],"datatype":"INT32","shape":[2,3],"name":"x","parameters":{}}"#,
        );
        assert!(flat.is_ok());
        assert_eq!(flat, nested);
        assert!(
            parse(r#"{"name":"x","shape":[],"datatype":"FP32","data":7}"#).is_ok(),
            "a scalar without a list"
        );
        let missing = parse(r#"{"name":"x","shape":[1],"datatype":"FP32","data":null}"#);
        assert_eq!(missing, Err("tensor `x`: its data is missing".to_owned()));
        let file: JsonTensor =
            serde_json::from_str(r#"{"name":"x","shape":[1],"datatype":"BOOL","data":[true]}"#).unwrap();
        assert!(file.into_tensor().is_ok(), "as part of a document that serde reads");
    }

    #[test]
    fn not_a_number_is_null_both_ways() {
        let tensor = Tensor::from_vec(vec![3], vec![f32::NAN, f32::INFINITY, 1.5]).unwrap();
        let text = serde_json::to_string(&write("x", &tensor)).unwrap();
        assert!(text.ends_with(r#""data":[null,null,1.5]}"#), "{text}");
        let (_, read) = parse(&text).unwrap();
        assert!(read.as_slice::<f32>().unwrap()[0].is_nan());
    }

    #[test]
    fn each_mistake_names_the_tensor() {
        let says = |shape: &str, datatype: &str, data: &str| {
            parse(&format!(r#"{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}"#))
                .unwrap_err()
        };
        assert_eq!(says("[3]", "FP32", "[1,2]"), "tensor `x`: shape [3] holds 3 elements, data has 2");
        assert_eq!(
            says("[2,1]", "FP32", "[[1,2]]"),
            "tensor `x`: data is nested as [1, 2], its shape is [2, 1]"
        );
        let at = |why: &str| format!("tensor `x`: {why} at byte ");
        assert!(says("[1]", "UINT8", "[256]").starts_with(&at("element 0 (256) is not of type UINT8")));
        assert!(says("[2]", "INT64", "[1,1.5]").starts_with(&at("element 1 (1.5) is not of type INT64")));
        assert!(says("[1]", "FP32", "[1e39]").starts_with(&at("element 0 (1e39) is not of type FP32")));
        let text = says("[1]", "FP32", r#"["1"]"#);
        let hint = r#"element 0 ("1") is not of type FP32: only BYTES tensors take strings"#;
        assert!(text.starts_with(&at(hint)), "{text}");
        assert!(says("[1]", "BYTES", "[1]").starts_with(&at("element 0 (1) is not of type BYTES")));
        assert!(says("[1]", "BOOL", "[2]").starts_with(&at("element 0 (2) is not of type BOOL")));
        assert!(says("[1]", "FP8", "[1]").starts_with("tensor `x`: unknown datatype FP8"));
        assert!(
            says("[3]", "FP32", "[[1,2],[3]]").starts_with("tensor `x`: lists at one depth differ in length")
        );
        for large in ["[18446744073709551615,2]", "[18446744073709551615,0]"] {
            assert!(says(large, "FP32", "[1]").ends_with("is too large"), "{large}");
        }
        let ones = format!("[{}1]", "1,".repeat(16));
        assert!(says(&ones, "FP32", "[1]").contains("expected a shape of at most 16 dimensions"));
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert!(says("[1]", "FP32", &deep).starts_with("tensor `x`: data is nested deeper than 16"));
    }
}
