//! Bundles in their three forms, and those that are refused.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::OnceLock;

use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use super::*;

const MANIFEST: &str = ".edgewise-manifest";

#[test]
fn the_digest_is_of_the_bytes_and_of_nothing_else() {
    let directory = made();
    let bundle = Bundle::open(directory.path()).unwrap();
    assert_eq!(bundle.digest().to_string(), GOLDEN_DIGEST, "a bundle has a new name: devices pull it again");
    assert_eq!(Digest::of(&archive_of(&bundle)).to_string(), GOLDEN_ARCHIVE);

    let other = made();
    let old = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    fs::File::options().append(true).open(other.path().join("model.onnx")).unwrap().set_times(old).unwrap();
    fs::write(other.path().join(".hidden"), "no part of a bundle").unwrap();
    fs::create_dir(other.path().join(".git")).unwrap();
    fs::write(other.path().join(".git/config"), "no part of a bundle").unwrap();
    assert_eq!(Bundle::open(other.path()).unwrap().digest(), bundle.digest());

    fs::write(other.path().join("labels.txt"), "low\nhigh").unwrap();
    assert_ne!(Bundle::open(other.path()).unwrap().digest(), bundle.digest());
}

#[test]
fn all_three_forms_hold_the_same_files() {
    let directory = made();
    let bundle = Bundle::open(directory.path()).unwrap();
    assert_eq!(files(&bundle), made_files());
    assert_eq!(bundle.manifest().size(), made_files().values().map(|bytes| bytes.len() as u64).sum::<u64>());

    let file = directory.path().join("x.bundle");
    let mut seen = 0;
    bundle.write_archive(File::create(&file).unwrap(), |written| seen = written).unwrap();
    assert_eq!(seen, bundle.manifest().size());
    let archive = Bundle::open(&file).unwrap();
    assert_eq!(archive.digest(), bundle.digest());
    assert_eq!(archive.description(), bundle.description());
    assert_eq!(files(&archive), made_files());
    assert_eq!(archive_of(&archive), fs::read(&file).unwrap());

    let bare = Bundle::open(&directory.path().join("model.onnx")).unwrap();
    let onnx = bare.description().onnx().unwrap();
    assert_eq!(bare.read(&onnx).unwrap(), made_files()["model.onnx"]);
    assert_eq!(bare.manifest().files.len(), 2);
    let again = directory.path().join("other-name.onnx");
    fs::copy(directory.path().join("model.onnx"), &again).unwrap();
    assert_eq!(Bundle::open(&again).unwrap().digest(), bare.digest());
}

#[test]
fn an_archive_from_stored_chunks_is_the_same_archive() {
    let directory = made();
    let bundle = Bundle::open(directory.path()).unwrap();
    let mut store = BTreeMap::new();
    bundle
        .each_chunk(|chunk, bytes| {
            store.insert(chunk.digest, bytes.to_vec());
            Ok::<(), BundleError>(())
        })
        .unwrap();
    let fetch = |chunk: &ChunkRef| Ok::<_, BundleError>(store[&chunk.digest].clone());
    let mut output = Vec::new();
    write_archive_from(&mut output, bundle.encoded_manifest(), fetch).unwrap();
    assert_eq!(output, archive_of(&bundle));

    let onnx = BundlePath::new("model.onnx").unwrap();
    assert_eq!(bundle.manifest().assemble(&onnx, fetch).unwrap(), made_files()["model.onnx"]);
    let flipped = |chunk: &ChunkRef| {
        let mut bytes = store[&chunk.digest].clone();
        bytes[0] ^= 1;
        Ok::<_, BundleError>(bytes)
    };
    assert!(matches!(bundle.manifest().assemble(&onnx, flipped), Err(BundleError::Damaged(_))));
    let short = |chunk: &ChunkRef| Ok::<_, BundleError>(store[&chunk.digest][1..].to_vec());
    assert!(write_archive_from(Vec::new(), bundle.encoded_manifest(), short).is_err());
}

