//! Models on disk: chunks by content, manifests by digest, and nothing that can be loaded before it is verified.
//!
//! Invariants:
//! - A chunk or a manifest is found by its digest, and only bytes with that digest are stored.
//! - A [`Verified`] bundle has been hashed from the disk, byte for byte, since this process began; nothing else
//!   can be loaded, by type.
//! - What is verified is durable: the file system is synced before [`Vault::verify`] returns.
//! - The vault never takes more of the disk than its budget: what is kept and what kept bundles still lack fit into it,
//!   or nothing more is fetched. Counted in whole blocks, as the disk does. For a while it takes 4 MiB more where a part of
//!   a pack is given back and the file system can't have holes in files.
//! - What no kept bundle uses is removed by [`Vault::collect`]; while a kept manifest can't be read, nothing is.
//!
//! Chunks and manifests are not synced one by one: what a power cut damaged is found by its hash and fetched again.

mod packs;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use cloud_sync::bundle::{Bundle, BundleError, BundlePath, Description, Manifest};
use cloud_sync::chunk::ChunkRef;
use cloud_sync::digest::Digest;
use cloud_sync::limits;

use crate::durable;
use packs::Packs;

/// What a file system gives out at once, save for very large ones: a file takes a multiple of it.
const BLOCK_BYTES: u64 = 4096;

/// The bundles of a device.
#[derive(Debug)]
pub struct Vault {
    chunks: Arc<Packs>,
    manifests: PathBuf,
    budget: u64,
    /// The bundles in use.
    kept: Mutex<BTreeSet<Digest>>,
    /// Shared by those who store and look for what is stored, held while something is removed.
    removing: RwLock<()>,
}

/// A bundle whose every byte has been compared with its digest.
#[derive(Debug)]
pub struct Verified {
    digest: Digest,
    manifest: Manifest,
    description: Description,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Vault { chunks: Arc<Packs> },
    Local(Box<Bundle>),
}

/// Why the vault can't do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Reading or writing failed.
    #[error("{doing} {path}: {source}", path = .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Bytes that are not what they are called.
    #[error("the bytes given for {0} have another digest")]
    Foreign(Digest),
    /// Chunks that are missing or damaged; damaged ones are gone now and can be fetched again.
    #[error("{0} chunks of bundle {1} are missing or damaged")]
    Incomplete(usize, Digest),
    /// The bundle itself is wrong, whoever sends it.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle does not fit.
    #[error(
        "the bundle needs {needed} more bytes, and {used} of the {budget} bytes for models are used by versions in \
         use; raise vault.max_bytes or stop serving a model"
    )]
    Budget {
        /// Bytes that are still missing.
        needed: u64,
        /// Bytes that are kept.
        used: u64,
        /// The budget.
        budget: u64,
    },
}

impl Vault {
    /// Opens the vault in `directory`, making it where there is none.
    pub fn open(directory: &Path, budget: u64) -> Result<Self, VaultError> {
        let manifests = directory.join("manifests");
        fs::create_dir_all(&manifests).map_err(io_error("making", &manifests))?;
        let chunks = Arc::new(Packs::open(directory.join("chunks"))?);
        Ok(Self { chunks, manifests, budget, kept: Mutex::default(), removing: RwLock::default() })
    }

    /// Keeps a manifest. It must be what `digest` names.
    pub fn put_manifest(&self, digest: &Digest, bytes: &[u8]) -> Result<Manifest, VaultError> {
        if Digest::of(bytes) != *digest {
            return Err(VaultError::Foreign(*digest));
        }
        let manifest = Manifest::decode(bytes)?;
        self.room_for(on_disk(bytes.len() as u64))?;
        let path = self.manifests.join(digest.to_string());
        let _shared = self.share();
        let temporary = path.with_extension("new");
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(io_error("writing", &path))?;
        Ok(manifest)
    }

    /// The manifest of a bundle; `None` where it is not here or is damaged.
    pub fn manifest(&self, digest: &Digest) -> Option<Manifest> {
        Manifest::decode(&self.encoded_manifest(digest)?).ok()
    }

