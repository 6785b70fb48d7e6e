//! Models on disk: chunks by content, manifests by digest, and nothing that can be loaded before it is verified.
//!
//! Invariants:
//! - A chunk or a manifest is stored under its digest, and only bytes with that digest are stored.
//! - A [`Verified`] bundle has been hashed from the disk, byte for byte, since this process began; nothing else
//!   can be loaded, by type.
//! - What is verified is durable: the file system is synced before [`Vault::verify`] returns.
//! - The vault never takes more of the disk than its budget: what is kept and what kept bundles still lack fit into it,
//!   or nothing more is fetched. Counted in whole blocks and with the directories, as the disk does.
//! - What no kept bundle uses is removed by [`Vault::collect`], and only there; while a kept manifest can't be
//!   read, nothing is.
//!
//! Chunks are not synced one by one: a chunk that a power cut damaged is found by its hash and fetched again.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use cloud_sync::bundle::{Bundle, BundleError, BundlePath, Description, Manifest};
use cloud_sync::chunk::ChunkRef;
use cloud_sync::digest::Digest;
use cloud_sync::limits;

use crate::durable;

/// What a file system gives out at once, save for very large ones: a file takes a multiple of it, a directory one.
const BLOCK_BYTES: u64 = 4096;

/// The bundles of a device.
#[derive(Debug)]
pub struct Vault {
    chunks: PathBuf,
    manifests: PathBuf,
    budget: u64,
    /// The bundles in use. Held while files are removed, and shared while they are written.
    kept: RwLock<BTreeSet<Digest>>,
    temporary: AtomicU64,
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
    Vault { chunks: PathBuf },
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
        let vault = Self {
            chunks: directory.join("chunks"),
            manifests: directory.join("manifests"),
            budget,
            kept: RwLock::default(),
            temporary: AtomicU64::new(0),
        };
        for directory in [&vault.chunks, &vault.manifests] {
            fs::create_dir_all(directory).map_err(io_error("making", directory))?;
        }
        Ok(vault)
    }

    /// Keeps a manifest. It must be what `digest` names.
    pub fn put_manifest(&self, digest: &Digest, bytes: &[u8]) -> Result<Manifest, VaultError> {
        if Digest::of(bytes) != *digest {
            return Err(VaultError::Foreign(*digest));
        }
        let manifest = Manifest::decode(bytes)?;
        self.room_for(on_disk(bytes.len() as u64))?;
        let path = self.manifests.join(digest.to_string());
        durable::replace(&path, bytes).map_err(io_error("writing", &path))?;
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
        let here = |chunk: &ChunkRef| {
            fs::metadata(self.place(&chunk.digest)).is_ok_and(|found| found.len() == u64::from(chunk.size))
        };
        manifest.distinct_chunks().into_iter().filter(|chunk| !here(chunk)).collect()
    }

    /// Keeps a chunk. Its bytes must be what `chunk` names.
    pub fn put_chunk(&self, chunk: &ChunkRef, bytes: &[u8]) -> Result<(), VaultError> {
        if bytes.len() != chunk.size as usize || Digest::of(bytes) != chunk.digest {
            return Err(VaultError::Foreign(chunk.digest));
        }
        let _shared = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let path = self.place(&chunk.digest);
        let directory = path.parent().unwrap_or(&self.chunks);
        fs::create_dir_all(directory).map_err(io_error("making", directory))?;
        // Two pulls may bring the same chunk at once.
        let temporary = path.with_extension(self.temporary.fetch_add(1, Ordering::Relaxed).to_string());
        fs::write(&temporary, bytes).map_err(io_error("writing", &temporary))?;
        fs::rename(&temporary, &path).map_err(io_error("writing", &path))
    }

    /// Says which bundles are in use. Their bytes stay; those of others go with [`Vault::collect`].
    pub fn keep(&self, bundles: BTreeSet<Digest>) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = bundles;
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
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let manifests: Vec<Manifest> = kept.iter().filter_map(|digest| self.manifest(digest)).collect();
        let missing: HashSet<ChunkRef> =
            manifests.iter().flat_map(|manifest| self.missing(manifest)).collect();
        let places: HashSet<PathBuf> = missing.iter().map(|chunk| self.place(&chunk.digest)).collect();
        let directories: HashSet<&Path> = places.iter().filter_map(|place| place.parent()).collect();
        let new = directories.iter().filter(|directory| !directory.exists()).count() as u64;
        missing.iter().map(|chunk| on_disk(chunk.size.into())).sum::<u64>() + new * BLOCK_BYTES
    }

    /// Reads a bundle from the disk and compares every byte. Damaged chunks are removed, so that the next fetch
    /// asks for them.
    pub fn verify(&self, digest: &Digest) -> Result<Verified, VaultError> {
        let manifest = self.manifest(digest).ok_or(VaultError::Incomplete(1, *digest))?;
        let mut wrong = 0;
        for chunk in manifest.distinct_chunks() {
            let path = self.place(&chunk.digest);
            match fs::read(&path) {
                Ok(bytes) if Digest::of(&bytes) == chunk.digest => {}
                Ok(_) => {
                    wrong += 1;
                    fs::remove_file(&path).map_err(io_error("removing", &path))?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => wrong += 1,
                Err(source) => return Err(VaultError::Io { doing: "reading", path, source }),
            }
        }
        if wrong > 0 {
            return Err(VaultError::Incomplete(wrong, *digest));
        }
        durable::sync_file_system(&self.chunks).map_err(io_error("syncing", &self.chunks))?;
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
        let kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let mut chunks = HashSet::new();
        for digest in kept.iter() {
            let path = self.manifests.join(digest.to_string());
            match fs::read(&path) {
                Ok(bytes) if Digest::of(&bytes) == *digest => {
                    chunks.extend(Manifest::decode(&bytes)?.chunks().map(|chunk| chunk.digest.to_string()));
                }
                // Its bundle is fetched anew, manifest first.
                Ok(_) => fs::remove_file(&path).map_err(io_error("removing", &path))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(VaultError::Io { doing: "reading", path, source }),
            }
        }
        let manifests: HashSet<String> = kept.iter().map(Digest::to_string).collect();
        remove_others(&self.manifests, &manifests)?;
        for directory in list(&self.chunks)? {
            remove_others(&directory, &chunks)?;
            // Only an empty one goes; the next chunk that belongs there makes it again.
            let _ = fs::remove_dir(&directory);
        }
        Ok(())
    }

    /// Bytes of disk that the vault takes.
    pub fn used(&self) -> Result<u64, VaultError> {
        let directories = list(&self.chunks)?;
        let mut used = directories.len() as u64 * BLOCK_BYTES;
        for directory in directories.iter().chain([&self.manifests]) {
            for file in list(directory)? {
                used += fs::metadata(&file).map_or(0, |metadata| on_disk(metadata.len()));
            }
        }
        Ok(used)
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        place(&self.chunks, digest)
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
                let path = place(chunks, &chunk.digest);
                fs::read(&path).map_err(io_error("reading", &path))
            }),
        }
    }
}

