//! Model versions: how a bundle becomes one, and how it goes.
//!
//! Invariants:
//! - A version is seen only when its manifest and every chunk of it are durable: they are written first, the record
//!   with its number last, in one transaction.
//! - Chunks are stored once per digest. What no version needs any more is swept, but never while a registration is
//!   under way in any replica, since that may rely on a chunk which is there.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::bundle::{Bundle, BundleError, Manifest};
use cloud_sync::chunk::ChunkRef;
use cloud_sync::digest::Digest;
use cloud_sync::name::{ModelName, ModelVersion};
use engine::LoadOptions;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::{Labels, ModelRecord, Registered, ResourceConfiguration};
use crate::error::RegistryError;
use crate::objects::{Named, Objects};
use crate::proof;
use crate::store::{Store, check_labels};

/// Bundles that are read and proved at once: each holds its model in memory, perhaps twice.
const PROOFS: usize = 2;

/// Uploads at once: each may fill the disk with the largest bundle.
const UPLOADS: usize = 4;

/// Chunks that are written at once; each waits for the disk, and they can wait together.
const CHUNK_WRITES: usize = 16;

/// Pause before a sweep that was held up by another replica is tried again: a registration takes seconds to minutes.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);

/// What the caller says of a bundle beside its bytes.
#[derive(Debug, Clone, Default)]
pub struct Wording {
    /// In place of the one in `model.toml`.
    pub description: Option<String>,
    /// Replaceable.
    pub tags: Labels,
    /// Fixed.
    pub properties: Labels,
}

/// The registered models.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    objects: Objects,
    incoming: PathBuf,
    engines: LoadOptions,
    uploads: Semaphore,
    proofs: Arc<Semaphore>,
    garbage: Notify,
}

impl Registry {
    /// Keeps records in `store` and bytes in `objects`; uploads lie in `incoming` until they are read.
    pub fn new(store: Store, objects: Objects, incoming: PathBuf, engines: LoadOptions) -> Self {
        Self {
            store,
            objects,
            incoming,
            engines,
            uploads: Semaphore::new(UPLOADS),
            proofs: Arc::new(Semaphore::new(PROOFS)),
            garbage: Notify::new(),
        }
    }

    /// Where an upload is kept until it is registered.
    pub fn incoming(&self) -> &Path {
        &self.incoming
    }

