//! The messages between a device and the cloud: one struct each, CBOR bodies, fields by name.
//!
//! Rules that keep old and new ends talking: unknown fields are ignored, a new field has a default, a field
//! is never renamed or given another meaning. The golden bytes in `tests.rs` hold every message to that.
//! Bounds are checked by [`decode`] and by [`Message::check`], so whoever holds a message may trust its sizes.
//!
//! Long, because it is what both ends, and whoever writes a third, hold in their hands; what a device says of its
//! board is in `hardware.rs`.

mod hardware;

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use serde_json::Value;

pub use hardware::{EngineInfo, Hardware, Pressure};

use crate::digest::Digest;
use crate::limits;
use crate::name::ModelName;
use crate::topic::Kind;

/// Longest id, name or version within a message, in bytes: several times a UUID.
const MAX_WORD_BYTES: usize = 128;

/// Most reasons for which a ledger counts dropped rows: ten times what there are.
const MAX_REASONS: usize = 64;

/// A body that can't be encoded, or must not be believed.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// The body is no CBOR of this message.
    #[error("{kind} message can't be decoded: {source}")]
    Decode {
        /// Which message.
        kind: Kind,
        /// What the decoder says.
        source: serde_cbor::Error,
    },
    /// The message can't be written.
    #[error("{kind} message can't be encoded: {source}")]
    Encode {
        /// Which message.
        kind: Kind,
        /// What the encoder says.
        source: serde_cbor::Error,
    },
    /// A bound of [`limits`] is broken.
    #[error("{kind} message refused: {what} is {given}, the limit is {limit}")]
    Limit {
        /// Which message.
        kind: Kind,
        /// What is too large.
        what: &'static str,
        /// How large it is.
        given: usize,
        /// How large it may be.
        limit: usize,
    },
    /// A value that can't be meant.
    #[error("{kind} message refused: {what}")]
    Value {
        /// Which message.
        kind: Kind,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A message of the contract.
pub trait Message: Serialize + DeserializeOwned {
    /// Where it travels.
    const KIND: Kind;

    /// Counts that the encoding itself does not bound: what, given, limit.
    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        Vec::new()
    }

    /// What can't be meant, though its type allows it.
    fn flaw(&self) -> Option<&'static str> {
        None
    }

    /// Checks the bounds and values of a message that was decoded or is about to be sent.
    fn check(&self) -> Result<(), ContractError> {
        let kind = Self::KIND;
        for (what, given, limit) in self.sizes() {
            bounded(what, given, limit, kind)?;
        }
        self.flaw().map_or(Ok(()), |what| Err(ContractError::Value { kind, what }))
    }
}

/// Encodes a message, refusing one that the other end would refuse.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, ContractError> {
    message.check()?;
    let bytes =
        serde_cbor::to_vec(message).map_err(|source| ContractError::Encode { kind: M::KIND, source })?;
    bounded("body", bytes.len(), limits::MAX_MESSAGE_BYTES, M::KIND)?;
    Ok(bytes)
}

/// Decodes a message from the wire.
pub fn decode<M: Message>(body: &[u8]) -> Result<M, ContractError> {
    bounded("body", body.len(), limits::MAX_MESSAGE_BYTES, M::KIND)?;
    let message: M =
        serde_cbor::from_slice(body).map_err(|source| ContractError::Decode { kind: M::KIND, source })?;
    message.check()?;
    Ok(message)
}

/// Whether a device is there. Retained; its `online: false` form is the device's last will.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// True from the connect until the disconnect or the loss of the connection.
    pub online: bool,
    /// Made anew at every start of the agent.
    pub boot_id: String,
    /// The agent's version, as in its `--version`.
    pub agent_version: String,
}

/// What the cloud wants a device to run. Retained, so that a device gets it though no registry runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Grows with every change; a device ignores an older one.
    pub revision: u64,
    /// The models to serve, in any order, each name once. What is not here is stopped.
    pub models: Vec<DesiredModel>,
    /// What to collect where a model's own settings do not say; without it the device's own word holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collect: Option<Collect>,
}

