//! Names of models, versions and devices: validated once, at the door, and then carried by type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a model name.
    #[error("{0:?} is not a model name: use 1 to 64 of a-z, 0-9 and single or repeated inner dashes")]
    Model(String),
    /// Not a device id.
    #[error(
        "{0:?} is not a device id: use 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', but not '.' or '..' alone"
    )]
    Device(String),
    /// Not `NAME:VERSION`.
    #[error("{0:?} is not a model version: use NAME:VERSION, for example load:3")]
    Version(String),
}

/// The name of a model: `[a-z0-9](-*[a-z0-9])*`, at most 64 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// The name of a device, as it stands in topics and paths: `[A-Za-z0-9._-]`, at most 128 characters, and neither `.`
/// nor `..`, which a path would not take for a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);

/// One version of a model, written `NAME:VERSION`. Versions count from 1 and are never reused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelVersion {
    /// The model.
    pub name: ModelName,
    /// Its version, from 1.
    pub version: u64,
}

impl ModelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DeviceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = bytes.first().zip(bytes.last()).is_some_and(|(&a, &z)| alphanumeric(a) && alphanumeric(z));
        if ends && bytes.len() <= 64 && bytes.iter().all(|&b| alphanumeric(b) || b == b'-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Model(crate::limits::bounded_text(text)))
        }
    }
}

impl FromStr for DeviceId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= 128 && is_topic_part(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Device(crate::limits::bounded_text(text)))
        }
    }
}

impl FromStr for ModelVersion {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Version(crate::limits::bounded_text(text));
        let (name, version) = text.split_once(':').ok_or_else(wrong)?;
        // Rust reads "+3" and "03" too; a version has one spelling.
        let version = if version.starts_with(['+', '0']) { None } else { version.parse().ok() };
        let version = version.ok_or_else(wrong)?;
        Ok(Self { name: name.parse()?, version })
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.version)
    }
}

/// Whether text can stand between two slashes of a topic, and of a path.
pub(crate) fn is_topic_part(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

macro_rules! text_name {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
    };
}

text_name!(ModelName);
text_name!(DeviceId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_follow_the_rule() {
        for good in ["a", "load", "power-demand", "a--b", "0x1", &"a".repeat(64)] {
            assert_eq!(good.parse::<ModelName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "a.b", "ä", "a b", &"a".repeat(65)] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn device_ids_cannot_leave_their_topic() {
        for bad in ["", ".", "..", "a/b", "+", "#", "a b", "$share", "ä", &"a".repeat(129)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
        assert!("Gateway-7.lab_2".parse::<DeviceId>().is_ok());
    }

    #[test]
    fn versions_read_as_they_print() {
        let version: ModelVersion = "load:12".parse().unwrap();
        assert_eq!(version.to_string(), "load:12");
        for bad in ["load", "load:", "load:0", "load:-1", "load:1:2", ":1", "load:x", "load:+1", "load:01"] {
            assert!(bad.parse::<ModelVersion>().is_err(), "{bad}");
        }
    }
}
