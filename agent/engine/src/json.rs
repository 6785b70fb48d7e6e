//! The JSON tensors of the Open Inference Protocol v2: `{name, shape, datatype, data}`.
//!
//! Data is read flat or nested, row-major, and written flat. JSON has no NaN and no infinity: all three are written as
//! null, and null in a floating-point tensor reads as NaN. BYTES elements are strings. Elements are kept at 16 bytes
//! while they are read, never as a tree of JSON values.

use std::fmt;

use half::f16;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::tensor::{self, Data, DataType, MAX_RANK, Tensor, Tensors};

/// The most elements one tensor may have on its way in: a full-HD image of three channels has 6.2 million, and this
/// many hold 128 MiB while they are read.
pub const MAX_ELEMENTS: usize = 8 << 20;

/// A tensor as a request carries it. Unknown fields and parameters are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct JsonTensor {
    /// Which input it is.
    pub name: String,
    /// The length of each dimension.
    #[serde(deserialize_with = "shape")]
    pub shape: Vec<usize>,
    /// The element type by its protocol name.
    pub datatype: String,
    /// What else is said of it.
    pub parameters: Option<TensorParameters>,
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
    /// The tensor's name.
    pub tensor: String,
    /// What is wrong with it.
    pub why: String,
}

impl JsonTensor {
    /// The tensor by its name.
    ///
    /// # Errors
    /// An unknown type, data that does not fit the shape, an element that does not fit the type.
    pub fn into_tensor(self) -> Result<(String, Tensor), JsonError> {
        let read = || {
            let data_type = data_type(&self.datatype)?;
            let elements = self.data.ok_or("its data is missing")?;
            let (nesting, count) = (elements.nesting(), elements.len());
            let tensor = elements.convert(data_type, self.shape.clone())?;
            // A flat list may stand for any shape.
            if nesting.len() > 1 && nesting != self.shape && count > 0 {
                return Err(format!("data is nested as {nesting:?}, its shape is {:?}", self.shape));
            }
            Ok(tensor)
        };
        match read() {
            Ok(tensor) => Ok((self.name, tensor)),
            Err(why) => Err(JsonError { tensor: self.name, why }),
        }
    }

