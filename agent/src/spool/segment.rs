//! One segment: a small sled database that is filled once, then only read, then deleted whole.
//! No other file names sled.
//!
//! Invariants:
//! - Rows stay in order and without a gap: what can be read is a prefix of what was appended.
//! - What was appended is durable when [`Segment::sync`] returns. sled's `flush` on Linux ends in
//!   `sync_file_range`, which neither writes metadata nor empties the drive's cache, hence `fdatasync` of
//!   `db`, sled's log. All data is in that file: sled moves only values and pages over 128 KiB to `blobs/`,
//!   which it never syncs, and none here grows that large (see SLOTS).
//! - A segment's log never grows beyond the limit that [`Segment::has_room`] was asked for.
//! - Damage of any kind is an error, never a panic and never a wrong row. sled panics on some, hence `guarded`.
//!
//! A segment is made with all its keys, each with an empty value, and every append fills the next key. This
//! spares the flash: sled rewrites a leaf at its tenth change and splits it at its seventeenth key, so plain
//! inserts wrote 5.7 bytes and kept 2.4 on disk per byte of row. Leaves split off while the keys were made
//! have at most 9, each changed once: 1.2 bytes written, 1.1 kept (100 rows of 300 bytes per append).

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use cloud_sync::limits::MAX_ROW_BYTES;

use super::directory;
use crate::durable;

/// Appends per segment. More make the file of keys dear (512 take 40 kB, 4096 take 880 kB); fewer make too
/// many segments of single rows.
const SLOTS: u16 = 1024;
/// Keys beyond the last one used: the rightmost leaf is never split off and would be rewritten when filled.
const SPARE_SLOTS: u16 = 20;
/// The largest value: with its header it must stay below a quarter of sled's 512 KiB log segment, above which
/// sled moves it to a file of its own.
const MAX_VALUE_BYTES: usize = 120 * 1024;
/// What one append of any size may take beyond its own bytes: the rest of a log segment that a value did not
/// fit in (at most the value's size), and message headers.
const APPEND_OVERHEAD_BYTES: u64 = MAX_VALUE_BYTES as u64 + 4096;
/// sled fills the last log segment with zeros when a database is opened again.
const LOG_SEGMENT_BYTES: u64 = 512 * 1024;
/// What a segment takes beside its log: configuration, directories, and sled's snapshot (34 kB for 2048 keys),
/// twice while it is replaced.
const BESIDE_LOG_BYTES: u64 = 96 * 1024;
/// What opening a segment that is not written any more may take beyond what it takes already.
pub(super) const OPENING_BYTES: u64 = LOG_SEGMENT_BYTES + BESIDE_LOG_BYTES;
/// Bytes of pages that sled keeps in memory per open segment; two segments are open at most. One leaf of
/// nine appends should fit in the cache's 256th part only when rows are few and small, so more helps little.
const CACHE_BYTES: u64 = 1024 * 1024;
/// How long a closed segment's files may stay locked by sled's own threads before that is an error.
const UNLOCK_LIMIT: Duration = Duration::from_secs(10);
/// Each row is preceded by its length, each group of rows by the number of its first.
const LENGTH_BYTES: usize = 4;
const NUMBER_BYTES: usize = 8;

const _: () = assert!(NUMBER_BYTES + LENGTH_BYTES + MAX_ROW_BYTES <= MAX_VALUE_BYTES);

/// No segment holds as many rows (4 MiB at 4 bytes each or more): numbers this far after a segment's first were
/// never given to one of its rows.
pub(super) const MAX_ROWS: u64 = 1 << 24;

/// Why a segment could not be made, written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SegmentError {
    /// The machine is in the way (no room, no permission, too many open files): the segment may be fine.
    #[error("{0}")]
    Machine(#[source] io::Error),
    /// The segment itself is damaged.
    #[error("{0}")]
    Damaged(String),
}

impl From<io::Error> for SegmentError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, Other, UnexpectedEof,
        };
        match error.kind() {
            // A sector that can't be read is damage: waiting does not bring it back, and rows behind it wait too.
            _ if error.raw_os_error() == Some(libc::EIO) => Self::Damaged(error.to_string()),
            InvalidData | InvalidInput | IsADirectory | NotADirectory | NotFound | Other | UnexpectedEof => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Machine(error),
        }
    }
}

