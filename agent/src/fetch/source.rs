//! Where a bundle comes from, as one text: `registry`, `https://HOST[:PORT]/PATH` or `file:///ABSOLUTE/PATH`.
//!
//! Invariant: what may be a secret in a URL (what is before its `@` or behind its `?`) is kept and written to the
//! deployments' state, and never shown: neither [`fmt::Display`] nor [`fmt::Debug`] nor an error repeats it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use ureq::http::Uri;

/// Longest text of a source, in bytes: what every server and proxy takes as a URL.
pub const MAX_SOURCE_BYTES: usize = 2048;

/// What a path can't hold as it is in a URL.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

/// Where a bundle comes from.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// The registry, over its MQTT link.
    #[default]
    Registry,
    /// A `.bundle` file on a server; the whole URL, with a user's name and password where there are any.
    Https(String),
    /// A `.bundle` file on this machine; its absolute path.
    File(PathBuf),
}

/// Text that says no source. The text itself is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; a source is registry, https://HOST[:PORT]/PATH or file:///ABSOLUTE/PATH")]
pub struct SourceError(&'static str);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if text.len() > MAX_SOURCE_BYTES {
            return Err(SourceError("it is longer than 2048 bytes"));
        }
        if text == "registry" {
            Ok(Self::Registry)
        } else if text.starts_with("https://") {
            let uri: Uri = text.parse().map_err(|_| SourceError("it is no URL"))?;
            let is_server = uri.authority().is_some_and(|authority| {
                let has_port = !authority.as_str().ends_with(authority.host());
                !authority.host().is_empty() && (!has_port || authority.port_u16().is_some())
            });
            if is_server && uri.path() != "/" && !text.contains('#') {
                Ok(Self::Https(text.to_owned()))
            } else {
                Err(SourceError("the URL names no file on a server"))
            }
        } else if let Some(path) = text.strip_prefix("file://") {
            let path = percent_decode_str(path).decode_utf8().map_err(|_| SourceError("it is no UTF-8"))?;
            let is_file = path.starts_with('/') && !path.ends_with('/') && !path.contains(char::is_control);
            let path = PathBuf::from(path.as_ref());
            if !is_file {
                Err(SourceError("it names no file by its absolute path"))
            } else if file_url(&path).len() > MAX_SOURCE_BYTES {
                // It is kept as this text, and read again.
                Err(SourceError("it is longer than 2048 bytes once its characters are escaped"))
            } else {
                Ok(Self::File(path))
            }
        } else {
            Err(SourceError("it is none of the known kinds"))
        }
    }
}

impl TryFrom<String> for Source {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl From<Source> for String {
    /// The whole text, with its secrets.
    fn from(source: Source) -> String {
        match source {
            Source::Registry => "registry".to_owned(),
            Source::Https(url) => url,
            Source::File(path) => file_url(&path),
        }
    }
}

/// The source without what may be a secret.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry => f.write_str("registry"),
            Self::Https(url) => {
                let (_, url) = split_user(url);
                let (place, query) = url.split_once('?').map_or((url, ""), |(place, _)| (place, "?…"));
                write!(f, "https://{place}{query}")
            }
            Self::File(path) => f.write_str(&file_url(path)),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The part of an `https://` URL before its `@`, where there is one, and what is behind it, without the scheme.
pub(super) fn split_user(url: &str) -> (Option<&str>, &str) {
    let rest = url.strip_prefix("https://").unwrap_or(url);
    let authority = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest.get(..authority).and_then(|authority| authority.rsplit_once('@')) {
        Some((user, _)) => (Some(user), rest.get(user.len() + 1..).unwrap_or_default()),
        None => (None, rest),
    }
}

fn file_url(path: &Path) -> String {
    format!("file://{}", utf8_percent_encode(&path.to_string_lossy(), ESCAPED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_kept_as_their_text() {
        for text in [
            "registry",
            "https://models.example/detector-3.bundle",
            "https://user:p%40ss@models.example:8443/a/b.bundle?sig=abc",
            "https://[::1]:9/x",
            "file:///models/detector%203.bundle",
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(String::from(source.clone()), text);
            let stored = serde_cbor::to_vec(&source).unwrap();
            assert_eq!(serde_cbor::from_slice::<Source>(&stored).unwrap(), source);
        }
        let spaced: Source = "file:///models/detector 3.bundle".parse().unwrap();
        assert_eq!(spaced, Source::File(PathBuf::from("/models/detector 3.bundle")));
    }

    #[test]
    fn what_is_no_source_is_refused_with_what_is_allowed() {
        let long = format!("https://h/{}", "x".repeat(MAX_SOURCE_BYTES));
        // Found by fuzzing: short enough as it came, and too long as it would have been kept.
        let grows = format!("file:///{}", "ä".repeat(MAX_SOURCE_BYTES / 4));
        for bad in [
            "",
            "Registry",
            "http://h/x",
            "https://",
            "https:///x",
            "https://h",
            "https://h/",
            "https://h/x y",
            "https://h/x#y",
            "https://h:port/x",
            "file://host/x",
            "file://x",
            "file:///",
            "file:///x%00y",
            "/models/x.bundle",
            "ftp://user:secret@h/x",
            "https://user:secret@h",
            &long,
            &grows,
        ] {
            let error = bad.parse::<Source>().expect_err(bad).to_string();
            assert!(error.contains("https://HOST[:PORT]/PATH"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn secrets_of_a_url_are_never_shown() {
        let source: Source = "https://user:secret@h.example:1/a@b.bundle?sig=secret".parse().unwrap();
        assert_eq!(source.to_string(), "https://h.example:1/a@b.bundle?…");
        assert_eq!(format!("{source:?}"), source.to_string());
    }
}