    /// The tensor by its name, its elements from `bytes` as in [`crate::binary`] instead of from the JSON.
    ///
    /// # Errors
    /// An unknown type, data in the JSON as well, bytes that do not fit the shape.
    pub fn with_bytes(self, bytes: &[u8]) -> Result<(String, Tensor), JsonError> {
        let read = || {
            if self.data.is_some() {
                return Err("it has both data and binary data".to_owned());
            }
            let data_type = data_type(&self.datatype)?;
            crate::binary::read(data_type, self.shape, bytes).map_err(|error| error.to_string())
        };
        match read() {
            Ok(tensor) => Ok((self.name, tensor)),
            Err(why) => Err(JsonError { tensor: self.name, why }),
        }
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

/// One element that is not a string.
#[derive(Clone, Copy, Debug)]
enum Scalar {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

/// Numbers, booleans or strings in order, and the shape that their nesting shows. What they are elements of is
/// decided by [`Elements::into_tensor`].
#[derive(Clone, Debug, Default)]
pub struct Elements {
    scalars: Vec<Scalar>,
    strings: Vec<String>,
    /// The length of the lists at each depth, once the first list of that depth has ended.
    nesting: Vec<Option<usize>>,
}

impl Elements {
    /// The length of the lists at each depth, outermost first; none for a lone element.
    pub fn nesting(&self) -> Vec<usize> {
        self.nesting.iter().copied().flatten().collect()
    }

    /// Reads one more value as the next row: an item of the outermost list.
    pub fn next_row<'de>(&mut self) -> impl DeserializeSeed<'de, Value = ()> {
        match self.nesting.first_mut() {
            Some(rows) => *rows = rows.map(|rows| rows + 1),
            None => self.nesting.push(Some(1)),
        }
        Level { elements: self, depth: 1 }
    }

    /// The tensor `name` of these elements, whatever their nesting.
    ///
    /// # Errors
    /// Another number of elements than `shape` holds, an element that does not fit the type.
    pub fn into_tensor(
        self,
        name: &str,
        data_type: DataType,
        shape: Vec<usize>,
    ) -> Result<Tensor, JsonError> {
        self.convert(data_type, shape).map_err(|why| JsonError { tensor: name.to_owned(), why })
    }

    fn convert(self, data_type: DataType, shape: Vec<usize>) -> Result<Tensor, String> {
        let expected = tensor::elements(&shape).map_err(|error| error.to_string())?;
        if self.len() != expected {
            return Err(format!("shape {shape:?} holds {expected} elements, data has {}", self.len()));
        }
        let data = match data_type {
            DataType::String => strings(self),
            DataType::F32 => floats(self, |float| float as f32).map(Data::F32),
            DataType::F64 => floats(self, |float| float).map(Data::F64),
            DataType::F16 => floats(self, f16::from_f64).map(Data::F16),
            DataType::I8 => integers(self, data_type).map(Data::I8),
            DataType::I16 => integers(self, data_type).map(Data::I16),
            DataType::I32 => integers(self, data_type).map(Data::I32),
            DataType::I64 => integers(self, data_type).map(Data::I64),
            DataType::U8 => integers(self, data_type).map(Data::U8),
            DataType::U16 => integers(self, data_type).map(Data::U16),
            DataType::U32 => integers(self, data_type).map(Data::U32),
            DataType::U64 => integers(self, data_type).map(Data::U64),
            DataType::Bool => bools(self),
        }?;
        Tensor::new(shape, data).map_err(|error| error.to_string())
    }

    fn len(&self) -> usize {
        self.scalars.len() + self.strings.len()
    }

    fn room<E: de::Error>(&self) -> Result<(), E> {
        if self.len() < MAX_ELEMENTS {
            Ok(())
        } else {
            Err(E::custom(format!("more than {MAX_ELEMENTS} elements")))
        }
    }

    fn push<E: de::Error>(&mut self, scalar: Scalar) -> Result<(), E> {
        self.room()?;
        self.scalars.push(scalar);
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Elements, D::Error> {
        let mut elements = Elements::default();
        Level { elements: &mut elements, depth: 0 }.deserialize(deserializer)?;
        Ok(elements)
    }
}

/// Reads a scalar or a list at one depth of nesting.
struct Level<'a> {
    elements: &'a mut Elements,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, booleans or strings, flat or in nested lists")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.elements.push(Scalar::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.elements.push(Scalar::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.elements.push(Scalar::Signed(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.elements.push(Scalar::Unsigned(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.elements.push(Scalar::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.elements.room()?;
        self.elements.strings.push(value.to_owned());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Level { elements, depth } = self;
        if depth >= MAX_RANK {
            return Err(de::Error::custom(format!("data is nested deeper than {MAX_RANK}")));
        }
        if elements.nesting.len() <= depth {
            elements.nesting.push(None);
        }
        let mut length = 0usize;
        while list.next_element_seed(Level { elements: &mut *elements, depth: depth + 1 })?.is_some() {
            length += 1;
        }
        match elements.nesting.get_mut(depth) {
            Some(Some(known)) if *known != length => {
                Err(de::Error::custom("lists at one depth differ in length"))
            }
            Some(known) => {
                *known = Some(length);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A shape of at most [`MAX_RANK`] dimensions.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Lengths;
    impl<'de> Visitor<'de> for Lengths {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a shape of at most {MAX_RANK} dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(length) = list.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(de::Error::invalid_length(MAX_RANK + 1, &self));
                }
                shape.push(length);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Lengths)
}

fn data_type(name: &str) -> Result<DataType, String> {
    DataType::from_oip_name(name).ok_or_else(|| {
        let known: Vec<&str> = DataType::ALL.iter().map(|data_type| data_type.oip_name()).collect();
        format!("unknown datatype {name}: expected one of {}", known.join(", "))
    })
}

fn strings(elements: Elements) -> Result<Data, String> {
    if elements.scalars.is_empty() {
        Ok(Data::String(elements.strings))
    } else {
        Err("a BYTES tensor takes strings only".into())
    }
}

fn floats<T>(elements: Elements, of: impl Fn(f64) -> T) -> Result<Vec<T>, String> {
    let number = |scalar: &Scalar| match *scalar {
        Scalar::Null => Ok(f64::NAN),
        Scalar::Float(float) => Ok(float),
        Scalar::Signed(integer) => Ok(integer as f64),
        Scalar::Unsigned(integer) => Ok(integer as f64),
        Scalar::Bool(_) => Err("a boolean is not a number".to_owned()),
    };
    refuse_strings(&elements)?;
    elements.scalars.iter().map(|scalar| Ok(of(number(scalar)?))).collect()
}

fn integers<T: TryFrom<i128>>(elements: Elements, data_type: DataType) -> Result<Vec<T>, String> {
    refuse_strings(&elements)?;
    let convert = |(position, scalar): (usize, &Scalar)| {
        let integer = match *scalar {
            Scalar::Signed(integer) => Some(i128::from(integer)),
            Scalar::Unsigned(integer) => Some(i128::from(integer)),
            // Clients that know only floats write 3.0; up to 2^53 it is that integer exactly.
            Scalar::Float(float) if float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0 => {
                Some(float as i128)
            }
            _ => None,
        };
        let fits = integer.and_then(|integer| T::try_from(integer).ok());
        fits.ok_or_else(|| format!("element {position} ({}) is not of type {data_type}", scalar.shown()))
    };
    elements.scalars.iter().enumerate().map(convert).collect()
}

fn bools(elements: Elements) -> Result<Data, String> {
    refuse_strings(&elements)?;
    let convert = |(position, scalar): (usize, &Scalar)| match *scalar {
        Scalar::Bool(value) => Ok(value),
        Scalar::Unsigned(0) => Ok(false),
        Scalar::Unsigned(1) => Ok(true),
        _ => Err(format!("element {position} ({}) is not of type BOOL", scalar.shown())),
    };
    elements.scalars.iter().enumerate().map(convert).collect::<Result<_, _>>().map(Data::Bool)
}

fn refuse_strings(elements: &Elements) -> Result<(), String> {
    match elements.strings.first() {
        None => Ok(()),
        Some(string) => {
            let start: String = string.chars().take(32).collect();
            Err(format!("{start:?} is not a number: only BYTES tensors take strings"))
        }
    }
}

impl Scalar {
    fn shown(self) -> String {
        match self {
            Scalar::Null => "null".into(),
            Scalar::Bool(value) => value.to_string(),
            Scalar::Signed(value) => value.to_string(),
            Scalar::Unsigned(value) => value.to_string(),
            Scalar::Float(value) => value.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str) -> Result<(String, Tensor), String> {
        let tensor: JsonTensor = serde_json::from_str(json).map_err(|error| error.to_string())?;
        tensor.into_tensor().map_err(|error| error.to_string())
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
        assert_eq!(says("[1]", "UINT8", "[256]"), "tensor `x`: element 0 (256) is not of type UINT8");
        assert_eq!(says("[2]", "INT64", "[1,1.5]"), "tensor `x`: element 1 (1.5) is not of type INT64");
        assert_eq!(
            says("[1]", "FP32", r#"["1"]"#),
            r#"tensor `x`: "1" is not a number: only BYTES tensors take strings"#
        );
        assert_eq!(says("[1]", "BYTES", "[1]"), "tensor `x`: a BYTES tensor takes strings only");
        assert_eq!(says("[1]", "BOOL", "[2]"), "tensor `x`: element 0 (2) is not of type BOOL");
        assert!(says("[1]", "FP8", "[1]").starts_with("tensor `x`: unknown datatype FP8"));
        assert!(says("[3]", "FP32", "[[1,2],[3]]").starts_with("lists at one depth differ in length"));
        assert!(says("[18446744073709551615,2]", "FP32", "[1]").ends_with("is too large"));
        assert!(says("[18446744073709551615,0]", "FP32", "[]").ends_with("is too large"));
        let ones = format!("[{}1]", "1,".repeat(16));
        assert!(says(&ones, "FP32", "[1]").contains("expected a shape of at most 16 dimensions"));
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert!(says("[1]", "FP32", &deep).starts_with("data is nested deeper than 16"));
    }
}
