//! Pulling a bundle: from the registry over the link, or from a `.bundle` file on a server or on this machine.
//!
//! Over the link it asks for pieces, a bounded window at a time; out of a file it reads what is missing ([`archive`]).
//!
//! Invariants:
//! - What is on the disk is never asked for again, across reconnects and restarts.
//! - Memory holds at most three windows of pieces, whatever the bundle's size: one is stored, and two have come meanwhile.
//! - A piece that does not come, or comes wrong, is asked for again; a link that is away is waited for.

mod archive;
mod https;
mod reader;
mod source;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::bundle::Manifest;
use cloud_sync::chunk::ChunkRef;
use cloud_sync::contract::{Chunk, Fetch, Transfer, Want};
use cloud_sync::digest::Digest;
use cloud_sync::limits;
use tokio::sync::broadcast;

use crate::link::Link;
use crate::vault::{Vault, VaultError};
use reader::Origin;
use window::Window;

pub use source::{MAX_SOURCE_BYTES, Source, SourceError};

/// How often the window is looked at when nothing arrives: lost pieces are noticed that much late.
const TICK: Duration = Duration::from_millis(500);

/// Pieces that may wait for a fetch to store them: one full window and what the network had on its way.
pub const ARRIVALS: usize = 2 * window::LARGEST;

/// Pulls bundles into the vault. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    link: Link,
    vault: Arc<Vault>,
    arrivals: broadcast::Sender<Arc<Chunk>>,
}

/// Why a bundle did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It may come later: the link, the registry or the file has to be put right, or the disk has to get room.
    #[error("{0}")]
    Later(String),
    /// It can never be taken here.
    #[error("{0}")]
    Never(String),
}

impl Fetcher {
    /// A fetcher that reads what [`Fetcher::deliver`] is given.
    pub fn new(link: Link, vault: Arc<Vault>) -> Self {
        Self { link, vault, arrivals: broadcast::channel(ARRIVALS).0 }
    }

    /// Hands a piece to whoever waits for it. Where nobody does, it is dropped: it was asked for twice.
    pub fn deliver(&self, chunk: Chunk) {
        let _ = self.arrivals.send(Arc::new(chunk));
    }

    /// Brings the bundle `digest` to the disk, from `source`. Its `size` in bytes is compared where it is known. It
    /// must be among those that the vault keeps. Dropped, it stops.
    pub async fn fetch(
        &self,
        digest: Digest,
        size: Option<u64>,
        source: &Source,
    ) -> Result<Transfer, FetchError> {
        let begun = Instant::now();
        let mut transfer = match source {
            Source::Registry => self.over_the_link(digest, size).await?,
            Source::Https(_) | Source::File(_) => {
                let (vault, source) = (self.vault.clone(), source.clone());
                archive::Pull { vault, digest, size, source }.run(Origin::new).await?
            }
        };
        transfer.fetch_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(transfer)
    }

    async fn over_the_link(&self, digest: Digest, size: Option<u64>) -> Result<Transfer, FetchError> {
        let mut transfer = Transfer::default();
        let vault = self.vault.clone();
        let manifest = match blocking(move || Ok(vault.manifest(&digest))).await? {
            Some(manifest) => manifest,
            None => self.manifest(digest, &mut transfer).await?,
        };
        let (vault, wanted) = (self.vault.clone(), manifest.clone());
        let missing = blocking(move || prepare(&vault, &wanted, size)).await?;
        let missing_bytes = missing.iter().map(|chunk| u64::from(chunk.size)).sum::<u64>();
        transfer.shared_bytes = manifest.size().saturating_sub(missing_bytes);
        self.chunks(missing, &mut transfer).await?;
        Ok(transfer)
    }

