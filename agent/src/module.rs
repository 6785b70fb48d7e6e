//! The agent as a module of Azure IoT Edge: who it is there, and how its twin, topics and tokens read.
//!
//! | file | what it knows |
//! |---|---|
//! | [`identity`], [`workload`], [`token`] | who this module is, and how it proves that at each connect |
//! | [`topic`] | the topics of edgeHub and the properties in them, both ways |
//! | [`reception`], [`outbox`] | what edgeHub says, to whom it is for; what must arrive there, until it has |
//! | [`intake`], [`methods`], [`telemetry`] | inputs and their answers, direct methods, rows as messages |
//! | [`keeper`] | the task that follows the twin and reports |
//! | [`twin`], [`merge`] | when the twin is read and written, and what a patch does to it |
//! | [`desired`] | the desired properties as types, and all that is wrong with them |
//! | [`reported`] | the reported properties |
//!
//! Identity, tokens, topics and the twin are pure but for the workload API and the files that are named there: bytes and
//! times go in, values come out. The tasks meet edgeHub only through [`cloud_sync::session`].

pub mod desired;
pub mod identity;
pub mod intake;
pub mod keeper;
pub mod merge;
pub mod methods;
pub mod outbox;
pub mod reception;
pub mod reported;
pub mod telemetry;
pub mod token;
pub mod topic;
pub mod twin;
pub mod workload;

/// Largest whole number that IoT Edge takes in a twin: 2^52 - 1.
pub const MAX_INTEGER: u64 = (1 << 52) - 1;
