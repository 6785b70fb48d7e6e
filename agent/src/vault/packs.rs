//! Chunks in packs: files that chunks are appended to, each beside an index that says what lies where.
//!
//! A file for each chunk would take a file system longer to make than the chunk's bytes to write: 100 MB as 5,240 files
//! took 0.16 to 2.9 s where two dozen files took 0.06.
//!
//! Invariants:
//! - A pack and its index are only ever appended to, by the process that made them: nothing follows what a crash tore.
//! - An index may name bytes that are gone, with the power or because they were given back: whoever reads compares them with
//!   their digest. So nothing has to be synced in an order, save what is moved (`retain.rs`).
//! - Of two entries of a chunk the later one counts. Bytes that no entry counts for are given back by [`Packs::retain`].

mod retain;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloud_sync::chunk::ChunkRef;
use cloud_sync::digest::Digest;
use cloud_sync::limits::MAX_CHUNK_BYTES;

use super::{BLOCK_BYTES, VaultError, io_error, list, on_disk};
use crate::durable;

/// Bytes of chunks in a pack: a quarter of the smallest vault, because a file system that can't make holes in files needs
/// that much for a while when a part of a pack is given back; large enough that a largest bundle has 512.
const PACK_BYTES: u64 = 4 << 20;

/// Chunks in a pack, which bounds what is read of an index. Chunks are that small in files of some bytes only.
const PACK_CHUNKS: u64 = 4096;

/// A chunk in an index: its digest, and its offset and size in 4 bytes each, the lowest first.
const ENTRY_BYTES: usize = 32 + 4 + 4;

/// The packs in a directory.
#[derive(Debug)]
pub(super) struct Packs {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Some 45 bytes a chunk: 6 MB for the largest bundle, 1/400 of what it takes once it is loaded.
    places: HashMap<Digest, Place>,
    packs: BTreeMap<u32, Pack>,
    /// Bytes of disk of packs that could not be read; the next start tries again.
    unreadable: u64,
    /// What is appended to, where anything is.
    open: Option<Open>,
    /// The number of the next pack: above every one that was ever seen.
    next: u32,
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    pack: u32,
    offset: u32,
    size: u32,
}

/// How large a pack is.
#[derive(Debug, Default)]
struct Pack {
    bytes: u64,
    entries: u64,
    /// Bytes of disk that its chunks take.
    taken: u64,
    /// Its chunks and bytes when what lies between them was last given back: chunks only go, or are appended.
    tidied: Option<(usize, u64)>,
}

#[derive(Debug)]
struct Open {
    pack: u32,
    chunks: File,
    index: File,
}

impl Packs {
    /// Opens the packs in `directory`, making it where there is none. What else is in it goes.
    pub(super) fn open(directory: PathBuf) -> Result<Self, VaultError> {
        fs::create_dir_all(&directory).map_err(io_error("making", &directory))?;
        let packs = Self { directory, state: Mutex::default() };
        let mut state = packs.state();
        let mut paths = list(&packs.directory)?;
        // A chunk that was found damaged was appended once more, later.
        paths.sort();
        for path in &paths {
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let is_pack = |pack: &u32| {
                let pair = [packs.chunks(*pack), packs.index(*pack)];
                // Numbers that this program will never come to are not its own.
                let is_possible = *pack <= u32::MAX / 2 && !path.is_dir();
                is_possible
                    && pair.contains(path)
                    && pair.iter().all(|path| paths.binary_search(path).is_ok())
            };
            let done = match number.filter(is_pack) {
                Some(pack) if *path == packs.index(pack) => packs.load(&mut state, pack),
                Some(_) => Ok(()),
                None if path.is_dir() => fs::remove_dir_all(path).map_err(io_error("removing", path)),
                None => fs::remove_file(path).map_err(io_error("removing", path)),
            };
            // What is lost with it is fetched again.
            done.unwrap_or_else(|error| tracing::warn!(%error, "some of what was pulled is left out"));
        }
        drop(state);
        Ok(packs)
    }

