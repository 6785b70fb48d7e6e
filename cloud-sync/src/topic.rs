//! Where each message travels: `{root}/{device}/{kind}`, as types, so that no topic is written by hand.

use std::fmt;
use std::str::FromStr;

use crate::name::{DeviceId, is_topic_part};

/// The root that is used where none is configured. The last part is the site.
pub const DEFAULT_ROOT: &str = "edgewise/v1/default";

/// The messages, by the last part of their topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Device to cloud, retained, also the last will.
    Presence,
    /// Cloud to device, retained.
    Desired,
    /// Device to cloud, retained.
    Reported,
    /// Device to cloud, QoS 0.
    Fetch,
    /// Cloud to device, QoS 0, so that a broker never queues bytes for a device that is away.
    Chunk,
    /// Device to cloud.
    Telemetry,
    /// Cloud to device.
    Receipt,
    /// Cloud to device.
    Command,
    /// Device to cloud.
    Reply,
}

/// How a message is handed to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Lost when the link is: whoever needs it asks again.
    AtMostOnce,
    /// Kept by the client until the broker has it.
    AtLeastOnce,
}

/// The root under which a site's devices have their topics, for example `edgewise/v1/plant-7`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Root(String);

/// Text that can't be the root of topics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} can't be the root of topics: use parts of A-Z, a-z, 0-9, '.', '_' and '-' joined by '/', none of them '.' or '..'"
)]
pub struct RootError(String);

/// What registries share among themselves.
const SHARED: [Kind; 3] = [Kind::Fetch, Kind::Telemetry, Kind::Reply];

impl Kind {
    /// All kinds, those of the device first.
    pub const ALL: [Self; 9] = [
        Self::Presence,
        Self::Reported,
        Self::Fetch,
        Self::Telemetry,
        Self::Reply,
        Self::Desired,
        Self::Chunk,
        Self::Receipt,
        Self::Command,
    ];

    /// The last part of the topic.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Presence => "presence",
            Self::Desired => "desired",
            Self::Reported => "reported",
            Self::Fetch => "fetch",
            Self::Chunk => "chunk",
            Self::Telemetry => "telemetry",
            Self::Receipt => "receipt",
            Self::Command => "command",
            Self::Reply => "reply",
        }
    }

    /// Whether the broker keeps the last one for those who subscribe later.
    pub fn retained(self) -> bool {
        matches!(self, Self::Presence | Self::Desired | Self::Reported)
    }

    /// How it is handed to the broker.
    pub fn qos(self) -> Qos {
        match self {
            Self::Fetch | Self::Chunk => Qos::AtMostOnce,
            _ => Qos::AtLeastOnce,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Root {
    /// The site: the last part of the root, under which the cloud files what devices send.
    pub fn site(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The topic of a device's message.
    pub fn topic(&self, device: &DeviceId, kind: Kind) -> String {
        format!("{}/{device}/{kind}", self.0)
    }

    /// The device and the kind that a topic names; `None` for a topic that is not ours.
    pub fn parse(&self, topic: &str) -> Option<(DeviceId, Kind)> {
        let (device, kind) = topic.strip_prefix(&self.0)?.strip_prefix('/')?.split_once('/')?;
        let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind)?;
        Some((device.parse().ok()?, kind))
    }

    /// What one device listens to.
    pub fn of_device(&self, device: &DeviceId) -> Vec<(String, Qos)> {
        [Kind::Desired, Kind::Chunk, Kind::Receipt, Kind::Command]
            .map(|kind| (self.topic(device, kind), kind.qos()))
            .to_vec()
    }

    /// What a registry listens to. Work is shared between the replicas of a `group`; what is retained goes to each of
    /// them, since a broker gives no retained messages to a shared subscription.
    ///
    /// The group's name is to be known to its replicas alone: brokers let anybody join a group, and hand to each of its
    /// members messages that no other gets, also to one that may not read them.
    pub fn of_registry(&self, group: &str) -> Vec<(String, Qos)> {
        let all = |kind: Kind| (format!("{}/+/{kind}", self.0), kind.qos());
        // A group for each kind: rumqttd 0.20 keeps one place in the log for a group, whatever its filters are.
        let shared = |kind: Kind| (format!("$share/{group}-{kind}/{}/+/{kind}", self.0), kind.qos());
        [Kind::Presence, Kind::Reported].map(all).into_iter().chain(SHARED.map(shared)).collect()
    }

    /// What a registry listens to besides where the broker has no shared subscriptions.
    pub fn unshared(&self) -> Vec<(String, Qos)> {
        SHARED.map(|kind| (format!("{}/+/{kind}", self.0), kind.qos())).into()
    }
}

impl Default for Root {
    fn default() -> Self {
        Self(DEFAULT_ROOT.to_owned())
    }
}

impl FromStr for Root {
    type Err = RootError;

    fn from_str(text: &str) -> Result<Self, RootError> {
        if text.len() <= 256 && text.split('/').all(is_topic_part) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RootError(crate::limits::bounded_text(text)))
        }
    }
}

impl TryFrom<String> for Root {
    type Error = RootError;

    fn try_from(text: String) -> Result<Self, RootError> {
        text.parse()
    }
}

impl From<Root> for String {
    fn from(root: Root) -> String {
        root.0
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_reads_as_it_was_written() {
        let root: Root = "edgewise/v1/plant-7".parse().unwrap();
        let device: DeviceId = "gateway-1".parse().unwrap();
        for kind in Kind::ALL {
            let topic = root.topic(&device, kind);
            assert_eq!(topic, format!("edgewise/v1/plant-7/gateway-1/{kind}"));
            assert_eq!(root.parse(&topic), Some((device.clone(), kind)));
        }
        assert_eq!(root.site(), "plant-7");
    }

    #[test]
    fn foreign_topics_are_not_ours() {
        let root = Root::default();
        for topic in [
            "",
            "edgewise/v1/default",
            "edgewise/v1/default/d",
            "edgewise/v1/default/d/desired/x",
            "edgewise/v1/default//desired",
            "edgewise/v1/default/+/desired",
            "edgewise/v1/defaultd/desired",
            "edgewise/v1/other/d/desired",
        ] {
            assert_eq!(root.parse(topic), None, "{topic}");
        }
    }

    #[test]
    fn a_root_with_wildcards_or_no_names_is_refused() {
        for bad in ["", "/", "a//b", "a/..", "./a", "a/+", "#", "$share/x", "a b"] {
            assert!(bad.parse::<Root>().is_err(), "{bad}");
        }
    }
}
