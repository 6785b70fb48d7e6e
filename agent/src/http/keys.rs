//! The keys by which callers show that they may call: each a line of a file, two of them while one takes the place of the
//! other. They are taken up as the file changes, without a restart.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use blake3::Hash;

/// How often the file is looked at: soon enough for whoever waits for a new key, and one small file.
const LOOK: Duration = Duration::from_secs(1);

/// Keys at the most: one, and the one that it replaces, for a few callers.
const MAX_KEYS: usize = 16;

/// Largest file of keys.
const MAX_BYTES: u64 = 16 * 1024;

/// The keys of a file.
pub(super) struct Keys {
    path: PathBuf,
    /// Their hashes, for those are compared in a time that says nothing of them.
    hashes: RwLock<Vec<Hash>>,
}

impl Keys {
    /// Reads the keys.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), hashes: RwLock::new(read(path)?) })
    }

    /// Whether the headers bring one of them, as `Authorization: Bearer KEY`.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(|given| given.as_bytes());
        let Some((kind, key)) = given.and_then(|given| given.split_at_checked(7)) else { return false };
        let hash = blake3::hash(key.trim_ascii());
        let known = self.hashes.read().unwrap_or_else(PoisonError::into_inner);
        kind.eq_ignore_ascii_case(b"bearer ") && known.contains(&hash)
    }

    /// Takes up what changes in the file, without end. One that can't be read changes nothing.
    pub(super) async fn follow(&self) {
        let mut told = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let path = self.path.clone();
            match tokio::task::spawn_blocking(move || read(&path))
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error)))
            {
                Ok(hashes) => {
                    *self.hashes.write().unwrap_or_else(PoisonError::into_inner) = hashes;
                    told = false;
                }
                Err(error) if !told => {
                    tracing::warn!(path = %self.path.display(), %error, "the keys stay as they were");
                    told = true;
                }
                Err(_) => {}
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Hash>> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(wrong("it is too large for a file of keys"));
    }
    let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let hashes: Vec<Hash> = keys.map(|key| blake3::hash(key.as_bytes())).collect();
    match hashes.len() {
        0 => Err(wrong("no key is in it")),
        1..=MAX_KEYS => Ok(hashes),
        _ => Err(wrong("more than 16 keys are in it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_file_is_let_in_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        assert!(Keys::open(&path).is_err());
        fs::write(&path, "\n").unwrap();
        assert!(Keys::open(&path).is_err(), "no key would let nobody in");
        fs::write(&path, "# of the gateway\nfirst\n  second  \n").unwrap();
        let keys = Keys::open(&path).unwrap();
        let admitted = |value: &'static str| {
            keys.admit(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]))
        };
        assert!(admitted("Bearer first") && admitted("bearer second"));
        for other in [
            "Bearer # of the gateway",
            "Bearer third",
            "Bearer ",
            "first",
            "Basic first",
            "Bearer first second",
            "",
        ] {
            assert!(!admitted(other), "{other}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
    }
}
