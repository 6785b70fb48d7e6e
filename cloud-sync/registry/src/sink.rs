//! Where captured rows come to rest: telemetry in, Parquet files out, each row once.
//!
//! Invariants:
//! - A receipt names a sequence number only when every row up to it that was sent is in a durable object or counted as
//!   refused, and the stream's place in the database says so.
//! - A row appears once however often it is sent: what the stream's place covers is passed over, and the objects of an
//!   attempt count only if that place moves in the same transaction.
//! - The directory of objects holds no row twice: the objects of an attempt that came to nothing are deleted before
//!   the stream's next attempt, and once more when nobody can be writing them any more, though it be another replica.
//! - A row that can't be decoded or contradicts itself costs itself only; it is counted.

mod table;
mod time;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::contract::{Receipt, Telemetry};
use cloud_sync::name::DeviceId;
use cloud_sync::rows::{self, RowsError};
use tokio_util::sync::CancellationToken;

pub(crate) use table::readable;
use table::{Table, TableError, Tables};
use time::Reception;

use crate::objects::{ObjectError, Objects};
use crate::store::{RowFile, Store, StoreError};

/// Longest time in which an attempt writes its objects. A store that takes longer has the device send again.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(120);

/// Streams that a device may begin. It begins one when its spool was lost, or put back from a copy.
const MAX_STREAMS: u64 = 256;

/// How long another replica's attempt is left alone. A device that hears nothing sends again after 20 s, and then after
/// twice as long each time: so a replica that died holds a stream up for that long, and a slow store is given its time.
const LEFT_ALONE: Duration = Duration::from_secs(15);

/// How old an attempt must be for what it left to be swept: nobody writes for it any more, though clocks differ.
const ABANDONED: Duration = Duration::from_secs(600);

/// The store of captured rows. The caller brings one batch of a stream at a time; where another replica has another
/// one at the same time, one of them is stored.
#[derive(Debug)]
pub struct Sink {
    store: Store,
    objects: Objects,
    site: String,
    counters: Counters,
}

/// What has come in.
#[derive(Debug, Default)]
pub struct Counters {
    /// Batches that were answered with a receipt.
    pub batches: AtomicU64,
    /// Rows that were stored.
    pub stored: AtomicU64,
    /// Rows that were here already.
    pub repeated: AtomicU64,
    /// Rows that can't be decoded or contradict themselves.
    pub refused: AtomicU64,
    /// Batches that came before the one that they follow.
    pub early: AtomicU64,
}

/// A batch that was not stored. The device sends it again.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It can't be unpacked.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// Its sequence numbers end beyond what can be counted.
    #[error("sequence numbers from {0} can't be counted")]
    Sequence(u64),
    /// Its rows can't be written as Parquet.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The database said no; worth another try.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store said no; worth another try.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The batch before this one is not stored; a receipt for what is has the device send from there.
    #[error("rows after {after} came, and the stream is durable through {before}")]
    Hole {
        /// The row before the batch.
        after: u64,
        /// The last row that is durable.
        before: u64,
    },
    /// The device has too many streams: it begins one where its spool is lost, which is seldom.
    #[error("{0} has begun {MAX_STREAMS} streams, which is the most, or there are too many in all")]
    Streams(DeviceId),
    /// Another attempt to store the same rows won; worth another try, which will find them stored.
    #[error("the stream was moved by another attempt")]
    Overtaken,
    /// Another replica is storing rows of this stream; worth another try.
    #[error("another replica is storing rows of this stream")]
    Underway,
    /// The object store is slow; worth another try.
    #[error("writing the rows took longer than {LONGEST_ATTEMPT:?}")]
    Slow,
    /// The task that decodes ended early.
    #[error("decoding rows: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// An attempt to store a batch: what is to be written, and what it will mean.
#[derive(Debug)]
struct Attempt {
    id: String,
    before: u64,
    through: u64,
    files: Vec<(RowFile, Bytes)>,
    refused: u64,
    repeated: u64,
}

impl Sink {
    /// Files rows under `site`.
    pub fn new(store: Store, objects: Objects, site: String) -> Self {
        Self { store, objects, site, counters: Counters::default() }
    }

