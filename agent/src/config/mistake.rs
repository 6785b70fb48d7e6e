//! What is wrong with a configuration, and where it stands.

use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The defaults that are compiled in.
    Default,
    /// The machine's host name.
    HostName,
    /// What the machine has.
    Board,
    /// A configuration file.
    File {
        /// Which one.
        path: PathBuf,
        /// The line, from 1; `None` for the file as a whole.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key; empty for a source that can't be read at all.
    pub key: String,
    /// Where its value comes from.
    pub place: Place,
    /// What is wrong with it and what was expected.
    pub what: String,
}

/// Everything that is wrong. Fatal: a restart finds the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {}:\n{}", count(.0.len()), lines(.0))]
pub struct ConfigError(pub Vec<Mistake>);

impl Mistake {
    pub(super) fn new(key: &str, place: &Place, what: impl Into<String>) -> Self {
        Self { key: key.to_owned(), place: place.clone(), what: what.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::HostName => f.write_str("host or module name"),
            Self::Board => f.write_str("board"),
            Self::File { path, line: None } => write!(f, "file {}", path.display()),
            Self::File { path, line: Some(line) } => write!(f, "file {}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.place, self.what),
            key => write!(f, "{}: {key}: {}", self.place, self.what),
        }
    }
}

/// `text` without the user name and password that it may hold as a URL.
pub(super) fn without_credentials(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => text.to_owned(),
    }
}

/// The known name that was meant by one that is misspelt, or stands in another section.
pub(crate) fn nearest<'a>(name: &str, known: &'a [impl AsRef<str>]) -> Option<&'a str> {
    let known = || known.iter().map(AsRef::as_ref);
    let same_end = known().find(|known| known.rsplit('.').next() == name.rsplit('.').next());
    let near = || {
        let distance = |known: &str| strsim::damerau_levenshtein(known, name);
        let nearest = known().min_by_key(|known| distance(known))?;
        (distance(nearest) <= name.len().div_ceil(3)).then_some(nearest)
    };
    same_end.or_else(near)
}

fn count(mistakes: usize) -> String {
    if mistakes == 1 { "a mistake".to_owned() } else { format!("{mistakes} mistakes") }
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n")
}