impl From<sled::Error> for SegmentError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => error.into(),
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// An open segment.
pub(super) struct Segment {
    database: sled::Db,
    log: File,
    /// The number of the first row of each filled slot, then the number that the next row gets.
    starts: Vec<u64>,
}

impl Segment {
    /// Makes an empty segment whose first row will have the number `first`; durable up to its directory, the
    /// directory's own entry is the caller's to sync.
    pub(super) fn create(path: &Path, first: u64) -> Result<Segment, SegmentError> {
        guarded(|| {
            fs::create_dir(path)?;
            let database = open(path)?;
            for slot in 0..SLOTS + SPARE_SLOTS {
                database.insert(slot.to_be_bytes(), &[])?;
            }
            let log = File::open(path.join("db"))?;
            let segment = Segment { database, log, starts: vec![first] };
            segment.sync()?;
            File::open(path.join("conf"))?.sync_all()?;
            durable::sync_directory(path)?;
            Ok(segment)
        })
    }

    /// Opens a segment that was written before, and reads all of it to know what is there.
    pub(super) fn load(path: &Path, first: u64) -> Result<Segment, SegmentError> {
        guarded(|| {
            // The snapshot only shortens recovery, a damaged one prevents it, and the whole log is read anyway.
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with("snap.") {
                    fs::remove_file(entry.path())?;
                }
            }
            let log = File::open(path.join("db"))?;
            wait_until_unlocked(&log)?;
            let database = open(path)?;
            let mut segment = Segment { database, log, starts: vec![first] };
            for slot in 0..SLOTS {
                match segment.database.get(slot.to_be_bytes())? {
                    Some(value) if !value.is_empty() => {
                        let Some(rows) = decode(&value, segment.end()) else { break };
                        segment.starts.push(segment.end() + rows.len() as u64);
                    }
                    _ => break,
                }
            }
            Ok(segment)
        })
    }

    /// The number after the last readable row.
    pub(super) fn end(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether the segment can take rows of `bytes` in all and its log stay within `limit` bytes.
    pub(super) fn has_room(&self, bytes: usize, limit: u64) -> Result<bool, SegmentError> {
        let log_bytes = self.log.metadata()?.len() + bytes as u64 + APPEND_OVERHEAD_BYTES;
        Ok(self.starts.len() <= usize::from(SLOTS) && log_bytes <= limit)
    }

    /// Appends one group of rows; after a crash all of them are there, or none.
    pub(super) fn append(&mut self, rows: &[Vec<u8>]) -> Result<(), SegmentError> {
        let slot = u16::try_from(self.starts.len() - 1).unwrap_or(u16::MAX);
        let end = self.end();
        let value = encode(rows, end);
        guarded(|| Ok(self.database.insert(slot.to_be_bytes(), value)?))?;
        self.starts.push(end + rows.len() as u64);
        Ok(())
    }

    /// Returns when all appended rows are on the disk.
    pub(super) fn sync(&self) -> Result<(), SegmentError> {
        guarded(|| Ok(self.database.flush()?))?;
        Ok(self.log.sync_data()?)
    }

    /// The rows from number `from` on that share a group with it; at least one.
    pub(super) fn group(&self, from: u64) -> Result<Vec<(u64, Vec<u8>)>, SegmentError> {
        let unreadable = || SegmentError::Damaged(format!("row {from} can't be read"));
        let slot =
            self.starts.partition_point(|start| *start <= from).checked_sub(1).ok_or_else(unreadable)?;
        let start = self.starts.get(slot).copied().ok_or_else(unreadable)?;
        let value = guarded(|| Ok(self.database.get((slot as u16).to_be_bytes())?))?;
        let rows = value.as_deref().and_then(|value| decode(value, start)).ok_or_else(unreadable)?;
        let group: Vec<_> = (start..).zip(rows).filter(|(number, _)| *number >= from).collect();
        if group.is_empty() {
            return Err(unreadable());
        }
        Ok(group.into_iter().map(|(number, row)| (number, row.to_vec())).collect())
    }
}

