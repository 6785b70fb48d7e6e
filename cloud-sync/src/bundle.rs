//! Bundles: what is registered and moved. A directory with a `model.toml`, a bare `.onnx` file, or the one-file
//! form: a plain tar whose first entry is the manifest.
//!
//! Invariants:
//! - The digest of a bundle is the digest of its manifest; the manifest lists every file and every chunk of it,
//!   so equal digests mean equal bytes. The same input gives the same digest, wherever it lies.
//! - No path of a bundle leaves its directory: paths are [`BundlePath`]s, symbolic links are refused.
//! - What is read through [`Bundle::read`] has been compared with the manifest.

mod archive;
mod description;
mod directory;
pub mod layout;
mod manifest;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub use description::{Accelerator, Description, Golden, Labels, ModelSection, Onnx, Resources};
pub use manifest::{BundlePath, FileEntry, Manifest};

use crate::chunk::{self, ChunkRef};
use crate::digest::Digest;
use crate::limits;

/// The name of the file that describes a bundle.
pub const DESCRIPTION_FILE: &str = "model.toml";

/// Why something is no bundle, or no longer the one it was.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Reading or writing failed.
    #[error("{doing} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Neither a directory, an `.onnx` file nor a tar.
    #[error("{path} is no bundle: {why}", path = .0.display(), why = .1)]
    NotABundle(PathBuf, String),
    /// A path that could leave the directory, or that other systems can't hold.
    #[error("{0:?} can't be a path in a bundle: {1}")]
    Path(String, &'static str),
    /// `model.toml` is wrong.
    #[error("model.toml: {0}")]
    Description(String),
    /// `model.toml` names a file that is not there.
    #[error("model.toml names {0}, which is not in the bundle")]
    Missing(BundlePath),
    /// The manifest can't be read or contradicts itself.
    #[error("manifest: {0}")]
    Manifest(String),
    /// Bytes are not those that the manifest promises.
    #[error("{0} is not what the manifest says: the bytes were damaged or replaced")]
    Damaged(String),
    /// A bound is broken.
    #[error("{what} is {given}, the limit is {limit}")]
    Limit {
        /// What is too large.
        what: String,
        /// How large it is.
        given: u64,
        /// How large it may be.
        limit: u64,
    },
}

/// A bundle that can be read.
#[derive(Debug)]
pub struct Bundle {
    manifest: Manifest,
    encoded: Vec<u8>,
    description: Description,
    source: Source,
}

/// Where a bundle's bytes are.
#[derive(Debug)]
enum Source {
    Directory(directory::Directory),
    Archive(archive::Archive),
}

