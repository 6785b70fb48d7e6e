//! The wire: everything that a device and the cloud must agree on, and nothing that only one of them needs.
//!
//! - [`name`], [`digest`]: the words that both ends use for models, devices and bytes.
//! - [`contract`]: the messages, one struct each, CBOR on the wire; [`topic`]: where each of them travels.
//! - [`rows`]: captured rows and the batches in which they go up.
//! - [`chunk`], [`bundle`]: what a registered model is made of, cut by content, named by hash.
//! - [`session`]: the MQTT connection that survives; the only file that names the MQTT client.
//! - [`limits`]: every bound on what comes from the wire, with its reason.
//!
//! This package knows nothing of tensors, of the disk layout of either end, or of who decides what.

mod bounded;
pub mod bundle;
pub mod chunk;
pub mod contract;
pub mod digest;
pub mod limits;
pub mod name;
pub mod rows;
pub mod session;
pub mod topic;
