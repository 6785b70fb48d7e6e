//! Reading an archive at offsets, wherever it is: a file, or a server that can be asked for a part of one.
//!
//! Invariants:
//! - Whatever an open answer still covers is read through; only what it does not is asked for.
//! - An answer that breaks is asked for again from the byte at which it broke, as long as each brings
//!   [`ENOUGH`]; otherwise the caller has to wait. So no server can keep it busy for nothing.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::https::Https;
use super::{FetchError, Source};

/// Bytes of use that an answer must bring for the next to be asked for at once: a largest chunk, which takes 5 s on
/// a link of 100 kbit/s.
const ENOUGH: u64 = cloud_sync::limits::MAX_CHUNK_BYTES as u64;

/// Bytes that are read at once to be passed over.
const SCRATCH: usize = 16 * 1024;

/// Where an archive is.
pub(super) enum Origin {
    File(PathBuf),
    Https(Https),
}

/// Bytes of an archive as they come.
pub(super) struct Answer {
    pub(super) bytes: Box<dyn Read>,
    /// What of the archive they are; [`u64::MAX`] for all the rest of it. Begins where the next byte lies.
    pub(super) range: Range<u64>,
}

/// Reads one archive from front to back.
pub(super) struct Reader<'a> {
    origin: &'a Origin,
    /// For messages, without secrets.
    name: String,
    stop: &'a CancellationToken,
    answer: Option<Answer>,
    /// Bytes that the last answer brought, without those that were passed over.
    useful: u64,
    received: u64,
    scratch: Vec<u8>,
}

impl Origin {
    /// Where the file of `source` is.
    pub(super) fn new(source: &Source) -> Result<Self, FetchError> {
        match source {
            Source::File(path) => Ok(Self::File(path.clone())),
            Source::Https(url) => match Https::new(url) {
                Ok(server) => Ok(Self::Https(server)),
                Err(error) => Err(FetchError::Later(error.to_string())),
            },
            Source::Registry => Err(FetchError::Never("the registry's bundles are no files".to_owned())),
        }
    }

    /// Gives the bytes of `range`, or more.
    fn open(&self, range: Range<u64>) -> io::Result<Answer> {
        match self {
            Self::File(path) => open_file(path, range),
            Self::Https(server) => server.open(range),
        }
    }
}

impl<'a> Reader<'a> {
    /// Reads `origin`, which is `source`, until `stop`.
    pub(super) fn new(origin: &'a Origin, source: &Source, stop: &'a CancellationToken) -> Self {
        let (name, scratch) = (source.to_string(), vec![0; SCRATCH]);
        Self { origin, name, stop, answer: None, useful: 0, received: 0, scratch }
    }

    /// Bytes that came so far, of use or not.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Fills `buffer` with what lies at `offset`. What has to be asked for for that is asked for up to `end`, which
    /// is where the caller will go on to.
    pub(super) fn read(&mut self, offset: u64, end: u64, buffer: &mut [u8]) -> Result<(), FetchError> {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            if self.stop.is_cancelled() {
                return Err(self.later("it is no longer wanted"));
            }
            let mut answer = self.answer(at..end)?;
            let before = usize::try_from(at.saturating_sub(answer.range.start)).unwrap_or(usize::MAX);
            let room = match self.scratch.get_mut(..before.min(SCRATCH)) {
                Some(passed_over) if before > 0 => passed_over,
                _ => &mut *rest,
            };
            match answer.bytes.read(room) {
                Ok(0) => self.resume(&format!("it ends at byte {}", answer.range.start))?,
                Ok(count) => {
                    answer.range.start += count as u64;
                    self.received += count as u64;
                    if before == 0 {
                        at += count as u64;
                        self.useful += count as u64;
                        rest = std::mem::take(&mut rest).split_at_mut(count).1;
                    }
                    self.answer = Some(answer);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.answer = Some(answer),
                Err(error) => self.resume(&error.to_string())?,
            }
        }
        Ok(())
    }

    /// Why the bundle does not come now.
    pub(super) fn later(&self, why: impl std::fmt::Display) -> FetchError {
        FetchError::Later(format!("the bundle at {}: {why}", self.name))
    }

    /// The answer that covers the beginning of `range`.
    fn answer(&mut self, range: Range<u64>) -> Result<Answer, FetchError> {
        match self.answer.take() {
            Some(answer) if answer.range.contains(&range.start) => return Ok(answer),
            // Its end is read as well, and then its connection serves the next request.
            Some(mut answer) if answer.range.is_empty() => drop(answer.bytes.read(&mut [0])),
            _ => {}
        }
        self.useful = 0;
        self.origin.open(range).map_err(|error| self.later(error))
    }

    fn resume(&self, why: &str) -> Result<(), FetchError> {
        if self.useful < ENOUGH {
            return Err(self.later(why));
        }
        tracing::debug!(source = %self.name, why, "the bundle's bytes broke off; asking for the rest");
        Ok(())
    }
}

fn open_file(path: &Path, range: Range<u64>) -> io::Result<Answer> {
    let metadata = path.metadata().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::other("it is not there; is its directory mounted?"),
        _ => error,
    })?;
    // Opening a pipe could wait for ever.
    if !metadata.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(range.start))?;
    Ok(Answer { bytes: Box::new(file), range })
}