    /// A place for an upload, as long as it is kept.
    pub fn upload_place(&self) -> Result<SemaphorePermit<'_>, RegistryError> {
        let full = |_| RegistryError::Unavailable(format!("{UPLOADS} uploads are under way; try again soon"));
        self.uploads.try_acquire().map_err(full)
    }

    /// Proves the bundle at `path` and makes it the next version of `name`.
    pub async fn register(
        &self,
        name: &ModelName,
        path: &Path,
        wording: Wording,
    ) -> Result<Registered, RegistryError> {
        let permit = self.proofs.clone().acquire_owned().await;
        let permit = permit.map_err(|_| RegistryError::Unavailable("the registry is stopping".to_owned()))?;
        let (path, engines) = (path.to_owned(), self.engines.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let bundle = Bundle::open(&path).map_err(read_refusal)?;
            let proof = proof::prove(&bundle, &engines)?;
            drop(permit);
            Ok::<_, RegistryError>((bundle, proof))
        });
        let (bundle, proof) = opened.await??;
        let description = bundle.description().clone();
        let record = ModelRecord {
            id: String::new(),
            name: name.to_string(),
            version: 0,
            created_time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            description: wording.description.or(description.model.description),
            framework: description.model.framework,
            framework_version: description.model.framework_version,
            license: description.model.license,
            tags: wording.tags,
            properties: wording.properties,
            resource_configuration: ResourceConfiguration {
                cpu: description.resources.cpu,
                memory_in_gb: description.resources.memory_mb.map(|mb| mb as f64 / 1024.0),
                gpu: u32::from(description.resources.accelerator == cloud_sync::bundle::Accelerator::Gpu),
            },
            digest: bundle.digest().to_string(),
            size: bundle.manifest().size(),
            signature: proof.signature,
            engines: proof.engines,
        };
        check_labels(&record)?;
        let registering = self.store.registering().await?;
        let stored = self.store_chunks(bundle).await?;
        let model = registering.add_version(record).await?;
        tracing::info!(version = %model.id, new_bytes = stored.new_bytes, "registered");
        Ok(Registered {
            model,
            chunks: stored.chunks,
            new_chunks: stored.new_chunks,
            new_bytes: stored.new_bytes,
        })
    }

    /// Deletes a version that no device needs.
    pub async fn delete(&self, version: &ModelVersion) -> Result<(), RegistryError> {
        self.store.delete_version(version).await?;
        self.garbage.notify_one();
        Ok(())
    }

    /// The manifest of a bundle, encoded.
    pub async fn manifest(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        let found = self.objects.get_named(Named::Manifest(digest)).await?;
        found.ok_or_else(|| RegistryError::Internal(format!("manifest {digest} is missing from the store")))
    }

    /// The bytes of a chunk.
    pub async fn chunk(&self, chunk: &ChunkRef) -> Result<Bytes, RegistryError> {
        let found = self.objects.get_named(Named::Chunk(chunk.digest)).await?;
        found.ok_or_else(|| {
            RegistryError::Internal(format!("chunk {} is missing from the store", chunk.digest))
        })
    }

    /// Sweeps at the start, for what a crash left, and after each deletion.
    pub async fn sweep_garbage(&self, stop: CancellationToken) {
        loop {
            let swept = match self.sweep().await {
                Ok(Some(objects)) => {
                    if objects > 0 {
                        tracing::info!(objects, "deleted chunks that no version needs");
                    }
                    true
                }
                Ok(None) => false,
                Err(error) => {
                    tracing::error!(%error, retry_in = ?SWEEP_AGAIN, "chunks that no version needs were not deleted");
                    false
                }
            };
            let again = async {
                match swept {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(SWEEP_AGAIN).await,
                }
            };
            tokio::select! {
                () = self.garbage.notified() => {}
                () = again => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Deletes what no version needs; says how much. None while another replica registers or sweeps.
    async fn sweep(&self) -> Result<Option<usize>, RegistryError> {
        let Some(mut sweeping) = self.store.sweeping().await? else { return Ok(None) };
        let mut needed = HashSet::new();
        let bundles: HashSet<Digest> = self.store.bundle_digests().await?.into_iter().collect();
        for digest in &bundles {
            let manifest = Manifest::decode(&self.manifest(*digest).await?)?;
            needed.extend(manifest.chunks().map(|chunk| chunk.digest));
        }
        let keep = |named| match named {
            Named::Chunk(digest) => needed.contains(&digest),
            Named::Manifest(digest) => bundles.contains(&digest),
        };
        let mut unwanted = self.objects.unwanted(keep);
        let mut swept = 0;
        while let Some(paths) = unwanted.try_next().await? {
            sweeping.still_holds().await?;
            swept += self.objects.delete_all(paths).await?;
        }
        Ok(Some(swept))
    }

    /// Makes the manifest and the chunks of a bundle durable.
    async fn store_chunks(&self, bundle: Bundle) -> Result<Stored, RegistryError> {
        let digest = bundle.digest();
        let manifest = Bytes::copy_from_slice(bundle.encoded_manifest());
        let (sender, receiver) = mpsc::channel::<(ChunkRef, Bytes)>(CHUNK_WRITES);
        let reader = tokio::task::spawn_blocking(move || {
            let mut seen = HashSet::new();
            bundle.each_chunk(|chunk, bytes| {
                // A closed channel means that writing has failed; its error is the one to report.
                let is_new = seen.insert(chunk.digest);
                if is_new && sender.blocking_send((chunk, Bytes::copy_from_slice(bytes))).is_err() {
                    return Err(RegistryError::Internal("storing the chunks was given up".to_owned()));
                }
                Ok(())
            })
        });
        let chunks = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|next| (next, receiver))
        });
        let stored = chunks
            .map(|(chunk, bytes)| async move {
                let is_new = self.objects.put_named(Named::Chunk(chunk.digest), bytes).await?;
                Ok::<_, RegistryError>((is_new, u64::from(chunk.size)))
            })
            .buffer_unordered(CHUNK_WRITES)
            .try_fold(Stored::default(), |mut stored, (is_new, size)| async move {
                stored.chunks += 1;
                stored.new_chunks += u64::from(is_new);
                stored.new_bytes += if is_new { size } else { 0 };
                Ok(stored)
            })
            .await?;
        reader.await??;
        self.objects.put_named(Named::Manifest(digest), manifest).await?;
        Ok(stored)
    }
}

#[derive(Debug, Default)]
struct Stored {
    chunks: u64,
    new_chunks: u64,
    new_bytes: u64,
}

/// An upload lies in a file of ours, whose name says nothing to the caller.
fn read_refusal(error: BundleError) -> RegistryError {
    match error {
        BundleError::NotABundle(_, why) => RegistryError::Refused(format!("the upload is no bundle: {why}")),
        other => other.into(),
    }
}
