//! The one-file form of a bundle: a plain tar, the manifest first, then the files in the manifest's order.
//!
//! Nothing in it depends on time, user or machine, so the same bundle gives the same bytes. Extensions of the
//! format (long names, sparse files) are not read: they have no bounds, and no bundle needs them.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{BundleError, BundlePath, Manifest, io_error, limit, open_file};
use crate::limits;

/// The name of the first entry. No [`BundlePath`] can be equal to it.
const MANIFEST_ENTRY: &str = ".edgewise-manifest";

/// An archive on disk and where in it each file begins.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    begins: BTreeMap<BundlePath, u64>,
}

impl Archive {
    /// Reads the archive's directory and its manifest. The entries must be exactly the manifest's files.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<u8>), BundleError> {
        let not_a_bundle = |why: String| BundleError::NotABundle(path.to_owned(), why);
        let reading = |error: io::Error| not_a_bundle(format!("it is not read as a tar ({error})"));
        let file = open_file(path)?;
        let length = file.metadata().map_err(io_error("examining", path))?.len();
        let mut tar = tar::Archive::new(file);
        let mut entries = tar.entries_with_seek().map_err(reading)?.raw(true);
        let mut first =
            entries.next().ok_or_else(|| not_a_bundle("it is empty".to_owned()))?.map_err(reading)?;
        if first.path_bytes().as_ref() != MANIFEST_ENTRY.as_bytes() {
            return Err(not_a_bundle(format!("its first entry is not {MANIFEST_ENTRY}")));
        }
        limit("the manifest", first.size(), limits::MAX_MANIFEST_BYTES as u64)?;
        let mut encoded = Vec::new();
        first.read_to_end(&mut encoded).map_err(reading)?;
        let manifest = Manifest::decode(&encoded)?;
        let mut begins = BTreeMap::new();
        for file in &manifest.files {
            let entry = entries
                .next()
                .ok_or_else(|| not_a_bundle(format!("it ends before {}", file.path)))?
                .map_err(reading)?;
            let same = entry.path_bytes().as_ref() == file.path.as_str().as_bytes();
            if !same || !entry.header().entry_type().is_file() || entry.size() != file.size {
                return Err(not_a_bundle(format!("{} is not where the manifest says", file.path)));
            }
            let begin = entry.raw_file_position();
            // Checked here, so that nobody makes room for bytes that are promised and not there.
            if begin.saturating_add(file.size) > length {
                return Err(not_a_bundle(format!("it ends within {}", file.path)));
            }
            begins.insert(file.path.clone(), begin);
        }
        match entries.next() {
            None => Ok((Self { path: path.to_owned(), begins }, encoded)),
            Some(_) => Err(not_a_bundle("it holds more than its manifest lists".to_owned())),
        }
    }

    pub(super) fn reader(&self, path: &BundlePath) -> Result<Box<dyn Read + '_>, BundleError> {
        let begin = self.begins.get(path).ok_or_else(|| BundleError::Missing(path.clone()))?;
        let mut file = open_file(&self.path)?;
        file.seek(SeekFrom::Start(*begin)).map_err(io_error("reading", &self.path))?;
        Ok(Box::new(file))
    }
}

/// Writes an archive from the files' bytes as they come, in the manifest's order.
pub(super) struct Writer<'a, W: Write> {
    output: W,
    files: std::slice::Iter<'a, super::FileEntry>,
    /// Bytes that the current file still lacks, and the zeros that fill its last block.
    missing: u64,
    padding: u64,
}

impl<'a, W: Write> Writer<'a, W> {
    pub(super) fn new(output: W, manifest: &'a Manifest, encoded: &[u8]) -> Result<Self, BundleError> {
        let mut writer = Self { output, files: manifest.files.iter(), missing: 0, padding: 0 };
        writer.header(MANIFEST_ENTRY, encoded.len() as u64)?;
        writer.put(encoded)?;
        writer.pad()?;
        writer.advance()?;
        Ok(writer)
    }

    /// The next bytes of the files; a chunk never spans two of them.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        self.put(bytes)?;
        self.missing = self.missing.saturating_sub(bytes.len() as u64);
        self.advance()
    }

    pub(super) fn finish(mut self) -> Result<(), BundleError> {
        if self.missing > 0 || self.files.next().is_some() {
            return Err(BundleError::Damaged("the archive".to_owned()));
        }
        // A tar ends with two empty blocks.
        self.put(&[0; 1024])?;
        self.output.flush().map_err(writing)
    }

    fn advance(&mut self) -> Result<(), BundleError> {
        while self.missing == 0 {
            self.pad()?;
            let Some(file) = self.files.next() else { break };
            self.header(file.path.as_str(), file.size)?;
            self.missing = file.size;
        }
        Ok(())
    }

    fn header(&mut self, path: &str, size: u64) -> Result<(), BundleError> {
        let mut header = tar::Header::new_ustar();
        header.set_path(Path::new(path)).map_err(writing)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.padding = size.next_multiple_of(512) - size;
        self.put(header.as_bytes())
    }

    fn pad(&mut self) -> Result<(), BundleError> {
        let zeros = [0; 512];
        let padding = zeros.get(..usize::try_from(self.padding).unwrap_or(0)).unwrap_or_default();
        self.padding = 0;
        self.put(padding)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        self.output.write_all(bytes).map_err(writing)
    }
}

fn writing(source: io::Error) -> BundleError {
    BundleError::Io { doing: "writing", path: PathBuf::from("the bundle"), source }
}