/// One model that a device shall serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DesiredModel {
    /// The model.
    pub name: ModelName,
    /// The version to serve.
    pub version: u64,
    /// The digest of the bundle's manifest.
    pub digest: Digest,
    /// Bytes of all files of the bundle.
    pub size: u64,
    /// Grows with every deploy of this model to this device, so that deploying a version that was rejected or
    /// rolled back means: try again.
    #[serde(default)]
    pub deployment: u64,
    /// Signature over the digest; empty while bundles are not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<ByteBuf>,
    /// How to run it; the device's own configuration fills what is left open.
    #[serde(default)]
    pub settings: ModelSettings,
}

/// How one model is run on a device. Every field is optional: what is open is the device's to decide.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSettings {
    /// `auto`, `tract`, `cpu`, `cuda`, …: see the engine's providers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Threads within one score; 0 for as many as prove quickest there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Workers, each with the model loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// Requests that may wait before new ones are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Most rows of several requests that are scored as one; 0 and 1 for each request alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch: Option<u32>,
    /// Longest time that a request waits for others to be scored with, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_delay_us: Option<u64>,
    /// Rows at which no others are waited for, at most [`limits::MAX_PREFERRED`] numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_batch: Option<Vec<u32>>,
    /// How far ONNX Runtime rewrites the graph: `none`, `basic`, `extended` or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimization: Option<String>,
    /// Whether ONNX Runtime keeps the memory of one score for the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arena: Option<bool>,
    /// What to collect of this model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collect: Option<Collect>,
}

/// What is captured of the scores of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Collect {
    /// Whether rows are captured at all.
    pub enabled: bool,
    /// The share of rows that is captured, 0 to 1.
    pub rate: f64,
}

impl Default for Collect {
    fn default() -> Self {
        Self { enabled: true, rate: 1.0 }
    }
}

/// What a device says it is. Retained; sent whole after each connect and at each change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// The revision of the desired state that this answers; 0 before the first.
    pub revision: u64,
    /// One entry for each model that is desired, served or on its way out.
    pub models: Vec<ReportedModel>,
    /// The agent itself.
    pub agent: AgentInfo,
    /// The machine.
    pub hardware: Hardware,
    /// Where every captured row is.
    #[serde(default)]
    pub ledger: Ledger,
}

/// One model on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportedModel {
    /// The model.
    pub name: ModelName,
    /// The version that `phase` speaks of: the one that is desired.
    pub version: u64,
    /// How far that version is.
    pub phase: Phase,
    /// Why it is in that phase, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The version that answers requests now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// The version kept to roll back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u64>,
    /// The engine that runs the active version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// The provider that really runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Memory that loading the active version took, in bytes, as measured here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What it took to bring the active version here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
}

/// What it took to bring a version to a device and into service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transfer {
    /// Bytes of pieces that came over the link, the manifest's included.
    pub fetched_bytes: u64,
    /// Bytes of the bundle that were on the device before.
    pub shared_bytes: u64,
    /// From the first request for a piece to the last piece on the disk, in milliseconds.
    pub fetch_ms: u64,
    /// For loading and proving, in milliseconds.
    pub proof_ms: u64,
    /// For the swap itself, in microseconds: how long a new request could have waited for it.
    pub swap_us: u64,
}

/// How far a device is with a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its chunks are being pulled.
    Fetching,
    /// All bytes are here and are being checked.
    Verifying,
    /// It is loaded and its golden samples are scored.
    Proving,
    /// It serves.
    Active,
    /// It will never serve here; `why` says what was wrong.
    Rejected,
    /// It served, and the version before it does again.
    RolledBack,
}

/// The agent, as it reports itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// As in its `--version`.
    pub version: String,
    /// Made anew at every start.
    pub boot_id: String,
    /// `running`, or `stopping` as its last word.
    pub state: String,
}