    /// Stores what is new in a batch, and returns the receipt: for the whole batch, or for its beginning where the rest
    /// needs another attempt. The device sends the rest again.
    pub async fn accept(
        &self,
        device: &DeviceId,
        telemetry: impl Into<Arc<Telemetry>>,
    ) -> Result<Receipt, SinkError> {
        let telemetry = telemetry.into();
        let stream = telemetry.stream.clone();
        let attempt = self.prepare(device, telemetry).await?;
        let receipt = Receipt { stream: stream.clone(), durable_through: attempt.through, again: false };
        if attempt.through > attempt.before {
            self.make_way(device, &stream).await?;
            let written = tokio::time::timeout(LONGEST_ATTEMPT, self.write(&stream, &attempt)).await;
            if let Err(error) = written.unwrap_or(Err(SinkError::Slow)) {
                // It is ours and over: the next attempt shall not wait for it.
                self.store.doom_stream(device, &stream).await?;
                return Err(error);
            }
            if !self.commit(device, &stream, &attempt).await? {
                // The attempt that won may have looked for leftovers before these were written.
                for (file, _) in &attempt.files {
                    self.objects.delete(&file.path).await?;
                }
                return Err(SinkError::Overtaken);
            }
        }
        let stored: u64 = attempt.files.iter().map(|(file, _)| file.rows).sum();
        self.counters.batches.fetch_add(1, Ordering::Relaxed);
        self.counters.stored.fetch_add(stored, Ordering::Relaxed);
        self.counters.repeated.fetch_add(attempt.repeated, Ordering::Relaxed);
        self.counters.refused.fetch_add(attempt.refused, Ordering::Relaxed);
        Ok(receipt)
    }