    /// Whether a chunk of that digest and size is here. Its bytes may be damaged.
    pub(super) fn has(&self, chunk: &ChunkRef) -> bool {
        self.state().has(chunk)
    }

    /// The bytes of a chunk as the disk has them; `None` where there are none.
    pub(super) fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, VaultError> {
        // Locked meanwhile, so that it is not moved.
        let state = self.state();
        state.places.get(digest).map_or(Ok(None), |place| self.read_at(place))
    }

    /// Appends a chunk, unless it is here. Its bytes must be what `chunk` names.
    pub(super) fn put(&self, chunk: &ChunkRef, bytes: &[u8]) -> Result<(), VaultError> {
        let mut state = self.state();
        if state.has(chunk) { Ok(()) } else { self.append(&mut state, chunk.digest, bytes) }
    }

    /// Takes a chunk for missing, because its bytes are damaged or gone.
    pub(super) fn forget(&self, digest: &Digest) {
        let mut state = self.state();
        if let Some(place) = state.places.remove(digest) {
            // Whatever was done to its pack, nothing more is trusted to it.
            state.open.take_if(|open| open.pack == place.pack);
        }
    }

    /// Bytes of disk that the packs take.
    pub(super) fn used(&self) -> u64 {
        let state = self.state();
        let packs = state.packs.values();
        packs.map(|pack| pack.taken + on_disk(pack.entries * ENTRY_BYTES as u64)).sum::<u64>()
            + state.unreadable
    }

    /// Bytes of disk that chunks will take at most: so many, with so many bytes in all.
    pub(super) fn needed(chunks: u64, bytes: u64) -> u64 {
        // A pack is full once the next chunk does not fit.
        let packs = bytes / (PACK_BYTES - MAX_CHUNK_BYTES as u64) + chunks / PACK_CHUNKS + 1;
        let partly_filled = 2 * packs.min(chunks) * BLOCK_BYTES;
        bytes + chunks * ENTRY_BYTES as u64 + partly_filled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chunks(&self, pack: u32) -> PathBuf {
        self.directory.join(format!("{pack:010}.chunks"))
    }

    fn index(&self, pack: u32) -> PathBuf {
        self.directory.join(format!("{pack:010}.index"))
    }

    fn load(&self, state: &mut State, pack: u32) -> Result<(), VaultError> {
        state.next = state.next.max(pack.saturating_add(1));
        let (index, chunks) = (self.index(pack), self.chunks(pack));
        let (bytes, taken) = size(&chunks)?;
        state.unreadable += taken;
        let encoded = durable::read(&index, PACK_CHUNKS * ENTRY_BYTES as u64);
        let encoded = encoded.map_err(io_error("reading", &index))?;
        state.unreadable -= taken;
        let (encoded, _torn) = encoded.as_chunks::<ENTRY_BYTES>();
        let entries = encoded.iter().map(|entry| Place::decode(pack, entry));
        state.places.extend(entries.filter(|(_, place)| {
            (1..=MAX_CHUNK_BYTES).contains(&(place.size as usize)) && place.end() <= bytes
        }));
        state.packs.insert(pack, Pack { bytes, entries: encoded.len() as u64, taken, tidied: None });
        Ok(())
    }

    fn read_at(&self, place: &Place) -> Result<Option<Vec<u8>>, VaultError> {
        let path = self.chunks(place.pack);
        let mut bytes = vec![0; place.size as usize];
        match File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, place.offset.into())) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {
                Ok(None)
            }
            Err(source) => Err(VaultError::Io { doing: "reading", path, source }),
        }
    }

    fn append(&self, state: &mut State, digest: Digest, bytes: &[u8]) -> Result<(), VaultError> {
        let State { places, packs, open, next, .. } = state;
        let has_room =
            |pack: &Pack| pack.bytes + bytes.len() as u64 <= PACK_BYTES && pack.entries < PACK_CHUNKS;
        let open = match open.take().filter(|open| packs.get(&open.pack).is_some_and(has_room)) {
            Some(found) => open.insert(found),
            None => open.insert(self.begin(next)?),
        };
        let pack = packs.entry(open.pack).or_default();
        let place = |number: u64| u32::try_from(number).map_err(|_| VaultError::Foreign(digest));
        let place = Place { pack: open.pack, offset: place(pack.bytes)?, size: place(bytes.len() as u64)? };
        let failed = |path: PathBuf| move |error| io_error("writing", &path)(error);
        // Where this fails, the next chunk is written over it.
        open.chunks.write_all_at(bytes, pack.bytes).map_err(failed(self.chunks(place.pack)))?;
        let entry = place.encode(&digest);
        let written = open.index.write_all_at(&entry, pack.entries * ENTRY_BYTES as u64);
        written.map_err(failed(self.index(place.pack)))?;
        pack.taken += on_disk(place.end()) - on_disk(pack.bytes);
        pack.bytes = place.end();
        pack.entries += 1;
        places.insert(digest, place);
        Ok(())
    }

    fn begin(&self, next: &mut u32) -> Result<Open, VaultError> {
        let pack = *next;
        // Not twice, whatever happens to it.
        *next = next.saturating_add(1);
        fs::create_dir_all(&self.directory).map_err(io_error("making", &self.directory))?;
        let create = |path: PathBuf| File::create_new(&path).map_err(io_error("making", &path));
        let chunks = create(self.chunks(pack))?;
        let index = create(self.index(pack)).inspect_err(|_| drop(fs::remove_file(self.chunks(pack))))?;
        Ok(Open { pack, chunks, index })
    }

    fn remove(&self, state: &mut State, pack: u32) -> Result<(), VaultError> {
        state.open.take_if(|open| open.pack == pack);
        for path in [self.index(pack), self.chunks(pack)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &path)(error));
                }
                _ => {}
            }
        }
        state.packs.remove(&pack);
        Ok(())
    }
}

