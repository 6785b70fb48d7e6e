//! What must not serve does not: at the registry's door before it gets a number, on the device before it is swapped in.

use std::path::Path;

use e2e::data::{self, MODEL};
use e2e::files;
use e2e::process::{Cloud, Failure};
use e2e::site::{DEVICE, Site};
use serde_json::Value;

/// Spoils the bundle in a directory.
type Spoil = fn(&Path) -> Result<(), Failure>;

#[test]
fn a_bad_bundle_is_refused_with_its_reason_and_takes_no_number() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/gate")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let cases: [(&str, Spoil, &[&str]); 9] = [
        ("golden", other_golden_output, &["sample 5", "probabilities"]),
        ("truncated", |bundle| rewrite(bundle, |onnx| onnx.truncate(onnx.len() / 2)), &["ONNX"]),
        ("noise", |bundle| rewrite(bundle, |onnx| onnx.fill(0xA5)), &["ONNX"]),
        ("operator", |bundle| rewrite(bundle, |onnx| replace(onnx, b"Conv", b"Cnov")), &["Cnov"]),
        ("leaving", |bundle| toml(bundle, "model.onnx", "../model.onnx"), &["../model.onnx", "path"]),
        ("link", link_out, &["outside"]),
        ("key", |bundle| toml(bundle, "license", "licence"), &["model.toml", "licence", "line 5"]),
        ("missing", |bundle| toml(bundle, "labels.txt", "names.txt"), &["names.txt", "not in the bundle"]),
        ("size", too_large_description, &["model.toml", "limit"]),
    ];
    for (name, spoil, says) in cases {
        let bundle = data::copy(1, &directory.join(name))?;
        spoil(&bundle)?;
        let path = bundle.display().to_string();
        let output = cloud.edgewise(&["model", "register", &path, "--name", MODEL])?;
        let line = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert_eq!(output.status.code(), Some(4), "{name}: {line}");
        assert_eq!(line.lines().count(), 1, "{name}: {line}");
        assert!(says.iter().all(|word| line.contains(word)), "{name}: {line}");
    }
    assert_eq!(cloud.json(&["model", "list"])?, Value::Array(Vec::new()));
    assert_eq!(cloud.register(&data::sample(Some(1)))?, 1, "a refused bundle took a number");
    Ok(())
}

#[test]
fn a_version_that_fails_its_proof_on_the_device_leaves_the_old_one_in_service() -> Result<(), Failure> {
    let site = Site::start("gate-device")?;
    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    site.bring(1)?;
    let bundle = data::copy(2, &site.directory.join("gpu"))?;
    toml(&bundle, "\"any\"", "\"gpu\"")?;
    assert_eq!(site.cloud.register(&bundle)?, 2);
    assert_eq!(site.cloud.register(&data::sample(Some(2)))?, 3);

    // One asks in its bundle for what the device has not, the other in its deployment.
    for (version, more) in [(2, &[][..]), (3, &["--provider", "openvino"])] {
        let id = format!("{MODEL}:{version}");
        site.cloud.text(&[&["deploy", &id, "--device", DEVICE], more].concat())?;
        let rejected = site.cloud.wait_for_phase(DEVICE, MODEL, version, "rejected")?;
        let why = rejected["why"].as_str().unwrap_or_default();
        let says = if version == 2 { "GPU" } else { "openvino" };
        assert!(why.to_lowercase().contains(&says.to_lowercase()), "{why:?} does not name {says}");
        assert_eq!(rejected["active"], 1, "{rejected}");
        assert_eq!(site.client().predict(&window)?.0, 1);
    }
    site.deploy(3)?;
    assert_eq!(site.client().predict(&window)?.0, 3);
    Ok(())
}

fn other_golden_output(bundle: &Path) -> Result<(), Failure> {
    let path = bundle.join("golden.json");
    let mut golden: Value = serde_json::from_str(&files::read(&path)?).map_err(|error| error.to_string())?;
    let outputs = golden["samples"][5]["outputs"].as_array_mut().ok_or("there are no outputs")?;
    let output = outputs.iter_mut().find(|output| output["name"] == "probabilities");
    output.ok_or("there are no probabilities")?["data"][0] = 0.5.into();
    files::write(&path, golden.to_string())
}

fn too_large_description(bundle: &Path) -> Result<(), Failure> {
    let path = bundle.join("model.toml");
    let text = files::read(&path)? + &"# so it goes on\n".repeat(100_000);
    files::write(&path, text)
}

fn link_out(bundle: &Path) -> Result<(), Failure> {
    std::os::unix::fs::symlink("/etc/passwd", bundle.join("outside")).map_err(|error| error.to_string())
}

fn toml(bundle: &Path, from: &str, to: &str) -> Result<(), Failure> {
    let path = bundle.join("model.toml");
    let text = files::read(&path)?;
    assert!(text.contains(from), "{text}");
    files::write(&path, text.replace(from, to))
}

fn rewrite(bundle: &Path, change: impl Fn(&mut Vec<u8>)) -> Result<(), Failure> {
    let path = bundle.join("model.onnx");
    let mut onnx = std::fs::read(&path).map_err(|error| error.to_string())?;
    change(&mut onnx);
    files::write(&path, onnx)
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let mut at = 0;
    while let Some(window) = bytes.get_mut(at..at + from.len()) {
        if *window == *from {
            window.copy_from_slice(to);
        }
        at += 1;
    }
}