    /// Deletes what abandoned attempts have left, at the start and then now and again, until `stop`. Half-written files are
    /// left by processes alone that were killed before this one began: they are old enough the second time at the latest.
    pub async fn sweep_abandoned(&self, stop: CancellationToken) {
        for turn in 0.. {
            let age = u64::try_from(ABANDONED.as_millis()).unwrap_or(u64::MAX);
            let mut swept = self.delete_before(crate::now_ms().saturating_sub(age)).await;
            if turn < 2 && swept.is_ok() {
                swept = self.objects.delete_staged(ABANDONED).await.map(drop).map_err(SinkError::from);
            }
            if let Err(error) = swept {
                tracing::error!(%error, retry_in = ?ABANDONED, "what abandoned attempts left was not deleted");
            }
            tokio::select! {
                () = tokio::time::sleep(ABANDONED) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn delete_before(&self, begun_ms: u64) -> Result<(), SinkError> {
        let doomed = self.store.doom_before(begun_ms).await?;
        for path in &doomed {
            self.objects.delete(path).await?;
        }
        if !doomed.is_empty() {
            self.store.forget_files(&doomed).await?;
        }
        Ok(())
    }

    /// Gives up the attempts that others have left, unless one of them may still be at it.
    async fn make_way(&self, device: &DeviceId, stream: &str) -> Result<(), SinkError> {
        let (now, left_alone) = (crate::now_ms(), u64::try_from(LEFT_ALONE.as_millis()).unwrap_or(u64::MAX));
        // Clocks of replicas differ: one that is far ahead is no reason to wait.
        let recent = (now.saturating_sub(left_alone), now.saturating_add(left_alone));
        if self.store.is_shared() && self.store.is_attempted(device, stream, recent).await? {
            return Err(SinkError::Underway);
        }
        for path in self.store.doom_stream(device, stream).await? {
            self.objects.delete(&path).await?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// What has come in.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    async fn prepare(
        &self,
        device: &DeviceId,
        telemetry: impl Into<Arc<Telemetry>>,
    ) -> Result<Attempt, SinkError> {
        let telemetry = telemetry.into();
        let Some(before) = self.store.durable_through(device, &telemetry.stream, MAX_STREAMS).await? else {
            return Err(SinkError::Streams(device.clone()));
        };
        let after = telemetry.after;
        if after > before {
            return Err(SinkError::Hole { after, before });
        }
        let (device, site) = (device.clone(), self.site.clone());
        let received_ms = crate::now_ms();
        let decode = move || attempt(&device, &site, received_ms, before, &telemetry);
        tokio::task::spawn_blocking(decode).await?
    }

    async fn write(&self, stream: &str, attempt: &Attempt) -> Result<(), SinkError> {
        let files: Vec<RowFile> = attempt.files.iter().map(|(file, _)| file.clone()).collect();
        self.store.begin_attempt(stream, &attempt.id, &files, crate::now_ms()).await?;
        for (file, parquet) in &attempt.files {
            self.objects.put(&file.path, parquet.clone()).await?;
        }
        Ok(())
    }

    async fn commit(&self, device: &DeviceId, stream: &str, attempt: &Attempt) -> Result<bool, StoreError> {
        let stored = attempt.files.iter().map(|(file, _)| file.rows).sum();
        let counts = (attempt.files.len(), stored, attempt.refused);
        let places = (attempt.before, attempt.through);
        self.store.commit_attempt(device, stream, &attempt.id, places, counts).await
    }
}

fn attempt(
    device: &DeviceId,
    site: &str,
    received_ms: u64,
    before: u64,
    telemetry: &Telemetry,
) -> Result<Attempt, SinkError> {
    let encoded = rows::unpack(telemetry.codec, &telemetry.rows)?;
    let first = telemetry.first_sequence;
    let end = first.checked_add(encoded.len() as u64).filter(|end| i64::try_from(*end).is_ok());
    let last = end.ok_or(SinkError::Sequence(first))?.saturating_sub(1);
    let count = encoded.len() as u64;
    let fresh = (first..).zip(&encoded).filter(|(sequence, _)| *sequence > before);
    let repeated = count - fresh.clone().count() as u64;
    let rows = fresh.map(|(sequence, bytes)| (sequence, bytes.as_slice()));
    let reception = Reception { at_ms: received_ms, clock: telemetry.clock.as_ref() };
    let Tables { tables, refused, left } = table::tables((device, &telemetry.stream), reception, rows)?;
    let last = left.map_or(last, |left| left.saturating_sub(1));
    let id = uuid::Uuid::new_v4().simple().to_string();
    let file = |(position, table): (usize, Table)| {
        let Table { model, version, day, first_ms, last_ms, rows, parquet } = table;
        let path = format!("modeldata/{site}/{model}/{version}/{day}/{device}-{id}-{position}.parquet");
        (RowFile { path, device: device.to_string(), model, version, day, first_ms, last_ms, rows }, parquet)
    };
    Ok(Attempt {
        id: id.clone(),
        before,
        through: if count == 0 { before } else { before.max(last) },
        files: tables.into_iter().enumerate().map(file).collect(),
        refused,
        repeated,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use cloud_sync::contract::{Ledger, Presence};
    use serde_bytes::ByteBuf;

    use super::*;
    use cloud_sync::rows::Row;

    use crate::sink::table::tests::{row, tensor};
    use crate::store::{FileQuery, Note};

    pub(crate) fn batch(first_sequence: u64, rows: impl IntoIterator<Item = Vec<u8>>) -> Telemetry {
        let rows: Vec<Vec<u8>> = rows.into_iter().collect();
        let (codec, rows) = rows::pack(&rows).unwrap();
        let (stream, rows) = ("s1".to_owned(), ByteBuf::from(rows));
        Telemetry { stream, first_sequence, after: 0, codec, rows, ledger: Ledger::default(), clock: None }
    }

    pub(crate) fn encoded(values: std::ops::Range<u32>) -> impl Iterator<Item = Vec<u8>> {
        values.map(|value| row(value as f32, 1_700_000_000_000 + u64::from(value)).encode().unwrap())
    }

    pub(crate) struct Fixture {
        pub(crate) directory: tempfile::TempDir,
        pub(crate) sink: Sink,
        pub(crate) device: DeviceId,
    }

    impl Fixture {
        pub(crate) async fn new() -> Self {
            let (directory, store) = crate::store::fixture::empty().await;
            let objects =
                Objects::open(&format!("file://{}/objects", directory.path().display())).await.unwrap();
            let sink = Sink::new(store, objects, "plant".into());
            Self { directory, sink, device: "d1".parse().unwrap() }
        }

        async fn accept(&self, telemetry: Telemetry) -> u64 {
            self.sink.accept(&self.device, telemetry).await.unwrap().durable_through
        }

        /// Rows by the index, and rows in the directory: they must be the same.
        async fn rows(&self) -> u64 {
            let query = FileQuery { model: "load".into(), version: 0, since_ms: 0, until_ms: u64::MAX };
            let files = self.sink.store.row_files(&query).await.unwrap();
            let mut on_disk = 0;
            let mut open = vec![self.directory.path().join("objects")];
            while let Some(path) = open.pop() {
                for entry in path.read_dir().unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        open.push(path);
                    } else {
                        let file = std::fs::File::open(&path).unwrap();
                        let metadata = parquet::file::reader::SerializedFileReader::new(file).unwrap();
                        on_disk +=
                            parquet::file::reader::FileReader::metadata(&metadata).file_metadata().num_rows();
                    }
                }
            }
            let indexed = files.iter().map(|file| file.rows).sum();
            assert_eq!(on_disk as u64, indexed, "the directory holds what the index says");
            indexed
        }
    }

    #[tokio::test]
    async fn rows_are_stored_once_however_often_they_are_sent() {
        let fixture = Fixture::new().await;
        assert_eq!(fixture.accept(batch(1, encoded(0..10))).await, 10);
        assert_eq!(fixture.accept(batch(1, encoded(0..10))).await, 10, "the same again");
        assert_eq!(fixture.accept(batch(6, encoded(5..15))).await, 15, "an overlap");
        assert_eq!(fixture.accept(batch(3, encoded(2..4))).await, 15, "an old one");
        assert_eq!(fixture.accept(batch(21, encoded(20..25))).await, 25, "after a gap");
        assert_eq!(fixture.accept(batch(26, [])).await, 25, "an empty one");
        assert_eq!(fixture.rows().await, 20);
        assert_eq!(fixture.sink.counters.repeated.load(Ordering::Relaxed), 17);
    }

    #[tokio::test]
    async fn a_batch_whose_predecessor_was_lost_is_not_stored() {
        let fixture = Fixture::new().await;
        let follows = |after, telemetry| Telemetry { after, ..telemetry };
        assert_eq!(fixture.accept(batch(1, encoded(0..10))).await, 10);
        let early = fixture.sink.accept(&fixture.device, follows(20, batch(21, encoded(20..30)))).await;
        assert!(matches!(early, Err(SinkError::Hole { after: 20, before: 10 })), "11 to 20 are missing");
        assert_eq!(fixture.rows().await, 10);
        assert_eq!(fixture.accept(follows(10, batch(11, encoded(10..20)))).await, 20);
        assert_eq!(fixture.accept(follows(20, batch(21, encoded(20..30)))).await, 30);
        assert_eq!(fixture.rows().await, 30);
    }

    #[tokio::test]
    async fn a_device_begins_so_many_streams_and_no_more() {
        let fixture = Fixture::new().await;
        let of = |stream: u64| Telemetry { stream: format!("s{stream}"), ..batch(1, encoded(0..1)) };
        for stream in 0..MAX_STREAMS {
            fixture.accept(of(stream)).await;
        }
        let more = fixture.sink.accept(&fixture.device, of(MAX_STREAMS)).await;
        assert!(matches!(more, Err(SinkError::Streams(_))), "{more:?}");
        assert_eq!(fixture.accept(Telemetry { after: 1, ..of(0) }).await, 1, "those that are there go on");
    }

    #[tokio::test]
    async fn an_attempt_that_was_cut_off_leaves_nothing() {
        let fixture = Fixture::new().await;
        let attempt = fixture.sink.prepare(&fixture.device, batch(1, encoded(0..10))).await.unwrap();
        // The process ends here, between the object and its commit.
        fixture.sink.write("s1", &attempt).await.unwrap();
        if fixture.sink.store.is_shared() {
            let early = fixture.sink.accept(&fixture.device, batch(1, encoded(0..12))).await;
            assert!(matches!(early, Err(SinkError::Underway)), "the other may still be at it: {early:?}");
        }
        fixture.sink.store.age_attempts(LEFT_ALONE).await;
        assert_eq!(fixture.accept(batch(1, encoded(0..12))).await, 12);
        assert_eq!(fixture.rows().await, 12);
        assert!(
            !fixture.sink.commit(&fixture.device, "s1", &attempt).await.unwrap(),
            "it came back too late"
        );
        assert_eq!(fixture.rows().await, 12);
    }

    #[tokio::test]
    async fn what_a_crash_left_is_swept_and_what_is_being_written_is_not() {
        let fixture = Fixture::new().await;
        let attempt = fixture.sink.prepare(&fixture.device, batch(1, encoded(0..10))).await.unwrap();
        fixture.sink.write("s1", &attempt).await.unwrap();
        fixture.sink.delete_before(crate::now_ms() - 1000).await.unwrap();
        assert!(fixture.sink.commit(&fixture.device, "s1", &attempt).await.unwrap(), "it was under way");
        let left = fixture.sink.prepare(&fixture.device, batch(11, encoded(10..20))).await.unwrap();
        fixture.sink.write("s1", &left).await.unwrap();
        fixture.sink.delete_before(crate::now_ms() + 1000).await.unwrap();
        assert_eq!(fixture.rows().await, 10);
    }

    #[tokio::test]
    async fn an_attempt_that_writes_after_it_was_given_up_leaves_nothing() {
        let fixture = Fixture::new().await;
        let late = fixture.sink.prepare(&fixture.device, batch(1, encoded(0..10))).await.unwrap();
        let files: Vec<RowFile> = late.files.iter().map(|(file, _)| file.clone()).collect();
        fixture.sink.store.begin_attempt("s1", &late.id, &files, crate::now_ms()).await.unwrap();
        fixture.sink.store.age_attempts(LEFT_ALONE).await;
        // Another replica stores the batch, and only then are the objects of this one written; then its process ends.
        assert_eq!(fixture.accept(batch(1, encoded(0..10))).await, 10);
        for (file, parquet) in &late.files {
            fixture.sink.objects.put(&file.path, parquet.clone()).await.unwrap();
        }
        fixture.sink.delete_before(crate::now_ms() + 1000).await.unwrap();
        assert_eq!(fixture.rows().await, 10);
    }

    #[tokio::test]
    async fn a_batch_of_many_shapes_is_stored_over_several_attempts() {
        let fixture = Fixture::new().await;
        let shaped = |value: u8| {
            let input = tensor("x", "UINT8", &[u64::from(value)], vec![1; usize::from(value)]);
            let row = Row { inputs: vec![input], ..row(f32::from(value), 1_700_000_000_000) };
            row.encode().unwrap()
        };
        let mut rows: Vec<Vec<u8>> = (0..150).map(shaped).collect();
        rows[1] = b"nonsense".to_vec();
        let mut receipts = Vec::new();
        while receipts.last() != Some(&150) {
            receipts.push(fixture.accept(batch(1, rows.clone())).await);
            assert!(receipts.is_sorted_by(|a, b| a < b), "no progress: {receipts:?}");
        }
        assert_eq!(receipts, [65, 129, 150]);
        assert_eq!(fixture.rows().await, 149);
        assert_eq!(fixture.sink.counters.refused.load(Ordering::Relaxed), 1);
        let presence = Presence { online: true, boot_id: "b".into(), agent_version: "0.1.0".into() };
        fixture.sink.store.note(&[Note::Presence(fixture.device.clone(), presence)], 5).await.unwrap();
        let device = fixture.sink.store.device(&fixture.device).await.unwrap();
        assert_eq!(device.unwrap().rows_refused, 1);
    }

    #[tokio::test]
    async fn a_poisoned_row_is_counted_and_passed_over() {
        let fixture = Fixture::new().await;
        let mut rows: Vec<Vec<u8>> = encoded(0..3).collect();
        rows[1] = b"nonsense".to_vec();
        assert_eq!(fixture.accept(batch(1, rows)).await, 3);
        assert_eq!(fixture.rows().await, 2);
        assert_eq!(fixture.sink.counters.refused.load(Ordering::Relaxed), 1);
        let endless = fixture.sink.accept(&fixture.device, batch(u64::MAX, encoded(0..2))).await;
        assert!(matches!(endless, Err(SinkError::Sequence(_))), "{endless:?}");
    }
}
