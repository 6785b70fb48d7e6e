//! The agent as a module of Azure IoT Edge: who it is there, and how its twin, topics and tokens read.
//!
//! | file | what it knows |
//! |---|---|
//! | [`identity`], [`workload`], [`token`] | who this module is, and how it proves that at each connect |
//! | [`topic`] | the topics of edgeHub and the properties in them, both ways |
//! | [`twin`], [`merge`] | when the twin is read and written, and what a patch does to it |
//! | [`desired`] | the desired properties as types, and all that is wrong with them |
//! | [`reported`] | the reported properties |
//!
//! But for the workload API and the files that are named there, these are pure: bytes and times go in, values come
//! out.

pub mod desired;
pub mod identity;
pub mod merge;
pub mod reported;
pub mod token;
pub mod topic;
pub mod twin;
pub mod workload;

/// Largest whole number that IoT Edge takes in a twin: 2^52 - 1.
pub const MAX_INTEGER: u64 = (1 << 52) - 1;
