//! The ledger: one small record that says what became of every row, kept so that a power cut at any
//! moment leaves a valid one.
//!
//! Invariants:
//! - The file has two slots, each with its own digest. A write goes to the slot that does not hold the
//!   last synced record, so a torn write costs nothing but itself; the newer valid slot counts.
//! - A slot is written in place, so a full disk cannot stop a receipt or an eviction, which are what
//!   frees a full disk (a temporary file and a rename would need a free block).
//! - [`LedgerFile::commit`] is synced when it returns; [`LedgerFile::note`] survives a kill, not a power cut.
//!
//! `cat ledger` shows both slots: a digest and a line of JSON each.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cloud_sync::limits::MAX_NUMBER;
use serde::{Deserialize, Serialize};

use crate::durable;

/// Bytes of one slot: one block of flash and of most file systems; a record takes about 400 bytes.
const SLOT_BYTES: u64 = 4096;
/// A BLAKE3 digest in hexadecimal.
const DIGEST_BYTES: usize = 64;
/// The file's size, for those who count the bytes of the spool.
pub(super) const FILE_BYTES: u64 = 2 * SLOT_BYTES;

/// Why a row was dropped instead of uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The spool reached its bound and the row was among the oldest. Only the spool itself counts these.
    SpoolFull,
    /// The file system had no room for the row.
    DiskFull,
    /// The disk refused to write the row.
    DiskError,
    /// The queue in front of the spool was full.
    QueueFull,
    /// The board was too hot, or short of memory, to capture it.
    Pressure,
    /// The row was larger than [`MAX_ROW_BYTES`](cloud_sync::limits::MAX_ROW_BYTES).
    RowTooLarge,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DropReason::SpoolFull => "spool_full",
            DropReason::DiskFull => "disk_full",
            DropReason::DiskError => "disk_error",
            DropReason::QueueFull => "queue_full",
            DropReason::Pressure => "pressure",
            DropReason::RowTooLarge => "row_too_large",
        })
    }
}

/// The fate of every row so far: `captured = uploaded + held + dropped + lost`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Rows that were to be kept, whatever became of them.
    pub captured: u64,
    /// Rows that the cloud confirmed as durable.
    pub uploaded: u64,
    /// Rows in the spool that wait for their receipt.
    pub held: u64,
    /// Rows given up, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Rows that were stored and can't be read any more: their segment was damaged.
    pub lost: u64,
}

/// What the ledger file keeps. A sequence number below `next` is skipped or has a row, which is uploaded,
/// held, dropped as [`DropReason::SpoolFull`] or lost; rows dropped for other reasons never had a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Identifies this spool's numbering: 128 random bits in hexadecimal.
    pub(super) stream: String,
    /// The first sequence number that no row has yet.
    pub(super) next: u64,
    /// Rows below are gone: uploaded, dropped or lost.
    pub(super) head: u64,
    /// Numbers below `next` that no row ever had.
    pub(super) skipped: u64,
    pub(super) uploaded: u64,
    pub(super) lost: u64,
    pub(super) dropped: BTreeMap<DropReason, u64>,
}

impl Record {
    pub(super) fn fresh() -> Record {
        Record {
            stream: new_stream(),
            next: 1,
            head: 1,
            skipped: 0,
            uploaded: 0,
            lost: 0,
            dropped: BTreeMap::new(),
        }
    }

    /// Whether its numbers can be those of a spool: in order, and so small that no sum of them overflows.
    fn is_sound(&self) -> bool {
        let counts = [self.skipped, self.uploaded, self.lost, self.next];
        (1..=self.next).contains(&self.head)
            && counts.iter().chain(self.dropped.values()).all(|count| *count <= MAX_NUMBER)
    }

    /// The same rows under a numbering that nobody has heard of.
    pub(super) fn renamed(&self) -> Record {
        Record { stream: new_stream(), ..self.clone() }
    }

    pub(super) fn drop_rows(&mut self, reason: DropReason, rows: u64) {
        if rows > 0 {
            *self.dropped.entry(reason).or_insert(0) += rows;
        }
    }

    /// Rows that have a number.
    pub(super) fn numbered(&self) -> u64 {
        (self.next - 1).saturating_sub(self.skipped)
    }

    /// Rows that have a number and are gone.
    pub(super) fn gone(&self) -> u64 {
        self.uploaded + self.lost + self.dropped.get(&DropReason::SpoolFull).copied().unwrap_or(0)
    }

