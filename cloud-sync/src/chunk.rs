//! Chunks: a file's bytes cut by their content, so that equal parts of two versions are equal chunks.

use std::io::{self, Read};

use fastcdc::v2020::{Error as CutError, StreamCDC};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::limits::{AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};

/// A chunk by name and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its size, 1 to [`MAX_CHUNK_BYTES`].
    pub size: u32,
}

/// Reads `source` to its end and hands over each chunk with its bytes, in order.
///
/// The same bytes give the same chunks on every machine and in every version of this product: the cut is part
/// of the contract, since a bundle's digest covers the list of its chunks.
pub fn cut<E: From<io::Error>>(
    source: impl Read,
    mut each: impl FnMut(ChunkRef, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    for chunk in StreamCDC::new(source, MIN_CHUNK_BYTES, AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES) {
        let bytes = chunk.map_err(into_io)?.data;
        // At most MAX_CHUNK_BYTES, by the cutter's contract.
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        each(ChunkRef { digest: Digest::of(&bytes), size }, &bytes)?;
    }
    Ok(())
}

fn into_io(error: CutError) -> io::Error {
    match error {
        CutError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut output = vec![0; bytes];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[seed as u8]);
        hasher.finalize_xof().fill(&mut output);
        output
    }

    fn chunks(bytes: &[u8]) -> Vec<ChunkRef> {
        let mut list = Vec::new();
        cut(bytes, |chunk, _| {
            list.push(chunk);
            Ok::<(), io::Error>(())
        })
        .unwrap();
        list
    }

    #[test]
    fn chunks_cover_the_bytes_within_their_bounds() {
        let bytes = noise(1, 1_000_000);
        let list = chunks(&bytes);
        assert_eq!(list.iter().map(|c| c.size as usize).sum::<usize>(), bytes.len());
        assert!(list.iter().all(|c| c.size as usize <= MAX_CHUNK_BYTES));
        assert!(chunks(&[]).is_empty());
    }

    #[test]
    fn an_insertion_changes_few_chunks() {
        let before = noise(1, 1_000_000);
        let mut after = before.clone();
        after.splice(500_000..500_000, noise(2, 1000));
        let old: std::collections::HashSet<_> = chunks(&before).into_iter().collect();
        let fresh = chunks(&after).iter().filter(|chunk| !old.contains(chunk)).count();
        assert!((1..=4).contains(&fresh), "{fresh} of {} chunks are new", old.len());
    }

    #[test]
    fn the_cut_is_part_of_the_contract() {
        let list = chunks(&noise(7, 100_000));
        let sizes: Vec<u32> = list.iter().map(|c| c.size).collect();
        assert_eq!(sizes, GOLDEN_SIZES);
    }

    const GOLDEN_SIZES: &[u32] = &[40252, 10328, 21171, 18402, 9847];
}
