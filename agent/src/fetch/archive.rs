//! Pulling a bundle out of a `.bundle` file that lies elsewhere: its manifest, and the chunks that are not here.
//!
//! Invariants:
//! - What is on the disk is not asked for, be it from an older version or from before a break or a restart; all
//!   that is remembered of a pull is what it has stored.
//! - Nothing that the file says is believed: its manifest and each chunk are compared with their digests before
//!   they are kept. A file with other bytes may be put right, so it is looked at again later.
//! - Memory holds one chunk at a time, beside the manifest.

use std::collections::HashSet;

use cloud_sync::bundle::{Manifest, layout};
use cloud_sync::chunk::ChunkRef;
use cloud_sync::contract::Transfer;
use cloud_sync::digest::Digest;
use cloud_sync::limits;
use tokio_util::sync::CancellationToken;

use super::reader::{Origin, Reader};
use super::{FetchError, Source, prepare};
use crate::vault::{Vault, VaultError};

/// Bytes between two missing chunks that are read through rather than left out by another request: a request takes
/// a round trip, in which a link of 10 Mbit/s brings as much at 200 ms.
const GAP: u64 = 256 * 1024;

/// What is pulled, and into what.
pub(super) struct Pull<'a> {
    pub(super) vault: &'a Vault,
    pub(super) digest: Digest,
    /// The bundle's size in bytes, where it was announced.
    pub(super) size: Option<u64>,
    pub(super) source: &'a Source,
    pub(super) stop: &'a CancellationToken,
}

impl Pull<'_> {
    /// Brings the bundle to the disk. Blocking.
    pub(super) fn run(&self, origin: &Origin) -> Result<Transfer, FetchError> {
        let mut reader = Reader::new(origin, self.source, self.stop);
        let encoded = match self.vault.encoded_manifest(&self.digest) {
            Some(encoded) => encoded,
            None => self.manifest(&mut reader)?,
        };
        let manifest = Manifest::decode(&encoded).map_err(VaultError::from)?;
        let missing = prepare(self.vault, &manifest, self.size)?;
        let missing_bytes = missing.iter().map(|chunk| u64::from(chunk.size)).sum();
        let mut missing: HashSet<Digest> = missing.iter().map(|chunk| chunk.digest).collect();
        let places: Vec<(u64, ChunkRef)> = layout::chunk_places(&manifest, encoded.len())
            .filter(|(_, chunk)| missing.remove(&chunk.digest))
            .collect();
        for run in places.chunk_by(|place, (next, _)| next.saturating_sub(end(place)) <= GAP) {
            self.chunks(&mut reader, run)?;
        }
        Ok(Transfer {
            fetched_bytes: reader.received(),
            shared_bytes: manifest.size().saturating_sub(missing_bytes),
            ..Transfer::default()
        })
    }

    fn manifest(&self, reader: &mut Reader) -> Result<Vec<u8>, FetchError> {
        let mut header = [0; layout::HEADER_BYTES];
        let begin = header.len() as u64;
        reader.read(0, begin, &mut header)?;
        let size = layout::manifest_bytes(&header).map_err(|why| self.foreign(reader, &why))?;
        let mut encoded = vec![0; size];
        reader.read(begin, begin + size as u64, &mut encoded)?;
        match self.vault.put_manifest(&self.digest, &encoded) {
            Ok(_) => Ok(encoded),
            Err(VaultError::Foreign(_)) => Err(self.foreign(reader, &"its manifest has another digest")),
            Err(error) => Err(error.into()),
        }
    }

    /// Chunks that one request brings.
    fn chunks(&self, reader: &mut Reader, run: &[(u64, ChunkRef)]) -> Result<(), FetchError> {
        let reach = run.last().map_or(0, end);
        let mut buffer = vec![0; limits::MAX_CHUNK_BYTES];
        for (offset, chunk) in run {
            // A manifest is not decoded where a chunk is larger.
            let Some(bytes) = buffer.get_mut(..chunk.size as usize) else { continue };
            reader.read(*offset, reach, bytes)?;
            match self.vault.put_chunk(chunk, bytes) {
                Ok(()) => {}
                Err(VaultError::Foreign(_)) => {
                    let why = format!("the bytes at {offset} have another digest than its manifest says");
                    return Err(self.foreign(reader, &why));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn foreign(&self, reader: &Reader, why: &dyn std::fmt::Display) -> FetchError {
        reader.later(format_args!("the file is not the bundle {}: {why}", self.digest))
    }
}

fn end((offset, chunk): &(u64, ChunkRef)) -> u64 {
    offset + u64::from(chunk.size)
}

#[cfg(test)]
mod tests;
