//! Where the module gets bundles: over its link to the registry, or as files that lie somewhere under a common prefix.

use std::str::FromStr;

use cloud_sync::name::ModelVersion;

/// Longest prefix: with the name of the longest bundle's file a source stays under the twin's 2048 characters.
const MAX_PREFIX: usize = 1900;

/// `registry`, or a prefix, `https://HOST/PATH/` or `file:///PATH/`. The query of a URL, such as a shared access
/// signature, comes after the file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Over MQTT.
    Registry,
    /// A `.bundle` file that `edgewise model pull` wrote.
    File {
        /// Without a slash at its end.
        prefix: String,
        /// Empty, or from the question mark on.
        query: String,
    },
}

/// Text that is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "use registry, https://HOST/PATH/ or file:///PATH/ with at most {MAX_PREFIX} characters and no white space"
)]
pub struct SourceError;

impl Source {
    /// The source of one version, as the twin has it.
    pub fn of(&self, version: &ModelVersion) -> String {
        match self {
            Self::Registry => "registry".to_owned(),
            Self::File { prefix, query } => {
                format!("{prefix}/{}-{}.bundle{query}", version.name, version.version)
            }
        }
    }

    /// The directory inside the container, if it is one.
    pub(super) fn path(&self) -> Option<&str> {
        match self {
            Self::Registry => None,
            Self::File { prefix, .. } => prefix.strip_prefix("file://"),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if text == "registry" {
            return Ok(Self::Registry);
        }
        let (address, query) = match text.find('?') {
            Some(at) if text.starts_with("https://") => text.split_at(at),
            _ => (text, ""),
        };
        let prefix = address.trim_end_matches('/');
        let host = prefix.strip_prefix("https://").and_then(|rest| rest.split('/').next());
        let good = host.is_some_and(|host| !host.is_empty()) || prefix.starts_with("file:///");
        if good && text.len() <= MAX_PREFIX && !text.contains(|c: char| c.is_whitespace() || c == '#') {
            Ok(Self::File { prefix: prefix.to_owned(), query: query.to_owned() })
        } else {
            Err(SourceError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_lies_under_its_prefix_and_before_the_query() {
        let version = "load:3".parse().unwrap();
        let of = |text: &str| text.parse::<Source>().map(|source| source.of(&version));
        assert_eq!(of("registry").unwrap(), "registry");
        assert_eq!(of("https://models.example/edge/").unwrap(), "https://models.example/edge/load-3.bundle");
        assert_eq!(
            of("https://models.example/edge?sv=1&sig=a%2F").unwrap(),
            "https://models.example/edge/load-3.bundle?sv=1&sig=a%2F"
        );
        assert_eq!(of("file:///bundles").unwrap(), "file:///bundles/load-3.bundle");
        for bad in [
            "",
            "http://models.example",
            "https://",
            "https:///a",
            "file://a/b",
            "/bundles",
            "ftp://a",
            "https://a/ b",
            "https://a/#b",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