#[test]
fn every_chunk_of_an_archive_lies_where_its_manifest_says() {
    let directory = made();
    let bundle = Bundle::open(directory.path()).unwrap();
    let archive = archive_of(&bundle);
    let (header, rest) = archive.split_first_chunk().unwrap();
    let size = layout::manifest_bytes(header).unwrap();
    assert_eq!(&rest[..size], bundle.encoded_manifest());

    let places: Vec<(u64, ChunkRef)> = layout::chunk_places(bundle.manifest(), size).collect();
    assert!(places.iter().map(|(_, chunk)| chunk).eq(bundle.manifest().chunks()));
    for (at, chunk) in &places {
        let bytes = &archive[*at as usize..][..chunk.size as usize];
        assert_eq!(Digest::of(bytes), chunk.digest, "at {at}");
    }
}

#[test]
fn a_first_header_is_not_believed() {
    let directory = made();
    let bundle = Bundle::open(directory.path()).unwrap();
    let archive = archive_of(&bundle);
    let (header, _) = archive.split_first_chunk::<{ layout::HEADER_BYTES }>().unwrap();
    let why = |edit: &dyn Fn(&mut tar::Header), sum: bool| {
        let mut header = tar::Header::from_byte_slice(header).clone();
        edit(&mut header);
        if sum {
            header.set_cksum();
        }
        layout::manifest_bytes(header.as_bytes()).unwrap_err().to_string()
    };
    assert!(why(&|header| header.set_size(1 << 60), true).contains("the manifest is 1152921504606846976"));
    assert!(why(&|header| header.set_size(9), false).contains("not read as a tar"));
    assert!(why(&|header| header.set_path("model.toml").unwrap(), true).contains("its first entry is not"));
    assert!(why(&|header| header.set_entry_type(EntryType::Symlink), true).contains("its first entry"));
    assert!(layout::manifest_bytes(&[0; 512]).is_err());
}

#[test]
fn versions_that_share_parts_share_chunks() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/samples/power-demand");
    let [first, second] = ["1", "2"].map(|version| Bundle::open(&samples.join(version)).unwrap());
    assert_ne!(first.digest(), second.digest());
    let held: HashSet<Digest> = first.manifest().chunks().map(|chunk| chunk.digest).collect();
    let shared = second.manifest().distinct_chunks().into_iter().filter(|chunk| held.contains(&chunk.digest));
    let shared: u64 = shared.map(|chunk| u64::from(chunk.size)).sum();
    let size = second.manifest().size();
    assert!(2 * shared > size, "{shared} of {size} bytes are shared");
}

#[test]
fn names_that_could_lead_elsewhere_are_no_paths() {
    let long = "x".repeat(limits::MAX_PATH_BYTES + 1);
    for bad in [
        "",
        "..",
        "../x",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a/",
        ".hidden",
        "a/.b",
        "a\\b",
        "a\nb",
        "a\0",
        &long,
    ] {
        assert!(matches!(BundlePath::new(bad), Err(BundleError::Path(..))), "{bad:?}");
        let encoded = edited_manifest(|object| {
            object.insert(key("path"), serde_cbor::Value::Text(bad.to_owned()));
        });
        assert!(matches!(Manifest::decode(&encoded), Err(BundleError::Manifest(_))), "{bad:?}");
    }
}

#[test]
fn the_longest_path_fits_into_an_archive() {
    let directory = made();
    let name = "x".repeat(limits::MAX_PATH_BYTES);
    fs::write(directory.path().join(&name), "asset").unwrap();
    let bundle = Bundle::open(directory.path()).unwrap();
    assert_eq!(files(&open_archive(&archive_of(&bundle)).unwrap())[&name], b"asset");
}

#[test]
fn a_directory_that_is_no_bundle_is_refused() {
    let directory = made();
    fs::remove_file(directory.path().join("model.onnx")).unwrap();
    refused(directory.path(), "model.toml names model.onnx, which is not in the bundle");

    let directory = made();
    fs::remove_file(directory.path().join("model.toml")).unwrap();
    refused(directory.path(), "there is no model.toml in it");

    let directory = made();
    std::os::unix::fs::symlink("/etc/hostname", directory.path().join("assets/link")).unwrap();
    refused(
        directory.path(),
        "\"assets/link\" can't be a path in a bundle: it is neither a file nor a directory",
    );

    let directory = made();
    fs::write(directory.path().join("a\\b"), "").unwrap();
    refused(directory.path(), "it holds a backslash");

    let directory = made();
    (0..limits::MAX_BUNDLE_FILES).for_each(|i| fs::write(directory.path().join(i.to_string()), "").unwrap());
    refused(directory.path(), "the number of files is 1025, the limit is 1024");
}

