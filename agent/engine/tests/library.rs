//! Finding ONNX Runtime's library. One process has one library, so this is one test, in the order of a bad day: every
//! library that can't be used first, then one that can.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::path::Path;

use engine::{Engine, LoadError, LoadOptions, Provider, available, load};

mod support;

#[test]
fn a_library_that_can_not_be_used_is_an_error_and_spoils_nothing() {
    let model =
        std::fs::read(support::workspace().join("modules/samples/power-demand/1/model.onnx")).unwrap();
    let options = |provider, path: &Path| LoadOptions {
        provider,
        threads: 1,
        onnxruntime: Some(path.into()),
        ..LoadOptions::default()
    };
    let says = |provider, path: &Path| {
        let error = load(&model, &options(provider, path)).unwrap_err();
        assert!(matches!(error, LoadError::ProviderUnavailable { .. }), "{error}");
        error.to_string()
    };
    let directory = tempfile::tempdir().unwrap();
    let library = support::library();

    let missing = directory.path().join("missing.so");
    assert!(says(Provider::Cpu, &missing).ends_with("missing.so: No such file or directory (os error 2)"));
    // A path is an order, for `auto` too.
    assert!(says(Provider::Auto, &missing).contains("missing.so"));

    let text = directory.path().join("text.so");
    std::fs::write(&text, "not a library").unwrap();
    assert!(says(Provider::Cpu, &text).contains("no shared library"));

    let half = directory.path().join("half.so");
    let whole = std::fs::read(&library).unwrap();
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    assert!(says(Provider::Cpu, &half).contains("it is cut off"));

    let other = other_library();
    assert!(says(Provider::Cpu, &other).contains("does not export OrtGetApiBase"));

    let loaded = load(&model, &options(Provider::Auto, &library)).unwrap();
    assert_eq!((loaded.engine, loaded.provider, &loaded.why), (Engine::OnnxRuntime, Provider::Cpu, &None));
    assert!(loaded.engine_version.starts_with("1."), "{loaded:?}");

    let copy = directory.path().join("copy.so");
    std::fs::write(&copy, &whole).unwrap();
    assert!(says(Provider::Cpu, &copy).contains("can't hold two"));

    let cuda = says(Provider::Cuda, &library);
    assert!(cuda.contains("provider cuda can't be had") && cuda.contains("built without it"), "{cuda}");
    let here = available(&options(Provider::Auto, &library));
    let can = |provider| here.iter().find(|entry| entry.provider == provider).unwrap().version.is_ok();
    assert!(can(Provider::Tract) && can(Provider::Cpu) && !can(Provider::Cuda), "{here:?}");
}

/// A library that this process has loaded and that is not ONNX Runtime.
fn other_library() -> std::path::PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths.find(|path| path.contains("libc.so") || path.contains("libgcc_s")).unwrap().into()
}
