//! The spool's directory: what its entries are called, how many bytes they take, how they are made to last.
//!
//! `segment-FIRST` is being written, or was when the process died; `segment-FIRST-END` is closed and holds the
//! rows from FIRST up to, not including, END. The name is the record of where a segment ends, so that no
//! neighbour needs to be there to know it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::durable;

pub(super) const LEDGER: &str = "ledger";
pub(super) const LOCK: &str = "lock";
pub(super) const QUARANTINE: &str = "quarantine";
const SEGMENT: &str = "segment-";

/// An entry of the directory that is, or pretends to be, a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The first number and, of a closed segment, the end; `None` if the name is none that the spool gives.
    pub(super) numbers: Option<(u64, Option<u64>)>,
}

/// The name of a segment; zero padded, so that a listing is in order.
pub(super) fn segment_name(first: u64, end: Option<u64>) -> String {
    match end {
        None => format!("{SEGMENT}{first:020}"),
        Some(end) => format!("{SEGMENT}{first:020}-{end:020}"),
    }
}

/// All segments in `directory`, by first number; those without a number last.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(numbers) = name.strip_prefix(SEGMENT) {
            let numbers = parse(numbers).filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            entries.push(Entry { name, numbers });
        }
    }
    entries.sort_by_key(|entry| entry.numbers.map_or(u64::MAX, |(first, _)| first));
    Ok(entries)
}

fn parse(numbers: &str) -> Option<(u64, Option<u64>)> {
    let (first, end) = match numbers.split_once('-') {
        None => (numbers, None),
        Some((first, end)) => (first, Some(end)),
    };
    let first = first.parse().ok().filter(|first| *first > 0)?;
    match end.map(str::parse).transpose().ok()? {
        Some(end) if end < first => None,
        end => Some((first, end)),
    }
}

/// Bytes of disk that `path` and all below it take, as allocated blocks, not as lengths.
pub(super) fn allocated(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += allocated(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// Removes a file or a whole directory; done already is done.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Moves `name` into the quarantine under `directory` and removes the oldest there until all of it takes at
/// most `limit` bytes. Returns what it takes now.
pub(super) fn quarantine(directory: &Path, name: &str, limit: u64) -> io::Result<u64> {
    let quarantine = directory.join(QUARANTINE);
    fs::create_dir_all(&quarantine)?;
    let target = quarantine.join(name);
    remove(&target)?;
    fs::rename(directory.join(name), &target)?;
    durable::sync_directory(&quarantine)?;
    durable::sync_directory(directory)?;
    trim_quarantine(directory, limit)
}

/// Removes the oldest of the quarantine until all of it takes at most `limit` bytes; returns what it takes.
pub(super) fn trim_quarantine(directory: &Path, limit: u64) -> io::Result<u64> {
    let quarantine = directory.join(QUARANTINE);
    let mut kept: Vec<PathBuf> = match fs::read_dir(&quarantine) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    kept.sort_by(|left, right| right.cmp(left));
    let mut bytes = allocated(&quarantine)?;
    while bytes > limit
        && let Some(oldest) = kept.pop()
    {
        remove(&oldest)?;
        bytes = allocated(&quarantine)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (first, end) in [(1, None), (17, Some(17)), (9, Some(u64::MAX)), (u64::MAX, None)] {
            let name = segment_name(first, end);
            assert_eq!(parse(name.strip_prefix(SEGMENT).unwrap()), Some((first, end)));
        }
        for wrong in ["", "x", "0", "5-4", "5-", "5-6-7", "-1", "99999999999999999999999"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
