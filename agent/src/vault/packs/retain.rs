//! What is no longer kept of the packs goes back to the file system.
//!
//! Invariant: what is moved is durable before its new entries are written, and they are before the old ones go; for of two
//! entries of a chunk the later one counts.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cloud_sync::digest::Digest;

use super::{Open, Pack, Packs, Place, State, size};
use crate::durable;
use crate::vault::{BLOCK_BYTES, VaultError, io_error, on_disk};

impl Packs {
    /// Gives all other chunks back to the file system. What can't be given back now is tried again the next time.
    pub(in crate::vault) fn retain(&self, kept: &HashSet<Digest>) -> Result<(), VaultError> {
        let mut state = self.state();
        state.places.retain(|digest, _| kept.contains(digest));
        let mut left = state.by_pack();
        let packs: Vec<u32> = state.packs.keys().copied().collect();
        let given_back: Vec<Result<(), VaultError>> = packs
            .into_iter()
            .map(|pack| match left.remove(&pack) {
                Some(chunks) => self.tidy(&mut state, pack, chunks),
                None => self.remove(&mut state, pack),
            })
            .collect();
        given_back.into_iter().collect()
    }

    /// Gives back what lies between the chunks of a pack, or moves them to another where the file system can't have holes.
    fn tidy(&self, state: &mut State, pack: u32, chunks: Vec<(Digest, Place)>) -> Result<(), VaultError> {
        let Some(size_of) = state.packs.get_mut(&pack) else { return Ok(()) };
        let path = self.chunks(pack);
        let holes = holes(&chunks, size_of.bytes);
        let least = on_disk(size_of.bytes) - holes.iter().map(|hole| hole.end - hole.start).sum::<u64>();
        // Where a file has holes is noted in a block of its own.
        if size_of.tidied == Some((chunks.len(), size_of.bytes)) || size_of.taken <= least + BLOCK_BYTES {
            return Ok(());
        }
        match make_holes(&path, &holes) {
            Ok(()) => {
                size_of.tidied = Some((chunks.len(), size_of.bytes));
                size_of.taken = size(&path)?.1;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.move_chunks(state, pack, chunks),
            Err(error) => Err(io_error("writing", &path)(error)),
        }
    }

    /// Moves a pack's chunks to one of their own, where they lie side by side, and removes it.
    pub(super) fn move_chunks(
        &self,
        state: &mut State,
        pack: u32,
        chunks: Vec<(Digest, Place)>,
    ) -> Result<(), VaultError> {
        let new = self.begin(&mut state.next)?;
        let moved = self.copy_chunks(&new, chunks);
        let (moved, places) = moved.inspect_err(|_| {
            for path in [self.index(new.pack), self.chunks(new.pack)] {
                // What stays is whole, or goes with the next start.
                drop(fs::remove_file(path));
            }
        })?;
        state.places.retain(|_, place| place.pack != pack);
        state.places.extend(places);
        state.packs.insert(new.pack, moved);
        let removed = self.remove(state, pack);
        state.open.get_or_insert(new);
        removed
    }

    /// Copies chunks to a new pack, all that are there; gives its size, and where they lie in it.
    fn copy_chunks(
        &self,
        new: &Open,
        chunks: Vec<(Digest, Place)>,
    ) -> Result<(Pack, Vec<(Digest, Place)>), VaultError> {
        let (mut pack, mut places, mut index) = (Pack::default(), Vec::new(), Vec::new());
        let to = self.chunks(new.pack);
        for (digest, from) in chunks {
            let Some(bytes) = self.read_at(&from)? else { continue };
            let offset = u32::try_from(pack.bytes).map_err(|_| VaultError::Foreign(digest))?;
            new.chunks.write_all_at(&bytes, pack.bytes).map_err(io_error("writing", &to))?;
            let place = Place { pack: new.pack, offset, ..from };
            index.extend(place.encode(&digest));
            places.push((digest, place));
            pack.bytes = place.end();
            pack.entries += 1;
        }
        pack.taken = on_disk(pack.bytes);
        new.chunks.sync_all().map_err(io_error("syncing", &to))?;
        let to = self.index(new.pack);
        new.index.write_all_at(&index, 0).map_err(io_error("writing", &to))?;
        durable::sync_file_system(&self.directory).map_err(io_error("syncing", &self.directory))?;
        Ok((pack, places))
    }
}

impl State {
    /// The chunks of each pack, in the order in which they lie.
    pub(super) fn by_pack(&self) -> BTreeMap<u32, Vec<(Digest, Place)>> {
        let mut found: BTreeMap<u32, Vec<(Digest, Place)>> = BTreeMap::new();
        for (digest, place) in &self.places {
            found.entry(place.pack).or_default().push((*digest, *place));
        }
        found.values_mut().for_each(|chunks| chunks.sort_unstable_by_key(|(_, place)| place.offset));
        found
    }
}

/// What can be given back of a pack of so many bytes that has these chunks, which come in order.
fn holes(chunks: &[(Digest, Place)], bytes: u64) -> Vec<Range<u64>> {
    let places = chunks.iter().map(|(_, place)| (u64::from(place.offset), place.end()));
    let mut end = 0_u64;
    let mut holes = Vec::new();
    for (begin, next) in places.chain([(bytes, bytes)]) {
        let hole = end.next_multiple_of(BLOCK_BYTES)..begin / BLOCK_BYTES * BLOCK_BYTES;
        if !hole.is_empty() {
            holes.push(hole);
        }
        // A damaged entry may lie anywhere.
        end = end.max(next);
    }
    holes
}

fn make_holes(path: &Path, holes: &[Range<u64>]) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    holes.iter().try_for_each(|hole| durable::make_hole(&file, hole))
}
