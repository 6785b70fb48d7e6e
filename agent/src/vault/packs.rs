//! Chunks in packs: files that chunks are appended to, each beside an index that says what lies where.
//!
//! A file for each chunk would take a file system longer to make than the chunk's bytes to write: 100 MB as 5,240 files
//! took 0.16 to 2.9 s where two dozen files took 0.06.
//!
//! Invariants:
//! - A pack is appended to by the process that made it and by no later one, so nothing follows what a crash tore.
//! - An index may name bytes that a power cut took: whoever reads compares them with their digest.
//! - Bytes are given back to the file system once an index that does not name them is durable.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloud_sync::chunk::ChunkRef;
use cloud_sync::digest::Digest;
use cloud_sync::limits::MAX_CHUNK_BYTES;

use super::{BLOCK_BYTES, VaultError, io_error, list, on_disk, replace};
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
    places: HashMap<Digest, Place>,
    packs: BTreeMap<u32, Pack>,
    /// What is appended to, where anything is: the last pack.
    open: Option<Open>,
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
    /// Of the bytes, those that were given back.
    holes: u64,
    entries: u64,
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
        for path in paths {
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let done = match number {
                Some(pack) if path == packs.index(pack) && packs.chunks(pack).is_file() => {
                    packs.load(&mut state, pack)
                }
                Some(pack) if path == packs.chunks(pack) && packs.index(pack).is_file() => Ok(()),
                _ if path.is_dir() => fs::remove_dir_all(&path).map_err(io_error("removing", &path)),
                _ => fs::remove_file(&path).map_err(io_error("removing", &path)),
            };
            // What is lost with it is fetched again.
            done.unwrap_or_else(|error| tracing::warn!(%error, "some of what was pulled is left out"));
        }
        drop(state);
        Ok(packs)
    }

    /// Whether a chunk of that digest and size is here. Its bytes may be damaged.
    pub(super) fn has(&self, chunk: &ChunkRef) -> bool {
        self.state().places.get(&chunk.digest).is_some_and(|place| place.size == chunk.size)
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
        if state.places.contains_key(&chunk.digest) {
            return Ok(());
        }
        self.append(&mut state, chunk.digest, bytes)
    }

    /// Takes a chunk for missing, because its bytes are damaged.
    pub(super) fn forget(&self, digest: &Digest) {
        self.state().places.remove(digest);
    }

    /// Gives all other chunks back to the file system.
    pub(super) fn retain(&self, kept: &HashSet<Digest>) -> Result<(), VaultError> {
        let mut state = self.state();
        let (mut used, mut lessened) = (BTreeSet::new(), BTreeSet::new());
        state.places.retain(|digest, place| {
            let is_kept = kept.contains(digest);
            if is_kept {
                used.insert(place.pack)
            } else {
                lessened.insert(place.pack)
            };
            is_kept
        });
        let unused: Vec<u32> = state.packs.keys().copied().filter(|pack| !used.contains(pack)).collect();
        for pack in unused {
            self.remove(&mut state, pack)?;
            lessened.remove(&pack);
        }
        if lessened.is_empty() {
            return Ok(());
        }
        // Nothing is appended behind what was given back.
        state.open = None;
        let lessened = state.within(&lessened);
        for (pack, chunks) in &lessened {
            self.write_index(&mut state, *pack, chunks)?;
        }
        durable::sync_file_system(&self.directory).map_err(io_error("syncing", &self.directory))?;
        for (pack, chunks) in lessened {
            let places = chunks.iter().map(|(_, place)| *place);
            if !self.make_holes(state.packs.entry(pack).or_default(), pack, places)? {
                self.move_chunks(&mut state, pack, chunks)?;
            }
        }
        Ok(())
    }

    /// Bytes of disk that the packs take.
    pub(super) fn used(&self) -> u64 {
        let takes = |pack: &Pack| {
            // Where a file has holes is written into a block of its own.
            let map = if pack.holes > 0 { BLOCK_BYTES } else { 0 };
            on_disk(pack.bytes).saturating_sub(pack.holes) + map + on_disk(pack.entries * ENTRY_BYTES as u64)
        };
        self.state().packs.values().map(takes).sum()
    }

    /// Bytes of disk that chunks will take at most: so many, with so many bytes in all.
    pub(super) fn needed(chunks: u64, bytes: u64) -> u64 {
        // A pack is full once the next chunk does not fit.
        let packs = (bytes / (PACK_BYTES - MAX_CHUNK_BYTES as u64)).max(chunks / PACK_CHUNKS) + 1;
        let partly_filled = 2 * packs.min(chunks) * BLOCK_BYTES;
        bytes + chunks * ENTRY_BYTES as u64 + partly_filled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chunks(&self, pack: u32) -> PathBuf {
        self.directory.join(format!("{pack:08}.chunks"))
    }

    fn index(&self, pack: u32) -> PathBuf {
        self.directory.join(format!("{pack:08}.index"))
    }

    fn load(&self, state: &mut State, pack: u32) -> Result<(), VaultError> {
        let (index, chunks) = (self.index(pack), self.chunks(pack));
        let encoded = durable::read(&index, PACK_CHUNKS * ENTRY_BYTES as u64);
        let encoded = encoded.map_err(io_error("reading", &index))?;
        let bytes = fs::metadata(&chunks).map_err(io_error("reading", &chunks))?.len();
        let (encoded, _torn) = encoded.as_chunks::<ENTRY_BYTES>();
        let mut size = Pack { bytes, holes: 0, entries: encoded.len() as u64 };
        let is_whole =
            |place: &Place| (1..=MAX_CHUNK_BYTES).contains(&(place.size as usize)) && place.end() <= bytes;
        let mut entries: Vec<(Digest, Place)> = encoded
            .iter()
            .map(|entry| Place::decode(pack, entry))
            .filter(|(_, place)| is_whole(place))
            .collect();
        state.places.extend(entries.iter().copied());
        entries.sort_unstable_by_key(|(_, place)| place.offset);
        // The power may have gone between an index and its holes.
        let made = self.make_holes(&mut size, pack, entries.iter().map(|(_, place)| *place));
        state.packs.insert(pack, size);
        made.map(drop)
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
        let size = u32::try_from(bytes.len()).map_err(|_| VaultError::Foreign(digest))?;
        let has_room = |pack: &Pack| pack.bytes + u64::from(size) <= PACK_BYTES && pack.entries < PACK_CHUNKS;
        let State { places, packs, open } = state;
        let open = match open.take().filter(|open| packs.get(&open.pack).is_some_and(has_room)) {
            Some(found) => open.insert(found),
            None => {
                let pack = packs.last_key_value().map_or(1, |(last, _)| last.saturating_add(1));
                open.insert(self.begin(pack)?)
            }
        };
        let pack = packs.entry(open.pack).or_default();
        let place = Place { pack: open.pack, offset: u32::try_from(pack.bytes).unwrap_or(u32::MAX), size };
        // Where this fails, the next chunk is written over it.
        let path = || self.chunks(place.pack);
        open.chunks.write_all_at(bytes, pack.bytes).map_err(|error| io_error("writing", &path())(error))?;
        let path = || self.index(place.pack);
        let written = open.index.write_all_at(&place.encode(&digest), pack.entries * ENTRY_BYTES as u64);
        written.map_err(|error| io_error("writing", &path())(error))?;
        pack.bytes += u64::from(size);
        pack.entries += 1;
        places.insert(digest, place);
        Ok(())
    }

    fn begin(&self, pack: u32) -> Result<Open, VaultError> {
        let create = |path: PathBuf| File::create(&path).map_err(io_error("making", &path));
        Ok(Open { pack, chunks: create(self.chunks(pack))?, index: create(self.index(pack))? })
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

    fn write_index(
        &self,
        state: &mut State,
        pack: u32,
        chunks: &[(Digest, Place)],
    ) -> Result<(), VaultError> {
        let path = self.index(pack);
        let entries: Vec<_> = chunks.iter().map(|(digest, place)| place.encode(digest)).collect();
        replace(&path, entries.as_flattened()).map_err(io_error("writing", &path))?;
        state.packs.entry(pack).or_default().entries = entries.len() as u64;
        Ok(())
    }

    /// Gives back what lies between a pack's chunks, which come in order. `false` where the file system can't.
    fn make_holes(
        &self,
        size: &mut Pack,
        pack: u32,
        places: impl Iterator<Item = Place>,
    ) -> Result<bool, VaultError> {
        let path = self.chunks(pack);
        let file = File::options().write(true).open(&path).map_err(io_error("writing", &path))?;
        size.holes = 0;
        let mut end = 0_u64;
        for (begin, next) in
            places.map(|place| (u64::from(place.offset), place.end())).chain([(size.bytes, size.bytes)])
        {
            let hole = end.next_multiple_of(BLOCK_BYTES)..begin / BLOCK_BYTES * BLOCK_BYTES;
            if !hole.is_empty() {
                match durable::make_hole(&file, &hole) {
                    Ok(()) => size.holes += hole.end - hole.start,
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(false),
                    Err(error) => return Err(io_error("writing", &path)(error)),
                }
            }
            // A damaged entry may lie anywhere.
            end = end.max(next);
        }
        Ok(true)
    }

    /// Moves a pack's chunks to where they lie side by side, and removes it.
    fn move_chunks(
        &self,
        state: &mut State,
        pack: u32,
        chunks: Vec<(Digest, Place)>,
    ) -> Result<(), VaultError> {
        for (digest, place) in chunks {
            match self.read_at(&place)? {
                Some(bytes) => self.append(state, digest, &bytes)?,
                None => drop(state.places.remove(&digest)),
            }
        }
        durable::sync_file_system(&self.directory).map_err(io_error("syncing", &self.directory))?;
        self.remove(state, pack)
    }
}

impl State {
    /// The chunks of some packs, each in the order in which they lie.
    fn within(&self, packs: &BTreeSet<u32>) -> BTreeMap<u32, Vec<(Digest, Place)>> {
        let mut found: BTreeMap<u32, Vec<(Digest, Place)>> = BTreeMap::new();
        for (digest, place) in self.places.iter().filter(|(_, place)| packs.contains(&place.pack)) {
            found.entry(place.pack).or_default().push((*digest, *place));
        }
        found.values_mut().for_each(|chunks| chunks.sort_unstable_by_key(|(_, place)| place.offset));
        found
    }
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
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Chunks of 16,000 bytes, four to three pages of the disk.
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
        shorten("00000001.chunks", 1);
        shorten("00000001.index", ENTRY_BYTES as u64 + 1);
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
        for name in ["ab/file", "00000007.chunks", "00000008.index", "00000009.new", "1.index"] {
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
        // One in ten of the first pack, none of the second, all of the third.
        let (first, third) = (&chunks[..250], &chunks[550..]);
        let staying: Vec<_> = first.iter().step_by(10).chain(third).cloned().collect();
        packs.retain(&kept(&staying)).unwrap();
        let after = (packs.used(), allocated(&directory));
        assert!(after.0 < before.0 / 4, "{after:?} of {before:?}");
        assert!(after.1 <= after.0, "{after:?}: more is taken than is counted");
        assert_whole(&packs, &staying);
        let again = filled(&directory, &[]);
        assert_eq!(again.used(), after.0);
        assert_whole(&again, &staying);
        assert!(!again.has(&chunks[1].0));
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
            state.open = None;
            let lessened = state.within(&BTreeSet::from([1])).remove(&1).unwrap();
            packs.move_chunks(&mut state, 1, lessened).unwrap();
        }
        assert_whole(&packs, &chunks[40..60]);
        assert!(packs.used() < 21 * 16_000 + 2 * BLOCK_BYTES && allocated(&directory) <= packs.used());
        assert_whole(&filled(&directory, &[]), &chunks[40..60]);
    }

    #[test]
    fn a_damaged_entry_costs_no_other_chunk_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let chunks = chunks(10);
        drop(filled(&directory, &chunks));
        let path = directory.path().join("00000001.index");
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
