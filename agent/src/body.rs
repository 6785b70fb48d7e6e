//! JSON bodies: the forms in which people send inputs, and the form in which they get outputs back.
//!
//! [`infer`] takes what the Open Inference Protocol sends; [`read`] takes that, what Azure ML and what a plain sensor
//! sends; [`Prediction`], [`Outputs`],
//! [`Lone`], [`Nested`] and [`labels`] write what a model gave. Used by `/score`, by local MQTT routes and by the `score` commands.

mod classify;
mod infer;
mod read;
mod write;

pub use infer::{ChosenOutput, Inference, WantedOutput, WantedOutputs, infer};
pub(crate) use read::MAX_ID_BYTES;
pub use read::{Body, BodyError, read};
pub use write::{Lone, Nested, Outputs, Prediction, labels};
