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
    let path = fixture.root.join("chunks/0000000000.chunks");
    let mut bytes = fs::read(&path).unwrap();
    let first = fixture.bundle.manifest().distinct_chunks()[0];
    bytes[first.size as usize + 7] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(fixture.vault.missing(fixture.bundle.manifest()).is_empty(), "its size is right");
    let digest = fixture.bundle.digest();
    assert!(matches!(fixture.vault.verify(&digest), Err(VaultError::Incomplete(1, _))));
    assert_eq!(fixture.vault.missing(fixture.bundle.manifest()), [victim]);
}

#[test]
fn what_is_taken_away_meanwhile_is_asked_for_again() {
    let fixture = fixture(1 << 20);
    fill(&fixture);
    let digest = fixture.bundle.digest();
    fs::remove_dir_all(fixture.root.join("chunks")).unwrap();
    assert!(matches!(fixture.vault.verify(&digest), Err(VaultError::Incomplete(..))));
    assert_eq!(
        fixture.vault.missing(fixture.bundle.manifest()).len(),
        fixture.bundle.manifest().distinct_chunks().len()
    );
    fill(&fixture);
    assert!(fixture.vault.verify(&digest).is_ok());
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
        fs::metadata(path).unwrap().blocks() * 512 + below.map(|entry| allocated(&entry.path())).sum::<u64>()
    }
    let fixture = fixture(1 << 20);
    let digest = fixture.bundle.digest();
    fixture.vault.put_manifest(&digest, fixture.bundle.encoded_manifest()).unwrap();
    fixture.vault.keep(BTreeSet::from([digest]));
    let announced = fixture.vault.used().unwrap() + fixture.vault.lacking();
    fill(&fixture);
    let used = fixture.vault.used().unwrap();
    assert!(used <= announced && announced <= used + 2 * BLOCK_BYTES, "{used} of {announced}");
    // The three directories that are always there are not among what comes and goes.
    assert!(allocated(&fixture.root) <= used + 3 * BLOCK_BYTES);
}

#[test]
fn a_manifest_has_to_fit_too() {
    let fixture = fixture(BLOCK_BYTES - 1);
    let put = fixture.vault.put_manifest(&fixture.bundle.digest(), fixture.bundle.encoded_manifest());
    assert!(matches!(put, Err(VaultError::Budget { .. })), "{put:?}");
    assert_eq!(fixture.vault.used().unwrap(), 0);
}