#[test]
fn a_wrong_description_is_named_by_key_and_line() {
    for (toml, why) in [
        ("[onnx]\nfil = \"x\"", "model.toml: line 2: unknown field `fil`, expected `file`"),
        ("\n[oonx]\n", "model.toml: line 2: unknown field `oonx`"),
        ("[onnx]\nfile = \"../x\"", "\"../x\" can't be a path in a bundle"),
        ("[labels]\nfile = \"gone.txt\"", "model.toml names gone.txt"),
        ("[golden]\nfile = \"golden.json\"\nrtol = -1.0", "rtol and golden.atol must be 0 or more"),
        ("[golden]\nfile = \"golden.json\"\natol = nan", "rtol and golden.atol must be 0 or more"),
        ("[resources]\naccelerator = \"tpu\"", "line 2: unknown variant `tpu`"),
        ("[onnx", "model.toml: line 1"),
    ] {
        let directory = made();
        fs::write(directory.path().join("model.toml"), toml).unwrap();
        refused(directory.path(), why);
    }
}

#[test]
fn damage_is_found_before_the_bytes_are_used() {
    let onnx = BundlePath::new("model.onnx").unwrap();
    let whole = made_files()["model.onnx"].clone();
    let mut flipped = whole.clone();
    flipped[70_000] ^= 1;
    let shorter = whole[..99_999].to_vec();
    for bytes in [flipped.clone(), shorter, Vec::new()] {
        let directory = made();
        let bundle = Bundle::open(directory.path()).unwrap();
        fs::write(directory.path().join("model.onnx"), bytes).unwrap();
        assert!(matches!(bundle.read(&onnx), Err(BundleError::Damaged(_))));
        let all = bundle.each_chunk(|_, _| Ok::<(), BundleError>(()));
        assert!(matches!(all, Err(BundleError::Damaged(path)) if path == "model.onnx"));
    }

    let directory = made();
    let bundle = Bundle::open(directory.path()).unwrap();
    let mut archive = archive_of(&bundle);
    let begin = archive.windows(whole.len()).position(|window| window == whole).unwrap();
    archive[begin + 70_000] ^= 1;
    assert!(matches!(open_archive(&archive).unwrap().read(&onnx), Err(BundleError::Damaged(_))));
}