impl State {
    fn has(&self, chunk: &ChunkRef) -> bool {
        self.places.get(&chunk.digest).is_some_and(|place| place.size == chunk.size)
    }
}

/// Bytes of a file, and bytes of disk that it takes.
fn size(path: &Path) -> Result<(u64, u64), VaultError> {
    let metadata = fs::metadata(path).map_err(io_error("reading", path))?;
    // As POSIX has it, whatever the file system's blocks are.
    Ok((metadata.len(), metadata.blocks() * 512))
}

impl Place {
    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.size)
    }

    fn encode(&self, digest: &Digest) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        let (name, place) = entry.split_at_mut(32);
        name.copy_from_slice(digest.as_bytes());
        let (offset, size) = place.split_at_mut(4);
        offset.copy_from_slice(&self.offset.to_le_bytes());
        size.copy_from_slice(&self.size.to_le_bytes());
        entry
    }

    fn decode(pack: u32, entry: &[u8; ENTRY_BYTES]) -> (Digest, Self) {
        let [name @ .., o0, o1, o2, o3, s0, s1, s2, s3] = *entry;
        let (offset, size) = (u32::from_le_bytes([o0, o1, o2, o3]), u32::from_le_bytes([s0, s1, s2, s3]));
        (Digest::from(name), Self { pack, offset, size })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Chunks of 16,000 bytes, which end within a block of the disk.
    fn chunks(count: usize) -> Vec<(ChunkRef, Vec<u8>)> {
        let chunk = |number: usize| {
            let mut bytes = vec![0; 16_000];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
            (ChunkRef { digest: Digest::of(&bytes), size: 16_000 }, bytes)
        };
        (0..count).map(chunk).collect()
    }

    fn filled(directory: &tempfile::TempDir, chunks: &[(ChunkRef, Vec<u8>)]) -> Packs {
        let packs = Packs::open(directory.path().to_owned()).unwrap();
        chunks.iter().for_each(|(chunk, bytes)| packs.put(chunk, bytes).unwrap());
        packs
    }

    fn kept<'a>(chunks: impl IntoIterator<Item = &'a (ChunkRef, Vec<u8>)>) -> HashSet<Digest> {
        chunks.into_iter().map(|(chunk, _)| chunk.digest).collect()
    }

    fn assert_whole(packs: &Packs, chunks: &[(ChunkRef, Vec<u8>)]) {
        for (chunk, bytes) in chunks {
            assert!(packs.has(chunk));
            assert_eq!(packs.read(&chunk.digest).unwrap().as_ref(), Some(bytes));
        }
    }

    fn allocated(directory: &tempfile::TempDir) -> u64 {
        let files = fs::read_dir(directory.path()).unwrap().flatten();
        files.map(|file| file.metadata().unwrap().blocks() * 512).sum()
    }

    #[test]
    fn chunks_are_found_again_by_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(300);
        let used = filled(&directory, &chunks[..280]).used();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4, "two packs");
        let packs = filled(&directory, &[]);
        assert_eq!(packs.used(), used);
        assert_whole(&packs, &chunks[..280]);
        assert!(!packs.has(&chunks[280].0) && packs.read(&chunks[280].0.digest).unwrap().is_none());
        chunks[280..].iter().for_each(|(chunk, bytes)| packs.put(chunk, bytes).unwrap());
        assert_whole(&filled(&directory, &[]), &chunks);
    }

    #[test]
    fn what_a_crash_tore_is_missing_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(10);
        drop(filled(&directory, &chunks));
        let shorten = |name: &str, bytes: u64| {
            let file = File::options().write(true).open(directory.path().join(name)).unwrap();
            file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
        };
        shorten("0000000000.chunks", 1);
        shorten("0000000000.index", ENTRY_BYTES as u64 + 1);
        let packs = filled(&directory, &[]);
        assert_whole(&packs, &chunks[..8]);
        assert!(!packs.has(&chunks[8].0), "its entry is torn");
        assert!(!packs.has(&chunks[9].0));
        chunks[8..].iter().for_each(|(chunk, bytes)| packs.put(chunk, bytes).unwrap());
        assert_whole(&filled(&directory, &[]), &chunks);
    }

    #[test]
    fn what_is_no_pack_goes() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("ab/cd")).unwrap();
        for name in ["ab/file", "0000000007.chunks", "0000000008.index", "0000000009.new", "1.index"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        assert_eq!(filled(&directory, &[]).used(), 0);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_disk_has_what_is_given_up_back_and_what_is_kept_stays() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(600);
        let packs = filled(&directory, &chunks);
        let before = (packs.used(), allocated(&directory));
        assert!(before.1 <= before.0 && before.0 <= Packs::needed(600, 600 * 16_000));
        // One in ten of the first pack, none of the second, and half of the third, which is appended to later.
        let (first, third) = (&chunks[..250], &chunks[575..]);
        let staying: Vec<_> = first.iter().step_by(10).chain(third).cloned().collect();
        packs.retain(&kept(&staying)).unwrap();
        let after = (packs.used(), allocated(&directory));
        assert!(after.0 < before.0 / 4, "{after:?} of {before:?}");
        assert!(after.1 <= after.0, "{after:?}: more is taken than is counted");
        assert_whole(&packs, &staying);
        packs.put(&chunks[1].0, &chunks[1].1).unwrap();
        assert_whole(&packs, &chunks[1..2]);
        packs.retain(&kept(&staying)).unwrap();
        let used = packs.used();
        assert!(used <= after.0 + BLOCK_BYTES, "{used}, {after:?} before");
        let again = filled(&directory, &[]);
        assert_eq!(again.used(), used);
        assert_whole(&again, &staying);
        again.retain(&kept(&staying)).unwrap();
        assert!(!again.has(&chunks[1].0));
        assert_eq!(again.used(), used);
        again.retain(&HashSet::new()).unwrap();
        assert_eq!((again.used(), fs::read_dir(directory.path()).unwrap().count()), (0, 0));
    }

    #[test]
    fn a_pack_that_can_have_no_holes_is_left_for_another() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(100);
        let packs = filled(&directory, &chunks);
        {
            let mut state = packs.state();
            let staying = kept(&chunks[40..60]);
            state.places.retain(|digest, _| staying.contains(digest));
            let left = state.by_pack().remove(&0).unwrap();
            packs.move_chunks(&mut state, 0, left).unwrap();
        }
        assert_whole(&packs, &chunks[40..60]);
        assert!(packs.used() < 21 * 16_000 + 2 * BLOCK_BYTES && allocated(&directory) <= packs.used());
        assert_whole(&filled(&directory, &[]), &chunks[40..60]);
    }

    #[test]
    fn what_can_not_be_moved_stays_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(100);
        let packs = filled(&directory, &chunks);
        // A directory in its place can be opened, and not be read as a file.
        let (place, aside) = (packs.chunks(0), directory.path().join("aside"));
        fs::rename(&place, &aside).unwrap();
        fs::create_dir(&place).unwrap();
        {
            let mut state = packs.state();
            let left = state.by_pack().remove(&0).unwrap();
            packs.move_chunks(&mut state, 0, left).unwrap_err();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3, "nothing new is left");
        fs::remove_dir(&place).unwrap();
        fs::rename(&aside, &place).unwrap();
        assert_whole(&packs, &chunks);
        assert_whole(&filled(&directory, &[]), &chunks);
    }

    #[test]
    fn what_was_damaged_and_came_again_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(100);
        let packs = filled(&directory, &chunks);
        let used = packs.used();
        for (chunk, bytes) in &chunks[..50] {
            packs.forget(&chunk.digest);
            packs.put(chunk, bytes).unwrap();
        }
        assert!(packs.used() > used + 49 * 16_000);
        drop(packs);
        let packs = filled(&directory, &[]);
        packs.retain(&kept(&chunks)).unwrap();
        assert!(packs.used() <= used + 4 * BLOCK_BYTES, "{} of {used}", packs.used());
        assert_whole(&packs, &chunks);
    }

    #[test]
    fn what_can_not_be_given_back_is_tried_again_and_keeps_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(600);
        let packs = filled(&directory, &chunks);
        // A directory in the first pack's place can be neither opened for writing nor removed as a file.
        let (place, aside) = (packs.chunks(0), directory.path().join("aside"));
        fs::rename(&place, &aside).unwrap();
        fs::create_dir(&place).unwrap();
        let staying = kept(&chunks[595..]);
        packs.retain(&staying).unwrap_err();
        assert!(packs.used() < 270 * 16_000, "the others went: {}", packs.used());
        fs::remove_dir(&place).unwrap();
        fs::rename(&aside, &place).unwrap();
        packs.retain(&staying).unwrap();
        assert!(packs.used() < 10 * 16_000, "{}", packs.used());
        assert_whole(&packs, &chunks[595..]);
    }

    #[test]
    fn a_damaged_entry_costs_no_other_chunk_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(10);
        drop(filled(&directory, &chunks));
        let path = directory.path().join("0000000000.index");
        let mut index = fs::read(&path).unwrap();
        // The sixth now lies within the second.
        let offset = 5 * ENTRY_BYTES + 32;
        index[offset..offset + 4].copy_from_slice(&17_000_u32.to_le_bytes());
        fs::write(&path, index).unwrap();
        let packs = filled(&directory, &[]);
        packs.forget(&chunks[5].0.digest);
        packs.retain(&kept(&chunks)).unwrap();
        assert_whole(&packs, &chunks[..5]);
        assert_whole(&packs, &chunks[6..]);
    }
}
