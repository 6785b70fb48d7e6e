//! Bundles from a server and from a file, whole, in parts, broken off and wrong. Needs the `openssl` command.

mod server;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use cloud_sync::bundle::Bundle;

use super::*;
use server::Server;

/// A device's disk, and a bundle to bring to it.
struct Fixture {
    directory: tempfile::TempDir,
    vault: Vault,
    digest: Digest,
    size: u64,
    archive: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(&directory.path().join("vault"), 1 << 30).unwrap();
        let mut fixture = Self { directory, vault, digest: Digest::of(b""), size: 0, archive: Vec::new() };
        fixture.version(&noise(1, 1_500_000));
        fixture
    }

    /// Another version of the bundle is to come.
    fn version(&mut self, onnx: &[u8]) {
        let source = self.directory.path().join("model.onnx");
        fs::write(&source, onnx).unwrap();
        let bundle = Bundle::open(&source).unwrap();
        self.archive.clear();
        bundle.write_archive(&mut self.archive, |_| ()).unwrap();
        (self.digest, self.size) = (bundle.digest(), bundle.manifest().size());
        self.vault.keep(BTreeSet::from([self.digest]));
    }

    fn pull(&self, origin: &Origin, source: &str) -> Result<Transfer, FetchError> {
        let (source, stop) = (source.parse().unwrap(), CancellationToken::new());
        let size = Some(self.size);
        Pull { vault: &self.vault, digest: self.digest, size, source: &source, stop: &stop }.run(origin)
    }

    fn pull_from(&self, server: &Server) -> Result<Transfer, FetchError> {
        self.pull(&server.origin(&server.url()), &server.url())
    }

    /// Why the bundle that `server` has does not come, and that nothing of it is believed.
    fn refused(&self, server: &Server) -> String {
        later(self.pull_from(server))
    }

    fn is_here(&self) -> bool {
        self.vault.verify(&self.digest).is_ok()
    }
}

fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut output = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut output);
    output
}