#[test]
fn an_archive_is_its_manifest_and_nothing_else() {
    let manifest = Bundle::open(made().path()).unwrap().encoded_manifest().to_vec();
    let contents = made_files();
    let regular = |name: &str, bytes: &[u8]| entry(name, EntryType::Regular, bytes);
    let head = regular(MANIFEST, &manifest);
    let body: Vec<Vec<u8>> = contents.iter().map(|(name, bytes)| regular(name, bytes)).collect();
    let end = vec![0; 1024];

    assert!(open_archive(&[&head, &body.concat(), &end].map(|part| part.as_slice()).concat()).is_ok());
    let first = &contents["assets/map.bin"];
    let rest = body[1..].concat();
    for (why, parts) in [
        ("its first entry is not", vec![body.concat(), head.clone(), end.clone()]),
        (
            "holds more than its manifest lists",
            vec![head.clone(), body.concat(), regular("more", b"x"), end.clone()],
        ),
        ("it ends before golden.json", vec![head.clone(), body[0].clone(), end.clone()]),
        ("assets/map.bin is not where", vec![head.clone(), rest.clone(), body[0].clone(), end.clone()]),
        (
            "assets/map.bin is not where",
            vec![head.clone(), regular("../../etc/passwd", first), rest.clone(), end.clone()],
        ),
        (
            "assets/map.bin is not where",
            vec![head.clone(), regular("/assets/map.bin", first), rest.clone(), end.clone()],
        ),
        (
            "assets/map.bin is not where",
            vec![head.clone(), regular("assets/map.bin", b"short"), rest.clone(), end.clone()],
        ),
        (
            "assets/map.bin is not where",
            vec![head.clone(), entry("assets/map.bin", EntryType::Symlink, first), rest.clone(), end.clone()],
        ),
        // A long name would be read whole into memory, whatever its size.
        (
            "assets/map.bin is not where",
            vec![
                head.clone(),
                entry("././@LongLink", EntryType::GNULongName, b"assets/map.bin\0"),
                body.concat(),
            ],
        ),
        ("it ends within", vec![head.clone(), body.concat()[..100_000].to_vec()]),
        ("it is empty", vec![]),
        ("it is empty", vec![end.clone()]),
        ("not read as a tar", vec![vec![7; 4096]]),
        ("manifest:", vec![regular(MANIFEST, b"nonsense"), end.clone()]),
        ("manifest:", vec![head[..600].to_vec()]),
    ] {
        match open_archive(&parts.concat()) {
            Err(error) => assert!(error.to_string().contains(why), "{error}, not {why}"),
            Ok(_) => panic!("opened, not {why}"),
        }
    }
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let number = |value: i128| serde_cbor::Value::Integer(value);
    let chunk = |size: i128| {
        let digest = serde_cbor::Value::Bytes(vec![0; 32]);
        let fields = BTreeMap::from([(key("digest"), digest), (key("size"), number(size))]);
        serde_cbor::Value::Array(vec![serde_cbor::Value::Map(fields)])
    };
    let too_large = limits::MAX_CHUNK_BYTES as i128 + 1;
    for (size, chunks) in [(5, chunk(4)), (0, chunk(0)), (too_large, chunk(too_large)), (-1, chunk(1))] {
        let encoded = edited_manifest(|file| {
            file.insert(key("size"), number(size));
            file.insert(key("chunks"), chunks.clone());
        });
        assert!(matches!(Manifest::decode(&encoded), Err(BundleError::Manifest(_))), "{size}");
    }
    let twice = edited_manifest(|file| {
        file.insert(key("path"), serde_cbor::Value::Text("golden.json".to_owned()));
    });
    assert!(Manifest::decode(&twice).unwrap_err().to_string().contains("stand twice"));

    let bundle = Bundle::open(made().path()).unwrap();
    let mut later: BTreeMap<serde_cbor::Value, serde_cbor::Value> =
        serde_cbor::from_slice(bundle.encoded_manifest()).unwrap();
    later.insert(key("format"), number(2));
    let error = Manifest::decode(&serde_cbor::to_vec(&later).unwrap()).unwrap_err();
    assert!(error.to_string().contains("format 2 is not known here; update this program"), "{error}");

    let chunk = ChunkRef { digest: Digest::of(b""), size: limits::MAX_CHUNK_BYTES as u32 };
    let count = limits::MAX_BUNDLE_BYTES / limits::MAX_CHUNK_BYTES as u64 + 1;
    let size = count * limits::MAX_CHUNK_BYTES as u64;
    let huge = FileEntry { path: BundlePath::new("x").unwrap(), size, chunks: vec![chunk; count as usize] };
    assert!(matches!(Manifest::new(vec![huge]), Err(BundleError::Limit { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_manifests_and_archives_are_never_more_than_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        let _ = Manifest::decode(&bytes);
        prop_assert!(open_archive(&bytes).is_err());
    }

    #[test]
    fn damaged_archives_never_give_other_bytes(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        headers in any::<bool>(),
    ) {
        let (mut archive, original) = small().clone();
        // The headers are few beside the contents; half of the cases go for the first of them and the manifest.
        let reach = if headers { 1024 } else { archive.len() };
        changes.into_iter().for_each(|(at, value)| archive[at.index(reach)] = value);
        if let Ok(bundle) = open_archive(&archive) {
            let digest = bundle.digest();
            let intact = bundle.each_chunk(|chunk, bytes| {
                assert_eq!(Digest::of(bytes), chunk.digest);
                Ok::<(), BundleError>(())
            });
            prop_assert!(intact.is_err() || digest == original);
        }
    }

    #[test]
    fn truncated_archives_are_errors(end in any::<prop::sample::Index>()) {
        let (archive, _) = small();
        // Without the two empty blocks at the end nothing is lost.
        let end = end.index(archive.len() - 1024 - 512);
        prop_assert!(open_archive(&archive[..end]).is_err());
    }
}

/// A bundle of every kind of file that there is.
fn made() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in made_files() {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    directory
}

fn made_files() -> BTreeMap<String, Vec<u8>> {
    let toml =
        "[onnx]\nfile = \"model.onnx\"\n[labels]\nfile = \"labels.txt\"\n[golden]\nfile = \"golden.json\"\n";
    [
        ("model.toml", toml.as_bytes().to_vec()),
        ("model.onnx", noise(100_000)),
        ("labels.txt", b"low\nhigh\n".to_vec()),
        ("golden.json", b"{}".to_vec()),
        ("assets/map.bin", noise(600)),
        ("nothing", Vec::new()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut output = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut output);
    output
}

fn files(bundle: &Bundle) -> BTreeMap<String, Vec<u8>> {
    let read = |file: &FileEntry| (file.path.to_string(), bundle.read(&file.path).unwrap());
    bundle.manifest().files.iter().map(read).collect()
}

fn archive_of(bundle: &Bundle) -> Vec<u8> {
    let mut output = Vec::new();
    bundle.write_archive(&mut output, |_| ()).unwrap();
    output
}

/// An archive on disk for as long as it is looked at.
struct Opened {
    bundle: Bundle,
    _file: tempfile::NamedTempFile,
}

impl std::ops::Deref for Opened {
    type Target = Bundle;

    fn deref(&self) -> &Bundle {
        &self.bundle
    }
}

fn open_archive(bytes: &[u8]) -> Result<Opened, BundleError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    Ok(Opened { bundle: Bundle::open(file.path())?, _file: file })
}

/// The archive of a bare model, made once: a property test opens hundreds.
fn small() -> &'static (Vec<u8>, Digest) {
    static SMALL: OnceLock<(Vec<u8>, Digest)> = OnceLock::new();
    SMALL.get_or_init(|| {
        let file = tempfile::Builder::new().suffix(".onnx").tempfile().unwrap();
        fs::write(file.path(), noise(5_000)).unwrap();
        let bundle = Bundle::open(file.path()).unwrap();
        (archive_of(&bundle), bundle.digest())
    })
}

fn refused(path: &Path, why: &str) {
    let error = Bundle::open(path).unwrap_err().to_string();
    assert!(error.contains(why), "{error}, not {why}");
    assert!(!error.contains('\n'), "{error}");
}

fn entry(name: &str, kind: EntryType, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    // Not through the library's setter, which refuses the names that are hostile.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    let mut entry = [header.as_bytes(), bytes].concat();
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn key(name: &str) -> serde_cbor::Value {
    serde_cbor::Value::Text(name.to_owned())
}

/// The manifest of [`made`] with its first file's entry edited.
fn edited_manifest(edit: impl Fn(&mut BTreeMap<serde_cbor::Value, serde_cbor::Value>)) -> Vec<u8> {
    let bundle = Bundle::open(made().path()).unwrap();
    let mut manifest: BTreeMap<serde_cbor::Value, serde_cbor::Value> =
        serde_cbor::from_slice(bundle.encoded_manifest()).unwrap();
    match manifest.get_mut(&key("files")) {
        Some(serde_cbor::Value::Array(files)) => match &mut files[0] {
            serde_cbor::Value::Map(file) => edit(file),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    serde_cbor::to_vec(&manifest).unwrap()
}

const GOLDEN_DIGEST: &str = "0ae2df4e8c1f7ba15e6b5313469587cd7f637fc7595e50aafc0a6bcde924b29f";
const GOLDEN_ARCHIVE: &str = "c24661a9895f3de3b58896bccb66b23a6953ccd3c2d0afe0f340bd9a711f2cad";