impl Bundle {
    /// Opens the bundle at `path`, whichever form it has, and reads its description. Blocking; reads every
    /// byte once where there is no manifest yet.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let metadata = path.metadata().map_err(io_error("opening", path))?;
        if metadata.is_dir() {
            Self::from_directory(directory::Directory::scan(path)?)
        } else if path.extension().is_some_and(|extension| extension == "onnx") {
            Self::from_directory(directory::Directory::of_onnx(path)?)
        } else {
            let (archive, encoded) = archive::Archive::open(path)?;
            Self::new(encoded, Source::Archive(archive))
        }
    }

    /// What the bundle is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's bytes, as they are moved and hashed.
    pub fn encoded_manifest(&self) -> &[u8] {
        &self.encoded
    }

    /// What `model.toml` says.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The digest of the bundle.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encoded)
    }

    /// The whole of a file of the bundle, as the manifest promises it.
    pub fn read(&self, path: &BundlePath) -> Result<Vec<u8>, BundleError> {
        let entry = self.manifest.file(path).ok_or_else(|| BundleError::Missing(path.clone()))?;
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0));
        self.chunks_of(entry, |_, chunk| {
            bytes.extend_from_slice(chunk);
            Ok::<(), BundleError>(())
        })?;
        Ok(bytes)
    }

    /// Hands over every chunk of the bundle once for each place that it has, compared with the manifest.
    pub fn each_chunk<E: From<BundleError>>(
        &self,
        mut each: impl FnMut(ChunkRef, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.manifest.files.iter().try_for_each(|entry| self.chunks_of(entry, &mut each))
    }

    /// Writes the one-file form. `progress` is told the bytes written so far, for a progress bar.
    pub fn write_archive(
        &self,
        output: impl Write,
        mut progress: impl FnMut(u64),
    ) -> Result<(), BundleError> {
        let mut writer = archive::Writer::new(output, &self.manifest, &self.encoded)?;
        let mut written = 0;
        self.each_chunk(|_, bytes| {
            writer.write(bytes)?;
            written += bytes.len() as u64;
            progress(written);
            Ok::<(), BundleError>(())
        })?;
        writer.finish()
    }

    fn from_directory(directory: directory::Directory) -> Result<Self, BundleError> {
        let mut files = Vec::new();
        for path in directory.paths() {
            let mut entry = FileEntry { path: path.clone(), size: 0, chunks: Vec::new() };
            let describe = io_error("reading", Path::new(path.as_str()));
            let cut = chunk::cut(directory.reader(path)?, |chunk, _| {
                entry.size += u64::from(chunk.size);
                entry.chunks.push(chunk);
                Ok::<(), io::Error>(())
            });
            cut.map_err(describe)?;
            files.push(entry);
        }
        Self::new(Manifest::new(files)?.encode()?, Source::Directory(directory))
    }

    fn new(encoded: Vec<u8>, source: Source) -> Result<Self, BundleError> {
        let manifest = Manifest::decode(&encoded)?;
        let mut bundle = Self { manifest, encoded, description: Description::default(), source };
        let path = BundlePath::new(DESCRIPTION_FILE)?;
        let entry = bundle.manifest.file(&path).ok_or_else(|| BundleError::Missing(path.clone()))?;
        limit("model.toml", entry.size, limits::MAX_DESCRIPTION_BYTES)?;
        bundle.description = Description::parse(&bundle.read(&path)?)?;
        bundle.description.check_against(&bundle.manifest)?;
        Ok(bundle)
    }

    /// The chunks of one file, each compared with the manifest before it is handed over.
    fn chunks_of<E: From<BundleError>>(
        &self,
        entry: &FileEntry,
        mut each: impl FnMut(ChunkRef, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = match &self.source {
            Source::Directory(directory) => directory.reader(&entry.path)?,
            Source::Archive(archive) => archive.reader(&entry.path)?,
        };
        let damaged = || BundleError::Damaged(entry.path.to_string());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(),
            _ => io_error("reading", Path::new(entry.path.as_str()))(error),
        };
        let mut buffer = Vec::new();
        for chunk in &entry.chunks {
            buffer.resize(chunk.size as usize, 0);
            reader.read_exact(&mut buffer).map_err(failed)?;
            if Digest::of(&buffer) != chunk.digest {
                return Err(damaged().into());
            }
            each(*chunk, &buffer)?;
        }
        Ok(())
    }
}

/// Writes the one-file form of a bundle whose chunks are elsewhere: `fetch` is asked for each in turn.
pub fn write_archive_from<E: From<BundleError>>(
    output: impl Write,
    encoded_manifest: &[u8],
    mut fetch: impl FnMut(&ChunkRef) -> Result<Vec<u8>, E>,
) -> Result<(), E> {
    let manifest = Manifest::decode(encoded_manifest)?;
    let mut writer = archive::Writer::new(output, &manifest, encoded_manifest)?;
    for chunk in manifest.chunks() {
        writer.write(&fetch(chunk)?)?;
    }
    Ok(writer.finish()?)
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BundleError + use<> {
    let path = path.to_owned();
    move |source| BundleError::Io { doing, path: path.clone(), source }
}

fn limit(what: &str, given: u64, limit: u64) -> Result<(), BundleError> {
    if given > limit { Err(BundleError::Limit { what: what.to_owned(), given, limit }) } else { Ok(()) }
}

fn open_file(path: &Path) -> Result<File, BundleError> {
    let opened = path.metadata().and_then(|metadata| match metadata.is_file() {
        true => File::open(path),
        // To open a pipe waits for somebody who may never come.
        false => Err(io::Error::other("it is not a file")),
    });
    opened.map_err(io_error("opening", path))
}

#[cfg(test)]
mod tests;
