//! Tensors: typed elements in row-major order with a shape, and an ordered list of them by name.
//!
//! Invariants, checked where a tensor is made, which can't be changed afterwards:
//! - The product of a tensor's shape is the number of its elements.
//! - It has at most [`MAX_RANK`] dimensions, and where it has no element, no more than [`MAX_EMPTY`] lists without any.

use std::fmt;

/// The most dimensions; the models of this field stay under 8.
pub const MAX_RANK: usize = 16;

/// The largest product of an empty tensor's other dimensions: each is a row that is captured and a list that is written,
/// and costs a sender nothing.
pub const MAX_EMPTY: usize = 1 << 16;

/// One row per element type: its variant, its Rust type, its name in the Open Inference Protocol.
macro_rules! element_types {
    ($($variant:ident $element:ty = $name:literal,)+) => {
        /// The type of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DataType { $(#[doc = concat!("`", stringify!($element), "`")] $variant),+ }

        impl DataType {
            /// Every type, in the order of declaration.
            pub const ALL: &[DataType] = &[$(DataType::$variant),+];

            /// The name in the Open Inference Protocol: `FP32`, `INT64`, `BYTES`…
            pub fn oip_name(self) -> &'static str {
                match self { $(DataType::$variant => $name),+ }
            }
        }

        /// A tensor's elements, row-major.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Data { $(#[doc = concat!("Elements of type `", stringify!($element), "`")] $variant(Vec<$element>)),+ }

        impl Data {
            /// The number of elements.
            pub fn len(&self) -> usize {
                match self { $(Data::$variant(elements) => elements.len()),+ }
            }

            /// The type of the elements.
            pub fn data_type(&self) -> DataType {
                match self { $(Data::$variant(_) => DataType::$variant),+ }
            }

            /// Zeros, falses or empty strings. The caller bounds their number.
            pub fn zeros(data_type: DataType, len: usize) -> Data {
                match data_type { $(DataType::$variant => Data::$variant(vec![<$element>::default(); len])),+ }
            }

            /// No elements, with room for so many. The caller bounds their number.
            pub(crate) fn with_capacity(data_type: DataType, len: usize) -> Data {
                match data_type { $(DataType::$variant => Data::$variant(Vec::with_capacity(len))),+ }
            }

            /// Adds elements of the same type; false where they are of another.
            pub(crate) fn append(&mut self, more: &Data) -> bool {
                match (self, more) {
                    $((Data::$variant(elements), Data::$variant(more)) => elements.extend_from_slice(more),)+
                    _ => return false,
                }
                true
            }

            /// A copy of these elements; `None` where there are fewer.
            pub(crate) fn part(&self, range: std::ops::Range<usize>) -> Option<Data> {
                match self { $(Data::$variant(elements) => elements.get(range).map(|part| Data::$variant(part.to_vec()))),+ }
            }
        }

        $(impl Element for $element {
            const DATA_TYPE: DataType = DataType::$variant;

            fn into_data(elements: Vec<Self>) -> Data {
                Data::$variant(elements)
            }

            fn slice(data: &Data) -> Option<&[Self]> {
                match data { Data::$variant(elements) => Some(elements), _ => None }
            }
        })+
    };
}

/// A Rust type that can be a tensor's element.
pub trait Element: Clone + Sized {
    /// The type's name among [`DataType`]s.
    const DATA_TYPE: DataType;
    /// Wraps elements without copying them.
    fn into_data(elements: Vec<Self>) -> Data;
    /// The elements, if they are of this type.
    fn slice(data: &Data) -> Option<&[Self]>;
}

element_types! {
    F32 f32 = "FP32",
    F64 f64 = "FP64",
    F16 half::f16 = "FP16",
    I8 i8 = "INT8",
    I16 i16 = "INT16",
    I32 i32 = "INT32",
    I64 i64 = "INT64",
    U8 u8 = "UINT8",
    U16 u16 = "UINT16",
    U32 u32 = "UINT32",
    U64 u64 = "UINT64",
    Bool bool = "BOOL",
    String String = "BYTES",
}

impl DataType {
    /// The type of an Open Inference Protocol name.
    pub fn from_oip_name(name: &str) -> Option<DataType> {
        DataType::ALL.iter().copied().find(|data_type| data_type.oip_name() == name)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.oip_name())
    }
}

impl Data {
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A shape that does not fit its elements.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The product of the shape is another number than that of the elements.
    #[error("shape {shape:?} holds {expected} elements, {given} were given")]
    Elements {
        /// The shape.
        shape: Vec<usize>,
        /// Its product.
        expected: usize,
        /// The number of elements that came with it.
        given: usize,
    },
    /// The product of the shape is more than memory can address, or [`MAX_EMPTY`] lists without an element.
    #[error("shape {shape:?} is too large")]
    Overflow {
        /// The shape.
        shape: Vec<usize>,
    },
    /// The shape has more than [`MAX_RANK`] dimensions.
    #[error("a shape of {rank} dimensions: at most {MAX_RANK} are possible")]
    Rank {
        /// How many it has.
        rank: usize,
    },
}

