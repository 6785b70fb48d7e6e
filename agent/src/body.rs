//! Bodies: the forms in which people send inputs, and the form in which they get outputs back.
//!
//! [`infer`] takes what the Open Inference Protocol sends; [`read`] takes that, what Azure ML and what a plain sensor
//! sends; [`Prediction`], [`Outputs`],
//! [`Lone`], [`Nested`] and [`labels`] write what a model gave. Used by `/score` and by the
//! `score` commands; [`Format`] is how messages over MQTT carry the same.

mod classify;
mod format;
mod infer;
mod read;
mod write;

pub use format::Format;
pub use infer::{ChosenOutput, Inference, WantedOutput, WantedOutputs, infer};
pub(crate) use infer::{NO_SEQUENCES, patience};
pub(crate) use read::MAX_ID_BYTES;
pub use read::{Body, BodyError, read};
pub use write::{Lone, Nested, Outputs, Prediction, labels};