    /// The bytes of a bundle's manifest; `None` where it is not here or is damaged.
    pub fn encoded_manifest(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.manifests.join(digest.to_string())).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// The chunks of a manifest that are not here, each once. A chunk of the right size counts as here; whether
    /// it is whole is found out by [`Vault::verify`].
    pub fn missing(&self, manifest: &Manifest) -> Vec<ChunkRef> {
        let _shared = self.share();
        manifest.distinct_chunks().into_iter().filter(|chunk| !self.chunks.has(chunk)).collect()
    }

    /// Keeps a chunk. Its bytes must be what `chunk` names.
    pub fn put_chunk(&self, chunk: &ChunkRef, bytes: &[u8]) -> Result<(), VaultError> {
        if bytes.len() != chunk.size as usize || Digest::of(bytes) != chunk.digest {
            return Err(VaultError::Foreign(chunk.digest));
        }
        let _shared = self.share();
        self.chunks.put(chunk, bytes)
    }

    /// Says which bundles are in use. Their bytes stay; those of others go with [`Vault::collect`].
    pub fn keep(&self, bundles: BTreeSet<Digest>) {
        *self.kept() = bundles;
    }

    /// Makes room for what the bundles in use still lack, or says why there is none.
    pub fn make_room(&self) -> Result<(), VaultError> {
        self.room_for(self.lacking())
    }

    /// Makes room for `needed` bytes of disk, or says why there is none.
    fn room_for(&self, needed: u64) -> Result<(), VaultError> {
        if self.used()?.saturating_add(needed) <= self.budget {
            return Ok(());
        }
        self.collect()?;
        let used = self.used()?;
        if used.saturating_add(needed) <= self.budget {
            Ok(())
        } else {
            Err(VaultError::Budget { needed, used, budget: self.budget })
        }
    }

    /// Bytes of disk that the bundles in use still lack, as far as their manifests are here.
    fn lacking(&self) -> u64 {
        let manifests: Vec<Manifest> =
            self.kept().iter().filter_map(|digest| self.manifest(digest)).collect();
        let missing: HashSet<ChunkRef> =
            manifests.iter().flat_map(|manifest| self.missing(manifest)).collect();
        Packs::needed(missing.len() as u64, missing.iter().map(|chunk| u64::from(chunk.size)).sum())
    }

    /// Reads a bundle from the disk and compares every byte. Damaged chunks are forgotten, so that the next fetch
    /// asks for them.
    pub fn verify(&self, digest: &Digest) -> Result<Verified, VaultError> {
        let manifest = self.manifest(digest).ok_or(VaultError::Incomplete(1, *digest))?;
        let mut wrong = 0;
        for chunk in manifest.distinct_chunks() {
            match self.chunks.read(&chunk.digest)? {
                Some(bytes) if Digest::of(&bytes) == chunk.digest => {}
                _ => {
                    wrong += 1;
                    self.chunks.forget(&chunk.digest);
                }
            }
        }
        if wrong > 0 {
            return Err(VaultError::Incomplete(wrong, *digest));
        }
        durable::sync_file_system(&self.manifests).map_err(io_error("syncing", &self.manifests))?;
        let source = Source::Vault { chunks: self.chunks.clone() };
        let mut verified =
            Verified { digest: *digest, manifest, description: Description::default(), source };
        let description = BundlePath::new(cloud_sync::bundle::DESCRIPTION_FILE)?;
        verified.description =
            Description::parse(&verified.read_bounded(&description, limits::MAX_DESCRIPTION_BYTES)?)?;
        Ok(verified)
    }

