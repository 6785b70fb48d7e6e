//! The Edgewise agent: all that happens on the device.

pub mod spool;
