//! The bodies of the HTTP API, shared by the server and the command line.
//!
//! Model records keep the names of Azure ML's registry (camel case); everything that comes from a device keeps the
//! names of its messages (snake case).

use std::collections::BTreeMap;

use cloud_sync::contract::{Ledger, ModelSettings, Phase, Transfer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Keys and values that a model version carries.
pub type Labels = BTreeMap<String, String>;

/// A registered model version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRecord {
    /// `name:version`
    pub id: String,
    /// The model.
    pub name: String,
    /// The version, from 1; never reused.
    pub version: u64,
    /// When it was registered, RFC 3339.
    pub created_time: String,
    /// What it does.
    pub description: Option<String>,
    /// What it was trained with.
    pub framework: Option<String>,
    /// The version of that.
    pub framework_version: Option<String>,
    /// Its licence.
    pub license: Option<String>,
    /// Replaceable keys and values.
    #[serde(default)]
    pub tags: Labels,
    /// Keys and values that can be added and never changed.
    #[serde(default)]
    pub properties: Labels,
    /// What it needs.
    pub resource_configuration: ResourceConfiguration,
    /// The digest of the bundle's manifest.
    pub digest: String,
    /// Bytes of all files.
    pub size: u64,
    /// What it takes and gives.
    pub signature: SignatureRecord,
    /// On what it was proved before it got its number.
    pub engines: Vec<EngineRecord>,
}

/// What a model needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceConfiguration {
    /// Cores.
    pub cpu: Option<f64>,
    /// Memory in GiB.
    #[serde(rename = "memoryInGB")]
    pub memory_in_gb: Option<f64>,
    /// GPUs.
    pub gpu: u32,
}

/// What a model takes and gives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SignatureRecord {
    /// Its inputs.
    pub inputs: Vec<TensorRecord>,
    /// Its outputs.
    pub outputs: Vec<TensorRecord>,
}

/// One input or output, as in the Open Inference Protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// `FP32`, `INT64`, `BYTES`, …
    pub datatype: String,
    /// Its shape; -1 for a free dimension.
    pub shape: Vec<i64>,
}

/// What one engine made of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineRecord {
    /// The engine and its version.
    pub engine: String,
    /// Whether it loaded the model and gave the golden samples' outputs.
    pub verified: bool,
    /// Golden samples that were compared.
    pub golden_samples: u64,
    /// Why it was not verified.
    pub why: Option<String>,
}

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// The new version.
    #[serde(flatten)]
    pub model: ModelRecord,
    /// Chunks of the bundle.
    pub chunks: u64,
    /// Chunks that the registry did not have yet.
    pub new_chunks: u64,
    /// Bytes of those.
    pub new_bytes: u64,
}

/// A page of model versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelPage {
    /// Ordered by name and version.
    pub models: Vec<ModelRecord>,
    /// Where the next page begins: the value for `after`. Absent on the last page.
    pub next: Option<String>,
}

/// A change of a version's labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LabelChange {
    /// Tags to set; `null` removes one.
    #[serde(default)]
    pub tags: BTreeMap<String, Option<String>>,
    /// Properties to add. One that exists with another value is refused.
    #[serde(default)]
    pub properties: Labels,
}

/// A version that shall run on devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeployRequest {
    /// The model.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// The devices; one that was never seen gets it when it comes.
    pub devices: Vec<String>,
    /// How to run it: `provider`, `threads`, `instances`, `queue`, `max_batch`, `max_delay_us`,
    /// `preferred_batch`, `optimization`, `arena`, `collect`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub settings: ModelSettings,
}

/// The desired state that a device was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DesiredRevision {
    /// The device.
    pub device: String,
    /// The revision of its new desired state.
    pub revision: u64,
}

/// The answer to a deployment or its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deployed {
    /// One entry for each device.
    pub devices: Vec<DesiredRevision>,
}

