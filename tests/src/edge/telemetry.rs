//! What a module sends to its outputs, as edgeHub reads it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::bag;
use super::packet::Publish;
use crate::process::Failure;

/// The system properties that a module may set.
const SYSTEM: [&str; 12] = [
    "$.on", "$.mid", "$.cid", "$.uid", "$.ct", "$.ce", "$.exp", "$.ctime", "$.ifid", "$.sub", "$.to",
    "$.schema",
];

/// A message that edgeHub has stored.
#[derive(Debug, Clone)]
pub struct Output {
    /// The output, which is the system property `$.on`; empty for plain telemetry.
    pub name: String,
    /// All properties, decoded; system properties under their names on the wire, such as `$.cid`.
    pub properties: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
    /// The topic as it came.
    pub topic: String,
    /// Whether it came with the DUP flag.
    pub duplicate: bool,
}

impl Output {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// A property's value; empty if it is not there.
    pub fn property(&self, key: &str) -> &str {
        self.properties.get(key).map_or("", String::as_str)
    }
}

/// Reads a message; one whose bag makes no sense is dropped. The second value is what else is wrong with it.
pub(super) fn read(bag: &str, publish: Publish) -> Result<(Output, Vec<Failure>), Failure> {
    let mut wrong = bag::findings(bag);
    let properties = bag::decode(bag)?;
    let is_unknown = |key: &&String| key.starts_with("$.") && !SYSTEM.contains(&key.as_str());
    wrong.extend(properties.keys().filter(is_unknown).map(|key| format!("the system property {key:?}")));
    let Publish { topic, body, duplicate, .. } = publish;
    let name = properties.get("$.on").cloned().unwrap_or_default();
    let output = Output { name, properties, body, topic, duplicate };
    if output.property("$.ct") == "application/json" && output.json().is_err() {
        wrong.push("a body that is no JSON, though its content type says so".to_owned());
    }
    Ok((output, wrong))
}
