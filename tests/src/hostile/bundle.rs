//! Bundles: the manifest, the one-file form and `model.toml`.

use std::collections::HashSet;
use std::io::Write;

use cloud_sync::bundle::{Bundle, BundleError, Description, Manifest, layout};
use cloud_sync::chunk::ChunkRef;
use cloud_sync::limits::{MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES};
use tempfile::TempDir;

/// A bundle's one `model.toml` with every key.
const DESCRIPTION: &str = r#"
[model]
description = "Tells the load."
framework = 'sklearn'
framework_version = """1.5"""
license = "MIT"
[onnx]
file = "model.onnx"
[labels]
file = "labels.txt"
[golden]
file = "golden.json"
rtol = 1e-3
atol = 0.0001
[resources]
cpu = 0.5
memory_mb = 64
accelerator = "gpu"
"#;

pub(super) fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::decode(data) else { return };
    assert!(manifest.files.len() <= MAX_BUNDLE_FILES && manifest.size() <= MAX_BUNDLE_BYTES);
    let chunks: u64 = manifest.chunks().map(|chunk| u64::from(chunk.size)).sum();
    assert_eq!(chunks, manifest.size());
    let distinct: HashSet<_> = manifest.distinct_chunks().into_iter().map(|chunk| chunk.digest).collect();
    assert!(distinct.len() <= manifest.chunks().count());
    let Ok(encoded) = manifest.encode() else { return };
    let mut end = 0;
    for (begin, ChunkRef { size, .. }) in layout::chunk_places(&manifest, encoded.len()) {
        assert!(begin >= end);
        end = begin + u64::from(size);
    }
    assert_eq!(Manifest::decode(&encoded).ok(), Some(manifest));
}

pub(super) fn manifest_seeds() -> Vec<Vec<u8>> {
    bundle().map(|(_directory, bundle)| bundle.encoded_manifest().to_vec()).into_iter().collect()
}

/// The bytes are a `.bundle` file, but for the checksums of its headers, which no fuzzer would find.
pub(super) fn archive(data: &[u8]) {
    let mut bytes = data.to_vec();
    mend_checksums(&mut bytes);
    if let Some(header) = bytes.first_chunk() {
        let _ = layout::manifest_bytes(header);
    }
    let Ok(mut file) = tempfile::Builder::new().suffix(".bundle").tempfile() else { return };
    if file.write_all(&bytes).is_err() {
        return;
    }
    let Ok(bundle) = Bundle::open(file.path()) else { return };
    let mut read = 0;
    let whole = bundle.each_chunk(|chunk, bytes| {
        assert_eq!(chunk.size as usize, bytes.len());
        read += bytes.len() as u64;
        Ok::<(), BundleError>(())
    });
    if whole.is_err() {
        return;
    }
    assert_eq!(read, bundle.manifest().size());
    let mut written = Vec::new();
    if bundle.write_archive(&mut written, |_| ()).is_ok() {
        let Ok(mut again) = tempfile::Builder::new().suffix(".bundle").tempfile() else { return };
        if again.write_all(&written).is_ok() {
            assert_eq!(Bundle::open(again.path()).map(|again| again.digest()).ok(), Some(bundle.digest()));
        }
    }
}

pub(super) fn archive_seeds() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = bundle().map(|(_directory, bundle)| bundle.write_archive(&mut bytes, |_| ()));
    matches!(written, Some(Ok(()))).then_some(bytes).into_iter().collect()
}

pub(super) fn description(data: &[u8]) {
    let Ok(description) = Description::parse(data) else { return };
    let _ = (description.onnx(), description.golden(), description.labels());
}

pub(super) fn description_seeds() -> Vec<Vec<u8>> {
    ["", "onnx.file = 'm.onnx'\n[golden]\nfile='g'\n", DESCRIPTION].map(Into::into).into()
}

/// A bundle, and the directory that it is read from.
fn bundle() -> Option<(TempDir, Bundle)> {
    let directory = tempfile::tempdir().ok()?;
    let files = [
        ("model.toml", DESCRIPTION.as_bytes()),
        ("model.onnx", &[7; 600]),
        ("labels.txt", b"low\nhigh\n"),
        ("golden.json", br#"{"samples":[]}"#),
    ];
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).ok()?;
    }
    let bundle = Bundle::open(directory.path()).ok()?;
    Some((directory, bundle))
}

/// Puts right the checksum of each header that a reader would come to.
fn mend_checksums(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(block) =
        bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<{ layout::HEADER_BYTES }>())
    {
        // The end is two empty blocks.
        if block.iter().all(|byte| *byte == 0) {
            return;
        }
        let mut header = tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().ok().and_then(|size| size.checked_next_multiple_of(512));
        let size = size.and_then(|size| usize::try_from(size).ok());
        let Some(next) = size.and_then(|size| size.checked_add(at)?.checked_add(512)) else { return };
        at = next;
    }
}