/// A device, as far as the registry knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceRecord {
    /// The device.
    pub id: String,
    /// Whether it is connected.
    pub online: bool,
    /// When it last said something of itself, RFC 3339.
    pub last_seen: Option<String>,
    /// The agent's version.
    pub agent_version: Option<String>,
    /// `running`, `stopping`, or nothing before its first report.
    pub state: Option<String>,
    /// The revision of the state that it was told to take.
    pub desired_revision: u64,
    /// The revision of the state that it last answered.
    pub reported_revision: Option<u64>,
    /// What it shall run and what it runs.
    pub models: Vec<DeviceModel>,
    /// Where its captured rows are.
    #[schema(value_type = Option<Object>)]
    pub ledger: Option<Ledger>,
    /// Rows of it that were not stored, though they have a receipt: they can't be decoded or contradict themselves.
    pub rows_refused: u64,
    /// The machine.
    #[schema(value_type = Option<Object>)]
    pub hardware: Option<cloud_sync::contract::Hardware>,
}

/// One model on a device: desired beside reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceModel {
    /// The model.
    pub name: String,
    /// The version that it shall run; none while it is on its way out.
    pub desired: Option<u64>,
    /// How it shall run it.
    #[schema(value_type = Object)]
    pub settings: ModelSettings,
    /// The version that `phase` speaks of.
    pub version: Option<u64>,
    /// `fetching`, `verifying`, `proving`, `active`, `rejected`, `rolled-back`.
    #[schema(value_type = Option<String>)]
    pub phase: Option<Phase>,
    /// Why it is in that phase.
    pub why: Option<String>,
    /// The version that answers requests.
    pub active: Option<u64>,
    /// The version kept to roll back to.
    pub previous: Option<u64>,
    /// The engine that runs the active version.
    pub engine: Option<String>,
    /// The provider that runs it.
    pub provider: Option<String>,
    /// Memory that loading it took, in bytes.
    pub memory_bytes: Option<u64>,
    /// What it took to bring the active version there.
    #[schema(value_type = Option<Object>)]
    pub transfer: Option<Transfer>,
}

/// A page of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DevicePage {
    /// Ordered by id.
    pub devices: Vec<DeviceRecord>,
    /// Where the next page begins: the value for `after`. Absent on the last page.
    pub next: Option<String>,
}

/// A certificate that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateRequest {
    /// The request for it: PKCS #10, as PEM. Only its public key counts.
    pub request: String,
    /// Days that it shall be good for; 3650 where none are given.
    #[serde(default)]
    pub days: Option<u32>,
}

/// A broker's certificate that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BrokerCertificateRequest {
    /// The request for it: PKCS #10, as PEM. Only its public key counts.
    pub request: String,
    /// The names and addresses at which the broker is reached.
    pub hosts: Vec<String>,
    /// Days that it shall be good for; 3650 where none are given.
    #[serde(default)]
    pub days: Option<u32>,
}

/// A certificate, and what its holder has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateRecord {
    /// The certificate, as PEM.
    pub certificate: String,
    /// Those whom the holder may trust, as PEM.
    pub authorities: String,
    /// When it ends, RFC 3339.
    pub until: String,
    /// The broker, as the registry reaches it.
    pub broker: String,
    /// Where the devices have their topics.
    pub root: String,
}

/// Something that a device shall do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommandRequest {
    /// What: `ping`, `state`, …
    pub name: String,
    /// With what.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub arguments: Map<String, Value>,
    /// Seconds to wait for the answer; 30 where none is given, at most 600.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
}

/// What a device answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommandReply {
    /// The command's id.
    pub id: String,
    /// As in HTTP: 200, 400, 404, 409, 500.
    pub status: u16,
    /// The result, or `{"error": "…"}`.
    pub result: Value,
}

/// What is wrong with a request, as RFC 9457 says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind of problem: `about:blank`, since `code` says it.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    pub detail: String,
    /// The kind of problem in one word, for programs.
    pub code: String,
    /// Who holds a version that can't be deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
}

/// A device that needs a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// The device.
    pub device: String,
    /// `desired`, `active` or `previous`.
    pub why: String,
}