    async fn chunks(&self, missing: Vec<ChunkRef>, transfer: &mut Transfer) -> Result<(), FetchError> {
        let sizes: std::collections::HashMap<Digest, ChunkRef> =
            missing.iter().map(|chunk| (chunk.digest, *chunk)).collect();
        let wants = missing.iter().map(|chunk| Want { digest: chunk.digest, offset: 0 });
        let mut pull = Pull::new(self, wants);
        while let Some(first) = pull.next().await? {
            let (come, absent) = pull.all_come(first);
            let work: Vec<(Want, ChunkRef, Arc<Chunk>)> = come
                .into_iter()
                .filter_map(|(want, piece)| Some((want, *sizes.get(&want.digest)?, piece)))
                .collect();
            transfer.fetched_bytes += work.iter().map(|(_, _, piece)| piece.bytes.len() as u64).sum::<u64>();
            let vault = self.vault.clone();
            let store = move |(want, chunk, piece): (Want, ChunkRef, Arc<Chunk>)| {
                (want, vault.put_chunk(&chunk, &piece.bytes))
            };
            for (want, stored) in
                blocking(move || Ok(work.into_iter().map(store).collect::<Vec<_>>())).await?
            {
                match stored {
                    Ok(()) => pull.window.done(&want, Instant::now()),
                    Err(VaultError::Foreign(digest)) => {
                        tracing::warn!(%digest, "a chunk came with other bytes than its name says; asking again");
                        pull.window.again(&want);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            absent?;
        }
        Ok(())
    }

    /// A manifest can be larger than a message, so it comes in pieces and is checked when it is whole.
    async fn manifest(&self, digest: Digest, transfer: &mut Transfer) -> Result<Manifest, FetchError> {
        let mut pull = Pull::new(self, [Want { digest, offset: 0 }]);
        let mut bytes = Vec::new();
        while let Some((want, piece)) = pull.next().await? {
            let total = usize::try_from(piece.total).unwrap_or(usize::MAX);
            // No registry has one so large, so whoever says it is not believed; the next answer may be right.
            let is_wrong = total > limits::MAX_MANIFEST_BYTES || want.offset != bytes.len() as u64;
            if is_wrong || piece.bytes.is_empty() {
                pull.window.again(&want);
                continue;
            }
            transfer.fetched_bytes += piece.bytes.len() as u64;
            bytes.extend_from_slice(&piece.bytes);
            if bytes.len() < total {
                pull.window.add(Want { digest, offset: bytes.len() as u64 });
            }
            pull.window.done(&want, Instant::now());
        }
        let vault = self.vault.clone();
        match blocking(move || Ok(vault.put_manifest(&digest, &bytes))).await? {
            Ok(manifest) => Ok(manifest),
            Err(VaultError::Foreign(_)) => {
                Err(FetchError::Later("its manifest came with other bytes than its name says".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A piece, and the want that it answers.
type Piece = (Want, Arc<Chunk>);

/// One run of asking and receiving.
struct Pull<'a> {
    link: &'a Link,
    arrivals: broadcast::Receiver<Arc<Chunk>>,
    window: Window,
    online: bool,
}

impl<'a> Pull<'a> {
    fn new(fetcher: &'a Fetcher, wants: impl IntoIterator<Item = Want>) -> Self {
        // Subscribed before anything is asked for, so that no answer is missed.
        let arrivals = fetcher.arrivals.subscribe();
        Self { link: &fetcher.link, arrivals, window: Window::new(wants), online: true }
    }

    /// The next piece that was asked for; `None` when all are done.
    async fn next(&mut self) -> Result<Option<Piece>, FetchError> {
        while !self.window.is_done() {
            self.ask().await;
            let arrived = tokio::time::timeout(TICK, self.arrivals.recv()).await;
            let piece = match arrived {
                Ok(Ok(piece)) => piece,
                Ok(Err(broadcast::error::RecvError::Lagged(pieces))) => {
                    tracing::debug!(pieces, "pieces came faster than they could be stored; asking again");
                    continue;
                }
                Ok(Err(broadcast::error::RecvError::Closed)) => {
                    return Err(FetchError::Later("the agent is stopping".to_owned()));
                }
                Err(_) => continue,
            };
            if let Some(wanted) = self.wanted(piece)? {
                return Ok(Some(wanted));
            }
        }
        Ok(None)
    }

    /// A piece and all others that have come, so that they are stored in one go: a thread's waking takes longer than a chunk's
    /// writing. Beside them is what ends the pull, for they are stored first.
    fn all_come(&mut self, first: Piece) -> (Vec<Piece>, Result<(), FetchError>) {
        let mut come = vec![first];
        while come.len() < window::LARGEST {
            match self.come() {
                Ok(Some(next)) => come.push(next),
                Ok(None) => break,
                Err(error) => return (come, Err(error)),
            }
        }
        (come, Ok(()))
    }

    /// One more piece that was asked for, if it is here.
    fn come(&mut self) -> Result<Option<Piece>, FetchError> {
        while let Ok(piece) = self.arrivals.try_recv() {
            if let Some(wanted) = self.wanted(piece)? {
                return Ok(Some(wanted));
            }
        }
        Ok(None)
    }

    fn wanted(&self, piece: Arc<Chunk>) -> Result<Option<Piece>, FetchError> {
        let want = Want { digest: piece.digest, offset: piece.offset };
        match self.window.is_wanted(&want) {
            true if piece.total == 0 => {
                Err(FetchError::Later(format!("the registry does not have {}", want.digest)))
            }
            is_wanted => Ok(is_wanted.then_some((want, piece))),
        }
    }

    async fn ask(&mut self) {
        let online = self.link.is_online();
        if !online || !self.online {
            // Whatever was on its way when the link went is lost.
            self.window.forget_asked();
        }
        self.online = online;
        if !online {
            return;
        }
        let wants = self.window.take(Instant::now());
        if !wants.is_empty() && self.link.fetch(&Fetch { wants }).await.is_err() {
            self.window.forget_asked();
        }
    }
}

/// Makes room for a bundle whose manifest is on the disk: the chunks that it lacks.
fn prepare(vault: &Vault, manifest: &Manifest, size: Option<u64>) -> Result<Vec<ChunkRef>, FetchError> {
    if let Some(size) = size.filter(|size| *size != manifest.size()) {
        let has = manifest.size();
        return Err(FetchError::Never(format!("the bundle has {has} bytes, {size} were announced")));
    }
    vault.make_room()?;
    Ok(vault.missing(manifest))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(FetchError::Later(error.to_string())),
    }
}

impl From<VaultError> for FetchError {
    fn from(error: VaultError) -> Self {
        match error {
            // Room may come: other models go, or the budget is raised.
            VaultError::Io { .. }
            | VaultError::Foreign(_)
            | VaultError::Incomplete(..)
            | VaultError::Budget { .. } => Self::Later(error.to_string()),
            VaultError::Bundle(_) => Self::Never(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_a_piece_that_the_registry_lacks_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault::open(directory.path(), 1 << 20).unwrap());
        let fetcher = Fetcher::new(Link::default(), vault);
        let wants: Vec<Want> =
            [1u8, 2, 3].map(|byte| Want { digest: Digest::of(&[byte]), offset: 0 }).to_vec();
        let mut pull = Pull::new(&fetcher, wants.clone());
        pull.window.take(Instant::now());
        for (want, total) in wants.iter().zip([1, 1, 0]) {
            fetcher.deliver(Chunk { digest: want.digest, offset: 0, total, bytes: Default::default() });
        }
        let first = pull.come().unwrap().unwrap();
        let (come, absent) = pull.all_come(first);
        assert_eq!(come.iter().map(|(want, _)| *want).collect::<Vec<_>>(), wants[..2]);
        assert!(absent.unwrap_err().to_string().contains(&wants[2].digest.to_string()));
    }
}