/// The loss ledger: where every row that was ever captured is now.
/// `captured = uploaded + held + dropped + lost`, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// Rows that were captured since the spool was made.
    pub captured: u64,
    /// Rows that the cloud has confirmed as durable.
    pub uploaded: u64,
    /// Rows on the device's disk.
    pub held: u64,
    /// Rows that were given up, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Rows in a part of the spool that could not be read again.
    pub lost: u64,
}

impl Ledger {
    /// All rows that were given up.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().fold(0, |sum, rows| sum.saturating_add(*rows))
    }

    /// Whether every captured row is in exactly one place.
    pub fn adds_up(&self) -> bool {
        let parts = [self.uploaded, self.held, self.dropped_total(), self.lost];
        parts.iter().try_fold(0u64, |sum, rows| sum.checked_add(*rows)) == Some(self.captured)
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let totals = [self.captured, self.uploaded, self.held, self.lost];
        totals.into_iter().chain(self.dropped.values().copied())
    }
}

/// A device asks for pieces of objects. An object is a chunk or a manifest, named by its digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fetch {
    /// What is wanted; an answer each.
    pub wants: Vec<Want>,
}

/// One wanted piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Want {
    /// The object.
    pub digest: Digest,
    /// Where the piece begins; a chunk is always asked for from 0, a manifest may take several pieces.
    #[serde(default)]
    pub offset: u64,
}

/// One piece of an object, or the word that there is no such object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The object.
    pub digest: Digest,
    /// Where the piece begins.
    pub offset: u64,
    /// Bytes of the whole object; 0 says that the registry does not have it.
    pub total: u64,
    /// The piece.
    pub bytes: ByteBuf,
}

/// Captured rows on their way up: the rows `first_sequence`, `first_sequence + 1`, … of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// The spool that the rows come from; a new spool is a new stream.
    pub stream: String,
    /// The sequence number of the first row, from 1.
    pub first_sequence: u64,
    /// The last row that was sent before these and has no receipt yet; 0 if there is none. Rows between it and
    /// `first_sequence` were given up by the device and stand in its ledger. The cloud must not store this
    /// batch before it has that row: a batch that was lost on the way would be taken for rows given up.
    #[serde(default)]
    pub after: u64,
    /// How `rows` is packed.
    pub codec: Codec,
    /// See [`crate::rows`].
    pub rows: ByteBuf,
    /// The ledger when the batch was made.
    #[serde(default)]
    pub ledger: Ledger,
    /// The device's clocks when the batch was made; earlier agents say nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
}

/// Both clocks of a run of an agent, read together. Who has a better clock can tell from them when rows of that run were
/// captured, whatever the device took the time for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The run.
    pub boot_id: String,
    /// Nanoseconds since it began.
    pub monotonic_ns: u64,
    /// Milliseconds since 1970, by the device's clock.
    pub wall_ms: u64,
}

/// How the rows of a batch are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// A CBOR array of byte strings, one encoded row each.
    Cbor,
    /// The same in a raw deflate stream.
    CborDeflate,
}

/// The cloud's word that rows are durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The stream.
    pub stream: String,
    /// Every row up to this sequence number that was sent is durable.
    pub durable_through: u64,
    /// The registry has just come, and may have missed what was sent before: what has no receipt is to be sent again,
    /// also of another stream than this, of which the registry may know nothing yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// Something that a device shall do once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Chosen by the sender; a device runs an id once and answers it again when asked again.
    pub id: String,
    /// What to do.
    pub name: String,
    /// With what.
    #[serde(default)]
    pub arguments: serde_json::Map<String, Value>,
    /// Milliseconds since 1970 after which nobody waits for the answer any more.
    pub deadline: u64,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The command's id.
    pub id: String,
    /// As in HTTP: 200, 400, 404, 409, 500.
    pub status: u16,
    /// The result, or `{"error": "…"}`.
    pub result: Value,
}

