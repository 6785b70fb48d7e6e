//! The agent as a module of Azure IoT Edge: who it is there, and how its twin, topics and tokens read.
//!
//! | file | what it knows |
//! |---|---|
//! | [`identity`], [`workload`], [`token`] | who this module is, and how it proves that at each connect |
//! | [`topic`] | the topics of edgeHub and the properties in them, both ways |
//!
//! But for the workload API these are pure: bytes and times go in, values come out.

pub mod identity;
pub mod intake;
pub mod methods;
pub mod outbox;
pub mod telemetry;
pub mod token;
pub mod topic;
pub mod workload;
