//! The layout of the one-file form: a plain tar, the manifest first, then the files in the manifest's order.
//!
//! All that knows where something lies in an archive is here. An entry is a header of [`HEADER_BYTES`] and its
//! content, filled up with zeros to a whole block; so from the manifest follows where every chunk lies, and a part
//! of an archive can be read without what is before it.

use std::path::Path;

use super::{BundleError, FileEntry, Manifest, io_error, limit};
use crate::chunk::ChunkRef;
use crate::limits;

/// Bytes of an entry's header, and of a block.
pub const HEADER_BYTES: usize = 512;

/// The name of the first entry. No [`BundlePath`](super::BundlePath) can be equal to it.
const MANIFEST_ENTRY: &str = ".edgewise-manifest";

/// The size of the manifest, in bytes, by the first header of an archive.
///
/// # Errors
/// The header is not that of a bundle, or announces more than [`limits::MAX_MANIFEST_BYTES`].
pub fn manifest_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize, BundleError> {
    let header = tar::Header::from_byte_slice(header);
    let sum = header.as_bytes().iter().enumerate().fold(0, |sum, (at, byte)| {
        // The sum counts itself as blanks.
        sum + u32::from(if (148..156).contains(&at) { b' ' } else { *byte })
    });
    if header.cksum().ok() != Some(sum) {
        return Err(BundleError::Manifest("it is not read as a tar".to_owned()));
    }
    if header.path_bytes().as_ref() != MANIFEST_ENTRY.as_bytes() || !header.entry_type().is_file() {
        return Err(BundleError::Manifest(format!("its first entry is not {MANIFEST_ENTRY}")));
    }
    let size = header.entry_size().map_err(|error| BundleError::Manifest(error.to_string()))?;
    limit("the manifest", size, limits::MAX_MANIFEST_BYTES as u64)?;
    Ok(usize::try_from(size).unwrap_or(limits::MAX_MANIFEST_BYTES))
}

/// Each chunk of each file and where its bytes begin in the archive, in the archive's order. `encoded_bytes` is
/// the size of the encoded manifest.
pub fn chunk_places(manifest: &Manifest, encoded_bytes: usize) -> impl Iterator<Item = (u64, ChunkRef)> {
    file_places(manifest, encoded_bytes).flat_map(|(begin, file)| {
        file.chunks.iter().scan(begin, |next, chunk| {
            let at = *next;
            *next += u64::from(chunk.size);
            Some((at, *chunk))
        })
    })
}

/// Each file and where its bytes begin in the archive.
pub(super) fn file_places(
    manifest: &Manifest,
    encoded_bytes: usize,
) -> impl Iterator<Item = (u64, &FileEntry)> {
    let header = HEADER_BYTES as u64;
    let first = header + padded(encoded_bytes as u64) + header;
    // No overflow: a manifest's sizes are bounded when it is decoded.
    manifest.files.iter().scan(first, move |next, file| {
        let begin = *next;
        *next += padded(file.size) + header;
        Some((begin, file))
    })
}

/// The header of the manifest's entry.
pub(super) fn manifest_header(encoded_bytes: usize) -> Result<tar::Header, BundleError> {
    header(MANIFEST_ENTRY, encoded_bytes as u64)
}

/// The header of a file's entry. Nothing in it depends on time, user or machine.
pub(super) fn file_header(file: &FileEntry) -> Result<tar::Header, BundleError> {
    header(file.path.as_str(), file.size)
}

/// The zeros that fill the last block of `size` bytes.
pub(super) fn padding(size: u64) -> &'static [u8] {
    static ZEROS: [u8; HEADER_BYTES] = [0; HEADER_BYTES];
    let missing = usize::try_from(padded(size) - size).unwrap_or(0);
    ZEROS.get(..missing).unwrap_or_default()
}

fn padded(size: u64) -> u64 {
    size.next_multiple_of(HEADER_BYTES as u64)
}

fn header(name: &str, size: u64) -> Result<tar::Header, BundleError> {
    let mut header = tar::Header::new_ustar();
    header.set_path(Path::new(name)).map_err(io_error("writing", Path::new(name)))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}