    /// Removes what no bundle in use uses.
    pub fn collect(&self) -> Result<(), VaultError> {
        let _alone = self.removing.write().unwrap_or_else(PoisonError::into_inner);
        let kept = self.kept().clone();
        let mut chunks = HashSet::new();
        for digest in kept.iter() {
            let path = self.manifests.join(digest.to_string());
            match fs::read(&path) {
                Ok(bytes) if Digest::of(&bytes) == *digest => {
                    chunks.extend(Manifest::decode(&bytes)?.chunks().map(|chunk| chunk.digest));
                }
                // Its bundle is fetched anew, manifest first.
                Ok(_) => fs::remove_file(&path).map_err(io_error("removing", &path))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(VaultError::Io { doing: "reading", path, source }),
            }
        }
        let manifests: HashSet<String> = kept.iter().map(Digest::to_string).collect();
        remove_others(&self.manifests, &manifests)?;
        self.chunks.retain(&chunks)
    }

    /// Bytes of disk that the vault takes.
    pub fn used(&self) -> Result<u64, VaultError> {
        let mut used = self.chunks.used();
        for file in list(&self.manifests)? {
            used += fs::metadata(&file).map_or(0, |metadata| on_disk(metadata.len()));
        }
        Ok(used)
    }

    fn share(&self) -> RwLockReadGuard<'_, ()> {
        self.removing.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verified {
    /// A bundle that lies on this machine and was given by its owner.
    pub fn local(path: &Path) -> Result<Self, VaultError> {
        let bundle = Bundle::open(path)?;
        bundle.each_chunk(|_, _| Ok::<(), BundleError>(()))?;
        Ok(Self {
            digest: bundle.digest(),
            manifest: bundle.manifest().clone(),
            description: bundle.description().clone(),
            source: Source::Local(Box::new(bundle)),
        })
    }

    /// The bundle's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What `model.toml` says.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The ONNX file.
    pub fn onnx(&self) -> Result<Vec<u8>, VaultError> {
        self.read_bounded(&self.description.onnx()?, limits::MAX_BUNDLE_BYTES)
    }

    /// Bytes of the ONNX file.
    pub fn onnx_bytes(&self) -> Result<u64, VaultError> {
        let path = self.description.onnx()?;
        Ok(self.manifest.file(&path).map_or(0, |entry| entry.size))
    }

    /// The golden samples, where there are any.
    pub fn golden(&self) -> Result<Option<Vec<u8>>, VaultError> {
        let path = self.description.golden()?;
        path.map(|path| self.read_bounded(&path, limits::MAX_GOLDEN_BYTES)).transpose()
    }

    /// The names of the classes, in order; empty where there are none.
    pub fn labels(&self) -> Result<Vec<String>, VaultError> {
        let Some(path) = self.description.labels()? else { return Ok(Vec::new()) };
        let bytes = self.read_bounded(&path, limits::MAX_DESCRIPTION_BYTES)?;
        Ok(String::from_utf8_lossy(&bytes).lines().map(|line| line.trim().to_owned()).collect())
    }

    fn read_bounded(&self, path: &BundlePath, limit: u64) -> Result<Vec<u8>, VaultError> {
        let given = self.manifest.file(path).map_or(0, |entry| entry.size);
        if given > limit {
            return Err(BundleError::Limit { what: path.to_string(), given, limit }.into());
        }
        match &self.source {
            Source::Local(bundle) => Ok(bundle.read(path)?),
            Source::Vault { chunks } => self.manifest.assemble(path, |chunk| {
                chunks.read(&chunk.digest)?.ok_or(VaultError::Incomplete(1, self.digest))
            }),
        }
    }
}

/// Bytes of disk that a file of so many bytes takes.
fn on_disk(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, VaultError> {
    let entries = fs::read_dir(directory).map_err(io_error("listing", directory))?;
    entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(io_error("listing", directory))
}

fn remove_others(directory: &Path, kept: &HashSet<String>) -> Result<(), VaultError> {
    for file in list(directory)? {
        let name = file.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| kept.contains(name)) {
            fs::remove_file(&file).map_err(io_error("removing", &file))?;
        }
    }
    Ok(())
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> VaultError + use<> {
    let path = path.to_owned();
    move |source| VaultError::Io { doing, path: path.clone(), source }
}

#[cfg(test)]
mod tests;