/// Two levels, so that no directory holds more than a few thousand files.
fn place(chunks: &Path, digest: &Digest) -> PathBuf {
    let name = digest.to_string();
    chunks.join(name.get(..2).unwrap_or_default()).join(name)
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
mod tests {
    use super::*;

    struct Fixture {
        _directory: tempfile::TempDir,
        vault: Vault,
        bundle: Bundle,
        root: PathBuf,
    }

    fn fixture(budget: u64) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("bundle");
        fs::create_dir(&source).unwrap();
        let mut weights = vec![0; 200_000];
        blake3::Hasher::new().finalize_xof().fill(&mut weights);
        fs::write(source.join("model.onnx"), weights).unwrap();
        fs::write(source.join("model.toml"), "").unwrap();
        let root = directory.path().join("vault");
        let vault = Vault::open(&root, budget).unwrap();
        Fixture { bundle: Bundle::open(&source).unwrap(), vault, root, _directory: directory }
    }

    fn fill(fixture: &Fixture) {
        fixture.vault.put_manifest(&fixture.bundle.digest(), fixture.bundle.encoded_manifest()).unwrap();
        fixture.bundle.each_chunk(|chunk, bytes| fixture.vault.put_chunk(&chunk, bytes)).unwrap();
    }

    #[test]
    fn a_bundle_is_verified_once_it_is_whole() {
        let fixture = fixture(1 << 20);
        let digest = fixture.bundle.digest();
        assert!(matches!(fixture.vault.verify(&digest), Err(VaultError::Incomplete(..))));
        fill(&fixture);
        let verified = fixture.vault.verify(&digest).unwrap();
        assert_eq!(verified.onnx().unwrap().len(), 200_000);
    }

    #[test]
    fn a_damaged_chunk_is_found_removed_and_asked_for_again() {
        let fixture = fixture(1 << 20);
        fill(&fixture);
        let victim = fixture.bundle.manifest().distinct_chunks()[1];
        let path = fixture.vault.place(&victim.digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[7] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(fixture.vault.missing(fixture.bundle.manifest()).is_empty(), "its size is right");
        let digest = fixture.bundle.digest();
        assert!(matches!(fixture.vault.verify(&digest), Err(VaultError::Incomplete(1, _))));
        assert_eq!(fixture.vault.missing(fixture.bundle.manifest()), [victim]);
    }

    #[test]
    fn foreign_bytes_are_never_stored() {
        let fixture = fixture(1 << 20);
        let digest = fixture.bundle.digest();
        assert!(matches!(fixture.vault.put_manifest(&digest, b"x"), Err(VaultError::Foreign(_))));
        let chunk = fixture.bundle.manifest().distinct_chunks()[0];
        let wrong = vec![0; chunk.size as usize];
        assert!(matches!(fixture.vault.put_chunk(&chunk, &wrong), Err(VaultError::Foreign(_))));
        assert_eq!(fixture.vault.used().unwrap(), 0);
    }

    #[test]
    fn collecting_keeps_what_is_in_use_and_nothing_else() {
        let fixture = fixture(1 << 20);
        fill(&fixture);
        fs::write(fixture.root.join("manifests/garbage"), "x").unwrap();
        let digest = fixture.bundle.digest();
        fixture.vault.keep(BTreeSet::from([digest]));
        fixture.vault.collect().unwrap();
        assert!(fixture.vault.verify(&digest).is_ok());
        assert!(!fixture.root.join("manifests/garbage").exists());
        fixture.vault.keep(BTreeSet::new());
        fixture.vault.collect().unwrap();
        assert_eq!(fixture.vault.used().unwrap(), 0);
    }

    #[test]
    fn nothing_is_removed_while_a_kept_manifest_cannot_be_read() {
        let fixture = fixture(1 << 20);
        fill(&fixture);
        let digest = fixture.bundle.digest();
        let other = Digest::of(b"other");
        // A directory in the manifest's place is an error to read, as a failing disk is.
        fs::create_dir(fixture.root.join("manifests").join(other.to_string())).unwrap();
        fixture.vault.keep(BTreeSet::from([other]));
        assert!(fixture.vault.collect().is_err());
        assert!(fixture.vault.verify(&digest).is_ok());
    }

    #[test]
    fn a_bundle_beyond_the_budget_is_refused_before_its_bytes_come() {
        let fixture = fixture(100_000);
        let digest = fixture.bundle.digest();
        fixture.vault.put_manifest(&digest, fixture.bundle.encoded_manifest()).unwrap();
        fixture.vault.keep(BTreeSet::from([digest]));
        let refused = fixture.vault.make_room();
        assert!(matches!(refused, Err(VaultError::Budget { .. })), "{refused:?}");
    }

    #[test]
    fn what_is_not_in_use_gives_way_before_a_bundle_is_refused() {
        let fixture = fixture(1 << 20);
        let digest = fixture.bundle.digest();
        let other = fixture.root.join("manifests/other");
        fs::write(&other, vec![0; 1 << 20]).unwrap();
        fixture.vault.keep(BTreeSet::from([digest]));
        fill(&fixture);
        assert!(!other.exists(), "a manifest has to fit");
        fs::write(&other, vec![0; 1 << 20]).unwrap();
        fixture.vault.make_room().unwrap();
        assert!(!other.exists() && fixture.vault.verify(&digest).is_ok());
    }

    #[test]
    fn what_a_bundle_takes_is_counted_as_the_disk_does() {
        use std::os::unix::fs::MetadataExt;

        fn allocated(path: &Path) -> u64 {
            let below = fs::read_dir(path).into_iter().flatten().flatten();
            fs::metadata(path).unwrap().blocks() * 512
                + below.map(|entry| allocated(&entry.path())).sum::<u64>()
        }
        let fixture = fixture(1 << 20);
        let digest = fixture.bundle.digest();
        fixture.vault.put_manifest(&digest, fixture.bundle.encoded_manifest()).unwrap();
        fixture.vault.keep(BTreeSet::from([digest]));
        let announced = fixture.vault.used().unwrap() + fixture.vault.lacking();
        fill(&fixture);
        assert_eq!(fixture.vault.used().unwrap(), announced, "room was made for all that came");
        // The two directories that are always there are not among what comes and goes.
        assert!(allocated(&fixture.root) <= announced + 3 * BLOCK_BYTES);
        assert!(announced > fixture.bundle.manifest().size() + 3 * BLOCK_BYTES);
    }

    #[test]
    fn a_manifest_has_to_fit_too() {
        let fixture = fixture(BLOCK_BYTES - 1);
        let put = fixture.vault.put_manifest(&fixture.bundle.digest(), fixture.bundle.encoded_manifest());
        assert!(matches!(put, Err(VaultError::Budget { .. })), "{put:?}");
        assert_eq!(fixture.vault.used().unwrap(), 0);
    }
}
