//! The one thing an engine is to the rest of the product: a [`Model`].

use crate::load::Engine;
use crate::signature::Signature;
use crate::tensor::{DataType, Tensors};

/// A loaded model. Scoring blocks the calling thread for as long as the model takes.
pub trait Model: Send {
    /// What the model takes and gives.
    fn signature(&self) -> &Signature;

    /// Scores one set of inputs; the outputs come in the order of the signature.
    ///
    /// # Errors
    /// [`ScoreError::BadInput`] when the inputs are not what the signature asks for, [`ScoreError::Engine`] when the
    /// engine fails on inputs that are.
    fn score(&mut self, inputs: &Tensors) -> Result<Tensors, ScoreError>;
}

/// Why a score failed, and whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// The caller's: the same inputs will always fail.
    #[error(transparent)]
    BadInput(#[from] InputError),
    /// The engine's or the model's: `why` names the operator and the shapes as far as the engine tells.
    #[error("{engine} failed to score: {why}")]
    Engine {
        /// The engine that failed.
        engine: Engine,
        /// Its own words.
        why: String,
    },
}

/// What is wrong with the inputs of a score.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// An input that the model needs was not given.
    #[error("input `{input}` is missing: expected {expected}")]
    Missing {
        /// Its name.
        input: String,
        /// Its type and shape.
        expected: String,
    },
    /// An input was given that the model does not have.
    #[error("input `{input}` is unknown: the model takes {known}")]
    Unknown {
        /// The name that was given.
        input: String,
        /// The names that the model knows.
        known: String,
    },
    /// An input was given twice.
    #[error("input `{input}` is given twice")]
    Twice {
        /// Its name.
        input: String,
    },
    /// An input has another element type.
    #[error("input `{input}` is of type {given}: expected {expected}")]
    Type {
        /// Its name.
        input: String,
        /// The type that was given.
        given: DataType,
        /// The type and shape that the model takes.
        expected: String,
    },
    /// An input has another rank, or another length in a dimension that is not free.
    #[error("input `{input}` has shape {given:?}: expected {expected}")]
    Shape {
        /// Its name.
        input: String,
        /// The shape that was given.
        given: Vec<usize>,
        /// The type and shape that the model takes.
        expected: String,
    },
    /// An input holds a value that can't be handed to the engine.
    #[error("input `{input}`: {why}")]
    Value {
        /// Its name.
        input: String,
        /// What is wrong with it.
        why: String,
    },
}