/// The most bytes of disk that the segment at `path` takes, now or when it is opened again.
pub(super) fn charge(path: &Path) -> io::Result<u64> {
    let log_bytes = fs::metadata(path.join("db")).map(|metadata| metadata.len()).unwrap_or(0);
    Ok(full_charge(log_bytes).max(directory::allocated(path)?))
}

/// The most bytes of disk that a segment whose log has at most `log_bytes` takes.
pub(super) fn full_charge(log_bytes: u64) -> u64 {
    log_bytes.next_multiple_of(LOG_SEGMENT_BYTES) + BESIDE_LOG_BYTES
}

/// How many of `rows` go into one group, and their bytes when stored: as many as fit, at least one.
pub(super) fn first_group(rows: &[Vec<u8>]) -> (usize, usize) {
    let (mut count, mut bytes) = (0, NUMBER_BYTES);
    for row in rows {
        let longer = bytes + LENGTH_BYTES + row.len();
        if count > 0 && longer > MAX_VALUE_BYTES {
            break;
        }
        (count, bytes) = (count + 1, longer);
    }
    (count, bytes)
}

fn open(path: &Path) -> Result<sled::Db, SegmentError> {
    // Without the periodic flush there is no background thread per segment, and nothing is written that
    // was not asked for.
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    Ok(config.open()?)
}

/// sled's threads keep a closed database's file, and its lock, until they have finished their last job. There
/// is no event to wait for, and opening it meanwhile would fail as if it were damaged.
fn wait_until_unlocked(log: &File) -> Result<(), SegmentError> {
    let deadline = Instant::now() + UNLOCK_LIMIT;
    loop {
        match log.try_lock() {
            Ok(()) => return Ok(log.unlock()?),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(SegmentError::Machine(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "segment is locked",
                )));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}

/// Runs what may panic inside sled, and makes of that an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, SegmentError>) -> Result<T, SegmentError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
        Err(SegmentError::Damaged(format!("panic inside sled: {message}")))
    })
}

fn encode(rows: &[Vec<u8>], first: u64) -> Vec<u8> {
    let bytes: usize = rows.iter().map(|row| LENGTH_BYTES + row.len()).sum();
    let mut value = Vec::with_capacity(NUMBER_BYTES + bytes);
    value.extend_from_slice(&first.to_be_bytes());
    for row in rows {
        value.extend_from_slice(&(row.len() as u32).to_be_bytes());
        value.extend_from_slice(row);
    }
    value
}

/// The rows of a value, or `None` unless it is whole and its first row has the number `first`.
fn decode(value: &[u8], first: u64) -> Option<Vec<&[u8]>> {
    let (number, mut rest) = value.split_first_chunk::<NUMBER_BYTES>()?;
    if u64::from_be_bytes(*number) != first {
        return None;
    }
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let (row, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rows.push(row);
        rest = after;
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_used_once_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment");
        let limit = 4 * 1024 * 1024;
        let mut segment = Segment::create(&path, 7).unwrap();
        let mut rows = Vec::new();
        while segment.has_room(20_000, limit).unwrap() {
            let row = (rows.len() as u64).to_be_bytes().repeat(1 + rows.len() % 300);
            segment.append(std::slice::from_ref(&row)).unwrap();
            rows.push(row);
        }
        assert_eq!(rows.len(), usize::from(SLOTS));
        segment.sync().unwrap();
        drop(segment);

        let segment = Segment::load(&path, 7).unwrap();
        assert_eq!(segment.end(), 7 + u64::from(SLOTS));
        for (number, row) in (7..).zip(rows) {
            assert_eq!(segment.group(number).unwrap(), vec![(number, row)]);
        }
        assert!(matches!(segment.group(segment.end()), Err(SegmentError::Damaged(_))));
        drop(segment);
        // Under another number none of its rows is taken for one.
        assert_eq!(Segment::load(&path, 8).unwrap().end(), 8);
    }
}