/// A typed, shaped, row-major array. Rank 0 (an empty shape) is a scalar: one element.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Errors
    /// See [`ShapeError`].
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Tensor, ShapeError> {
        let expected = elements(&shape)?;
        if expected == data.len() {
            Ok(Tensor { shape, data })
        } else {
            Err(ShapeError::Elements { shape, expected, given: data.len() })
        }
    }

    /// A tensor of these elements; the element type follows from theirs.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_vec<T: Element>(shape: Vec<usize>, elements: Vec<T>) -> Result<Tensor, ShapeError> {
        Tensor::new(shape, T::into_data(elements))
    }

    /// The length of each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The type of the elements.
    pub fn data_type(&self) -> DataType {
        self.data.data_type()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements, if they are of type `T`.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        T::slice(&self.data)
    }

    /// The shape and the elements, taken apart.
    pub fn into_parts(self) -> (Vec<usize>, Data) {
        (self.shape, self.data)
    }
}

/// The number of elements of a shape.
///
/// # Errors
/// It has too many dimensions, or too large ones.
pub fn elements(shape: &[usize]) -> Result<usize, ShapeError> {
    if shape.len() > MAX_RANK {
        return Err(ShapeError::Rank { rank: shape.len() });
    }
    let mut lengths = shape.iter().filter(|length| **length != 0);
    let product = lengths.try_fold(1usize, |product, length| product.checked_mul(*length));
    match product {
        Some(product) if !shape.contains(&0) => Ok(product),
        Some(lists) if lists <= MAX_EMPTY => Ok(0),
        _ => Err(ShapeError::Overflow { shape: shape.to_vec() }),
    }
}

/// Tensors by name, in order. Few per model, so a name is found by looking at each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors(Vec<(String, Tensor)>);

impl Tensors {
    /// No tensors.
    pub fn new() -> Tensors {
        Tensors::default()
    }

    /// The first tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.iter().find(|(known, _)| *known == name).map(|(_, tensor)| tensor)
    }

    /// Adds a tensor at the end. A name that is there already is kept twice, and [`crate::Signature::check`] refuses it.
    pub fn push(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.0.push((name.into(), tensor));
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<String>> FromIterator<(N, Tensor)> for Tensors {
    fn from_iter<I: IntoIterator<Item = (N, Tensor)>>(tensors: I) -> Tensors {
        Tensors(tensors.into_iter().map(|(name, tensor)| (name.into(), tensor)).collect())
    }
}

impl IntoIterator for Tensors {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<(String, Tensor)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_does_not_fit_is_refused() {
        assert!(Tensor::from_vec(vec![2, 3], vec![0f32; 6]).is_ok());
        assert!(Tensor::from_vec(vec![], vec![true]).is_ok(), "rank 0 holds one element");
        assert!(Tensor::from_vec(vec![3, 0], Vec::<i64>::new()).is_ok(), "no element is a tensor too");
        assert_eq!(
            Tensor::from_vec(vec![2, 3], vec![0u8; 5]).unwrap_err().to_string(),
            "shape [2, 3] holds 6 elements, 5 were given"
        );
        let huge = vec![usize::MAX, 2];
        assert_eq!(Tensor::from_vec(huge.clone(), vec![0u8]), Err(ShapeError::Overflow { shape: huge }));
        assert!(Tensor::from_vec(vec![1; MAX_RANK], vec![0u8]).is_ok());
        assert_eq!(
            Tensor::from_vec(vec![1; MAX_RANK + 1], vec![0u8]),
            Err(ShapeError::Rank { rank: MAX_RANK + 1 })
        );
    }

    #[test]
    fn a_tensor_without_elements_has_few_rows_too() {
        let of = |shape: &[usize]| Tensor::from_vec(shape.to_vec(), Vec::<f32>::new());
        assert!(of(&[MAX_EMPTY, 0]).is_ok() && of(&[256, 0, 256]).is_ok());
        for huge in [[MAX_EMPTY + 1, 0], [0, usize::MAX]] {
            assert_eq!(of(&huge), Err(ShapeError::Overflow { shape: huge.to_vec() }));
        }
        assert!(of(&[0, usize::MAX, usize::MAX]).is_err(), "a product that overflows");
    }

    #[test]
    fn protocol_names_read_back() {
        for data_type in DataType::ALL {
            assert_eq!(DataType::from_oip_name(data_type.oip_name()), Some(*data_type));
        }
        assert_eq!(DataType::from_oip_name("BF16"), None);
    }
}
