//! All that speaks to tract. Without feature `tract` nothing of it is compiled, and there is an explanation in its place.

#[cfg(not(feature = "tract"))]
mod absent;
#[cfg(feature = "tract")]
mod distrust;
#[cfg(feature = "tract")]
mod engine;

#[cfg(not(feature = "tract"))]
pub(crate) use absent::{load, version};
#[cfg(feature = "tract")]
pub(crate) use engine::{load, version};
