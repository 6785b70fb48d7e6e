//! What a model takes and gives: names, element types, shapes with free dimensions.

use std::fmt;

use crate::model::InputError;
use crate::tensor::{self, Data, DataType, Tensor, Tensors};

/// Most elements of an input that is made up: 64 MiB of 32-bit numbers.
pub const MAX_ZEROS: usize = 16 << 20;

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the graph.
    pub name: String,
    /// The type of its elements.
    pub data_type: DataType,
    /// The length of each dimension; `None` is a free one (-1 on the wire). An output whose rank the file does not
    /// tell has an empty shape.
    pub shape: Vec<Option<usize>>,
}

/// The inputs and outputs of a model, in the order of its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// What it takes.
    pub inputs: Vec<TensorSpec>,
    /// What it gives.
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// Checks that `inputs` are exactly what the model takes.
    ///
    /// # Errors
    /// The first input that is missing, unknown, given twice, or of another type or shape, in words that name it.
    pub fn check(&self, inputs: &Tensors) -> Result<(), InputError> {
        for (position, (name, _)) in inputs.iter().enumerate() {
            if !self.inputs.iter().any(|spec| spec.name == name) {
                let known: Vec<String> = self.inputs.iter().map(|spec| format!("`{}`", spec.name)).collect();
                return Err(InputError::Unknown { input: name.into(), known: known.join(", ") });
            }
            if inputs.iter().take(position).any(|(earlier, _)| earlier == name) {
                return Err(InputError::Twice { input: name.into() });
            }
        }
        for spec in &self.inputs {
            let Some(tensor) = inputs.get(&spec.name) else {
                return Err(InputError::Missing { input: spec.name.clone(), expected: spec.kind() });
            };
            spec.check(tensor)?;
        }
        Ok(())
    }

    /// Inputs of zeros, free dimensions 1; `None` where one of them has more than [`MAX_ZEROS`] elements.
    pub fn zeros(&self) -> Option<Tensors> {
        let zeros = |spec: &TensorSpec| {
            let shape: Vec<usize> = spec.shape.iter().map(|length| length.unwrap_or(1)).collect();
            let elements = tensor::elements(&shape).ok().filter(|elements| *elements <= MAX_ZEROS)?;
            let tensor = Tensor::new(shape, Data::zeros(spec.data_type, elements)).ok()?;
            Some((spec.name.clone(), tensor))
        };
        self.inputs.iter().map(zeros).collect()
    }

    /// Whether the first dimension of every input and output is free, so that several requests can be scored as one.
    pub fn batch_dimension(&self) -> bool {
        let mut all = self.inputs.iter().chain(&self.outputs);
        !self.inputs.is_empty() && all.all(|spec| spec.shape.first() == Some(&None))
    }
}

impl TensorSpec {
    /// Type and shape in words, as `FP32 [-1, 3]`.
    pub fn kind(&self) -> String {
        let lengths: Vec<String> =
            self.shape.iter().map(|length| length.map_or("-1".into(), |length| length.to_string())).collect();
        format!("{} [{}]", self.data_type, lengths.join(", "))
    }

    fn check(&self, tensor: &Tensor) -> Result<(), InputError> {
        if tensor.data_type() != self.data_type {
            return Err(InputError::Type {
                input: self.name.clone(),
                given: tensor.data_type(),
                expected: self.kind(),
            });
        }
        let fits = tensor.shape().len() == self.shape.len()
            && tensor
                .shape()
                .iter()
                .zip(&self.shape)
                .all(|(given, length)| length.is_none_or(|l| l == *given));
        if fits {
            Ok(())
        } else {
            Err(InputError::Shape {
                input: self.name.clone(),
                given: tensor.shape().to_vec(),
                expected: self.kind(),
            })
        }
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.kind())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[Option<usize>]) -> TensorSpec {
        TensorSpec { name: name.into(), data_type: DataType::F32, shape: shape.to_vec() }
    }

    #[test]
    fn inputs_are_made_up_within_bounds() {
        let of = |shape| Signature { inputs: vec![spec("x", shape)], outputs: Vec::new() }.zeros();
        let tensors = of(&[None, Some(3)]).unwrap();
        assert_eq!(tensors.get("x").unwrap().as_slice::<f32>(), Some([0f32; 3].as_slice()));
        assert!(of(&[Some(usize::MAX), Some(2)]).is_none());
        assert!(of(&[Some(MAX_ZEROS + 1)]).is_none());
    }

    #[test]
    fn each_mistake_is_named() {
        let signature =
            Signature { inputs: vec![spec("a", &[None, Some(3)]), spec("b", &[])], outputs: vec![] };
        let a = || Tensor::from_vec(vec![2, 3], vec![0f32; 6]).unwrap();
        let b = || Tensor::from_vec(vec![], vec![0f32]).unwrap();
        let says = |inputs: Vec<(&str, Tensor)>| {
            signature.check(&inputs.into_iter().collect()).map_err(|error| error.to_string())
        };
        assert_eq!(says(vec![("b", b()), ("a", a())]), Ok(()), "order does not matter");
        assert_eq!(says(vec![("a", a())]), Err("input `b` is missing: expected FP32 []".into()));
        assert_eq!(
            says(vec![("a", a()), ("c", b())]),
            Err("input `c` is unknown: the model takes `a`, `b`".into())
        );
        assert_eq!(says(vec![("a", a()), ("a", a()), ("b", b())]), Err("input `a` is given twice".into()));
        assert_eq!(
            says(vec![("a", Tensor::from_vec(vec![2, 3], vec![0i64; 6]).unwrap()), ("b", b())]),
            Err("input `a` is of type INT64: expected FP32 [-1, 3]".into())
        );
        assert_eq!(
            says(vec![("a", Tensor::from_vec(vec![3, 2], vec![0f32; 6]).unwrap()), ("b", b())]),
            Err("input `a` has shape [3, 2]: expected FP32 [-1, 3]".into())
        );
    }

    #[test]
    fn a_batch_needs_every_first_dimension_free() {
        let mut signature =
            Signature { inputs: vec![spec("a", &[None, Some(3)])], outputs: vec![spec("y", &[None])] };
        assert!(signature.batch_dimension());
        signature.outputs.push(spec("z", &[Some(1)]));
        assert!(!signature.batch_dimension());
    }
}
