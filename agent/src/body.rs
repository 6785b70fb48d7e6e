//! JSON bodies: the forms in which people send inputs, and the form in which they get outputs back.
//!
//! [`read`] takes what the Open Inference Protocol, Azure ML and a plain sensor send; [`Prediction`], [`Outputs`],
//! [`Lone`], [`Nested`] and [`labels`] write what a model gave. Used by `/score`, by local MQTT routes and by the `score` commands.

mod read;
mod write;

pub use read::{Body, BodyError, read};
pub use write::{Lone, Nested, Outputs, Prediction, labels};