fn later(result: Result<Transfer, FetchError>) -> String {
    match result {
        Err(FetchError::Later(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bundle_comes_whole_and_by_its_user() {
    let fixture = Fixture::new();
    let server = Server::start(fixture.archive.clone());
    let url = server.url().replace("https://", "https://user:p%40ss@");
    let transfer = fixture.pull(&server.origin(&url), &url).unwrap();
    assert!(fixture.is_here());
    let state = server.state.lock().unwrap();
    assert_eq!(transfer.fetched_bytes, state.sent as u64);
    assert_eq!(transfer.shared_bytes, 0);
    assert!(transfer.fetched_bytes <= fixture.archive.len() as u64);
    for head in &state.requests {
        assert!(head.contains(concat!("\r\nuser-agent: edgewise-agent/", env!("CARGO_PKG_VERSION"), "\r\n")));
        assert!(head.contains("\r\nauthorization: Basic dXNlcjpwQHNz\r\n"), "{head}");
    }
    // Header, manifest, and all chunks at once.
    assert_eq!(state.requests.len(), 3, "{:?}", state.requests);
}

#[test]
fn what_broke_off_goes_on_where_it_was() {
    let fixture = Fixture::new();
    let server = Server::start(fixture.archive.clone());
    server.state.lock().unwrap().cuts =
        [None, None, Some(300_000), Some(200_001), Some(10_000)].into_iter().collect();
    let why = fixture.refused(&server);
    assert!(why.contains("the bundle at https://127.0.0.1"), "{why}");
    assert!(!fixture.is_here());
    // Two breaks were gone on from at once, to the byte.
    let asked = server.asked();
    assert_eq!((asked.len(), asked[3] - asked[2], asked[4] - asked[3]), (5, 300_000, 200_001));

    fixture.pull_from(&server).unwrap();
    assert!(fixture.is_here());
    assert!(server.asked()[5] > asked[2] + 400_000, "{:?}", server.asked());
    let twice = server.state.lock().unwrap().sent.saturating_sub(fixture.archive.len());
    assert!(twice <= limits::MAX_CHUNK_BYTES, "{twice} bytes came twice");
}

#[test]
fn a_version_that_shares_chunks_brings_only_its_own() {
    let mut fixture = Fixture::new();
    let server = Server::start(fixture.archive.clone());
    fixture.pull_from(&server).unwrap();
    let mut onnx = noise(1, 1_500_000);
    // Two places far from each other: two requests, and nothing between them.
    onnx[200_000..200_100].copy_from_slice(&noise(2, 100));
    onnx[1_200_000..1_200_100].copy_from_slice(&noise(2, 100));
    fixture.version(&onnx);
    server.state.lock().unwrap().file = fixture.archive.clone();
    server.state.lock().unwrap().requests.clear();
    let transfer = fixture.pull_from(&server).unwrap();
    assert!(fixture.is_here());
    assert_eq!(server.asked().len(), 4);
    assert!(transfer.fetched_bytes < 400_000, "{transfer:?}");
    assert!(transfer.shared_bytes > 1_100_000, "{transfer:?}");
    let again = fixture.pull_from(&server).unwrap();
    assert_eq!((again.fetched_bytes, server.asked().len()), (0, 4), "what is here is not asked for");
}

#[test]
fn a_server_without_ranges_is_read_through() {
    let fixture = Fixture::new();
    let server = Server::start(fixture.archive.clone());
    server.state.lock().unwrap().ignores_ranges = true;
    fixture.pull_from(&server).unwrap();
    assert!(fixture.is_here());
    assert_eq!(server.asked(), [0], "one answer holds all");

    let fixture = Fixture::new();
    server.state.lock().unwrap().cuts = [Some(700_000)].into();
    fixture.pull_from(&server).unwrap();
    assert!(fixture.is_here());
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn a_file_that_is_another_is_refused() {
    let fixture = Fixture::new();
    let mut other = Fixture::new();
    other.version(&noise(9, 100_000));
    let server = Server::start(other.archive);
    let why = fixture.refused(&server);
    assert!(why.contains(&format!("the file is not the bundle {}: its manifest", fixture.digest)), "{why}");
    assert_eq!(fixture.vault.used().unwrap(), 0);

    let mut flipped = fixture.archive.clone();
    let last = flipped.len() - 400_000;
    flipped[last] ^= 1;
    server.state.lock().unwrap().file = flipped;
    let why = fixture.refused(&server);
    assert!(why.contains("have another digest than its manifest says"), "{why}");
    server.state.lock().unwrap().file = fixture.archive.clone();
    fixture.pull_from(&server).unwrap();
    assert!(fixture.is_here(), "once the file is right");
}

#[test]
fn a_file_that_is_cut_short_ends_the_pull() {
    for ignores_ranges in [false, true] {
        let fixture = Fixture::new();
        let server = Server::start(fixture.archive[..1_000_000].to_vec());
        server.state.lock().unwrap().ignores_ranges = ignores_ranges;
        let why = fixture.refused(&server);
        let expected = if ignores_ranges { "it ends at byte 1000000" } else { "shorter than the bundle" };
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn a_hostile_first_header_is_refused() {
    let fixture = Fixture::new();
    let mut hostile = fixture.archive.clone();
    // The size as octal digits cannot be so large; as a binary number it can.
    hostile[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    hostile[148..156].fill(b' ');
    let sum: u32 = hostile[..512].iter().map(|byte| u32::from(*byte)).sum();
    hostile[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let server = Server::start(hostile);
    let why = fixture.refused(&server);
    assert!(why.contains("the manifest is 1152921504606846976, the limit is"), "{why}");
    server.state.lock().unwrap().file = vec![7; 100_000];
    assert!(fixture.refused(&server).contains("not read as a tar"));
}

#[test]
fn what_the_server_says_instead_is_told_without_secrets() {
    let fixture = Fixture::new();
    let server = Server::start(fixture.archive.clone());
    let plain = format!("302 Found\r\nlocation: {}?sig=secret", server.url().replace("https", "http"));
    for (instead, expected) in [
        ("404 Not Found", "the server answers 404 Not Found; is the URL right"),
        ("403 Forbidden", "the server answers 403 Forbidden; the URL needs a user"),
        ("503 Service Unavailable", "the server answers 503 Service Unavailable"),
        ("206 Partial\r\ncontent-range: bytes 7-9/10", "another part of it than it was asked for"),
        (&plain, "leads on to what is not https"),
        ("302 Found\r\nlocation: /models/x.bundle", "too many redirects"),
    ] {
        server.state.lock().unwrap().instead = Some(instead.to_owned());
        let url = server.url().replace("https://", "https://user:secret@") + "?sig=secret";
        let why = later(fixture.pull(&server.origin(&url), &url));
        assert!(why.contains(expected), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }
    server.state.lock().unwrap().instead = Some("302 Found\r\nlocation: /moved".to_owned());
    fixture.pull_from(&server).unwrap();
    assert!(fixture.is_here(), "a redirect to https is followed");
}

#[test]
fn a_server_that_nobody_vouches_for_is_refused() {
    let fixture = Fixture::new();
    let (server, stranger) = (Server::start(Vec::new()), Server::start(fixture.archive.clone()));
    let why = later(fixture.pull(&server.origin(&stranger.url()), &stranger.url()));
    assert!(why.contains("certificate"), "{why}");
    assert!(stranger.state.lock().unwrap().requests.is_empty());
}

#[test]
fn a_bundle_comes_from_a_file() {
    let fixture = Fixture::new();
    let path = fixture.directory.path().join("x.bundle");
    let pull = |path: &PathBuf| {
        let source = Source::File(path.clone());
        fixture.pull(&Origin::new(&source).unwrap(), &String::from(source))
    };
    let why = later(pull(&path));
    assert!(why.contains("x.bundle: it is not there; is its directory mounted?"), "{why}");
    assert!(later(pull(&fixture.directory.path().to_owned())).contains("it is no file"));
    fs::write(&path, &fixture.archive[..1_000_000]).unwrap();
    assert!(later(pull(&path)).contains("it ends at byte 1000000"));
    fs::write(&path, &fixture.archive).unwrap();
    let transfer = pull(&path).unwrap();
    assert!(fixture.is_here());
    assert!(transfer.fetched_bytes < 600_000, "what came before is not read again: {transfer:?}");
}

#[test]
fn what_is_announced_wrong_or_no_longer_wanted_does_not_come() {
    let mut fixture = Fixture::new();
    let server = Server::start(fixture.archive.clone());
    let (source, stop) = (server.url().parse().unwrap(), CancellationToken::new());
    stop.cancel();
    let pull =
        Pull { vault: &fixture.vault, digest: fixture.digest, size: None, source: &source, stop: &stop };
    assert!(later(pull.run(&server.origin(&server.url()))).contains("no longer wanted"));
    assert!(server.state.lock().unwrap().requests.is_empty());

    fixture.size += 1;
    let refused = fixture.pull_from(&server);
    assert!(matches!(&refused, Err(FetchError::Never(why)) if why.contains("were announced")), "{refused:?}");
    let stop = CancellationToken::new();
    let pull =
        Pull { vault: &fixture.vault, digest: fixture.digest, size: None, source: &source, stop: &stop };
    pull.run(&server.origin(&server.url())).unwrap();
    assert!(fixture.is_here(), "a size that is not known is none to compare with");
}