impl Message for Presence {
    const KIND: Kind = Kind::Presence;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        vec![
            ("boot id", self.boot_id.len(), MAX_WORD_BYTES),
            ("agent version", self.agent_version.len(), MAX_WORD_BYTES),
        ]
    }
}

impl Message for Desired {
    const KIND: Kind = Kind::Desired;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        let preferred = |model: &DesiredModel| model.settings.preferred_batch.as_ref().map_or(0, Vec::len);
        let preferred = self.models.iter().map(preferred).max().unwrap_or(0);
        vec![
            ("models", self.models.len(), limits::MAX_MODELS),
            ("preferred batches", preferred, limits::MAX_PREFERRED),
        ]
    }

    fn flaw(&self) -> Option<&'static str> {
        let numbers = self.models.iter().flat_map(|model| [model.version, model.size, model.deployment]);
        let mut names = BTreeSet::new();
        if !self.models.iter().all(|model| names.insert(&model.name)) {
            return Some("a model stands in it twice");
        }
        let mut collects = self.models.iter().filter_map(|model| model.settings.collect).chain(self.collect);
        if !collects.all(|collect| (0.0..=1.0).contains(&collect.rate)) {
            return Some("a rate is not 0 to 1");
        }
        uncountable(numbers.chain([self.revision]))
    }
}

impl Message for Reported {
    const KIND: Kind = Kind::Reported;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        let AgentInfo { version, boot_id, state } = &self.agent;
        vec![
            // Twice: a model that leaves is reported beside those that stay.
            ("models", self.models.len(), 2 * limits::MAX_MODELS),
            ("agent version", version.len(), MAX_WORD_BYTES),
            ("boot id", boot_id.len(), MAX_WORD_BYTES),
            ("state", state.len(), MAX_WORD_BYTES),
            ("reasons", self.ledger.dropped.len(), MAX_REASONS),
        ]
    }

    fn flaw(&self) -> Option<&'static str> {
        let versions = |model: &ReportedModel| [Some(model.version), model.active, model.previous];
        let versions = self.models.iter().flat_map(versions).flatten();
        uncountable(versions.chain([self.revision]).chain(self.ledger.numbers()))
    }
}

impl Message for Fetch {
    const KIND: Kind = Kind::Fetch;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        vec![("wants", self.wants.len(), limits::MAX_WANTS)]
    }
}

impl Message for Chunk {
    const KIND: Kind = Kind::Chunk;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        vec![("bytes", self.bytes.len(), limits::MAX_PIECE_BYTES)]
    }
}

impl Message for Telemetry {
    const KIND: Kind = Kind::Telemetry;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        let boot_id = self.clock.as_ref().map_or(0, |clock| clock.boot_id.len());
        vec![
            ("stream", self.stream.len(), 64),
            ("boot id", boot_id, MAX_WORD_BYTES),
            ("reasons", self.ledger.dropped.len(), MAX_REASONS),
        ]
    }

    fn flaw(&self) -> Option<&'static str> {
        uncountable([self.first_sequence, self.after].into_iter().chain(self.ledger.numbers()))
    }
}

impl Message for Receipt {
    const KIND: Kind = Kind::Receipt;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        vec![("stream", self.stream.len(), 64)]
    }
}

impl Message for Command {
    const KIND: Kind = Kind::Command;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        vec![("id", self.id.len(), MAX_WORD_BYTES), ("name", self.name.len(), MAX_WORD_BYTES)]
    }
}

impl Message for Reply {
    const KIND: Kind = Kind::Reply;

    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        vec![("id", self.id.len(), MAX_WORD_BYTES)]
    }
}

fn bounded(what: &'static str, given: usize, limit: usize, kind: Kind) -> Result<(), ContractError> {
    if given > limit { Err(ContractError::Limit { kind, what, given, limit }) } else { Ok(()) }
}

fn uncountable(mut numbers: impl Iterator<Item = u64>) -> Option<&'static str> {
    numbers.any(|number| number > limits::MAX_NUMBER).then_some("a number is beyond what can be counted")
}

#[cfg(test)]
mod tests;