    pub(super) fn ledger(&self, held: u64) -> Ledger {
        let unnumbered: u64 = self
            .dropped
            .iter()
            .filter(|(reason, _)| **reason != DropReason::SpoolFull)
            .map(|(_, rows)| rows)
            .sum();
        Ledger {
            captured: self.numbered() + unnumbered,
            uploaded: self.uploaded,
            held,
            dropped: self.dropped.clone(),
            lost: self.lost,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Slot {
    generation: u64,
    #[serde(flatten)]
    record: Record,
}

impl Slot {
    fn is_sound(&self) -> bool {
        self.generation <= MAX_NUMBER && self.record.is_sound()
    }
}

/// The open ledger file.
pub(super) struct LedgerFile {
    file: File,
    generation: u64,
    synced: u64,
}

impl LedgerFile {
    /// The ledger and its record, or `None` if there is none or no slot of it is valid.
    pub(super) fn open(path: &Path) -> io::Result<Option<(LedgerFile, Record)>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // What a killed process had only noted must be on the disk before the other slot may be written.
        file.sync_data()?;
        let newest = (0..2)
            .filter_map(|number| read_slot(&file, number).map(|slot| (number, slot)))
            .max_by_key(|(_, slot)| slot.generation);
        Ok(newest
            .map(|(synced, slot)| (LedgerFile { file, generation: slot.generation, synced }, slot.record)))
    }

    /// Makes a new ledger that holds `record`, replacing whatever is at `path`.
    pub(super) fn create(path: &Path, record: &Record) -> io::Result<LedgerFile> {
        let temporary = path.with_extension("new");
        let bytes = slot_bytes(1, record)?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(&bytes)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        if let Some(parent) = path.parent() {
            durable::sync_directory(parent)?;
        }
        Ok(LedgerFile { file, generation: 1, synced: 0 })
    }

    /// Writes `record` without waiting for the disk.
    pub(super) fn note(&mut self, record: &Record) -> io::Result<()> {
        let generation = self.generation + 1;
        self.file.write_all_at(&slot_bytes(generation, record)?, (1 - self.synced) * SLOT_BYTES)?;
        self.generation = generation;
        Ok(())
    }

    /// Writes `record`; it is on the disk when this returns.
    pub(super) fn commit(&mut self, record: &Record) -> io::Result<()> {
        self.note(record)?;
        self.file.sync_data()?;
        self.synced = 1 - self.synced;
        Ok(())
    }
}

fn new_stream() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn slot_bytes(generation: u64, record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(&Slot { generation, record: record.clone() })?;
    let mut bytes = format!("{} {json}", blake3::hash(json.as_bytes()).to_hex()).into_bytes();
    if bytes.len() as u64 >= SLOT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "ledger record larger than its slot"));
    }
    bytes.resize(SLOT_BYTES as usize - 1, b' ');
    bytes.push(b'\n');
    Ok(bytes)
}

fn read_slot(file: &File, number: u64) -> Option<Slot> {
    let mut bytes = vec![0; SLOT_BYTES as usize];
    file.read_exact_at(&mut bytes, number * SLOT_BYTES).ok()?;
    let (digest, json) = bytes.split_at_checked(DIGEST_BYTES)?;
    let json = json.trim_ascii();
    let slot = || serde_json::from_slice(json).ok().filter(Slot::is_sound);
    (blake3::hash(json).to_hex().as_bytes() == digest).then(slot).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(next: u64) -> Record {
        Record { next, ..Record::fresh() }
    }

    fn reopened(path: &Path) -> Option<u64> {
        LedgerFile::open(path).unwrap().map(|(_, record)| record.next)
    }

    #[test]
    fn a_torn_write_leaves_the_last_committed_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut ledger = LedgerFile::create(&path, &record(1)).unwrap();
        for next in 2..20 {
            ledger.commit(&record(next)).unwrap();
            // However often it is only noted, the committed slot is not touched ...
            ledger.note(&record(100 + next)).unwrap();
            ledger.note(&record(200 + next)).unwrap();
            assert_eq!(reopened(&path), Some(200 + next));
            // ... so that it is still there when the noted one is torn.
            let torn = (1 - ledger.synced) * SLOT_BYTES;
            ledger.file.write_all_at(&[0; 100], torn + 70).unwrap();
            assert_eq!(reopened(&path), Some(next));
        }
    }

    #[test]
    fn a_ledger_without_a_valid_slot_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        assert_eq!(reopened(&path), None);
        LedgerFile::create(&path, &record(7)).unwrap();
        std::fs::write(&path, [0; 8192]).unwrap();
        assert_eq!(reopened(&path), None);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(reopened(&path), None);
        let backwards = Record { head: 3, ..record(2) };
        let beyond = Record { lost: u64::MAX, ..record(7) };
        for odd in [record(0), backwards, beyond] {
            LedgerFile::create(&path, &odd).unwrap();
            assert_eq!(reopened(&path), None, "{odd:?}");
        }
    }
}
