//! Bundles from files and from servers: broken off, wrong, missing and late.

use e2e::data::{self, MODEL};
use e2e::edge::Times;
use e2e::files;
use e2e::module::Module;
use e2e::process::Failure;
use serde_json::{Value, json};

/// Bytes of the bundle that make it come in many chunks.
const HEAVY: usize = 1_000_000;

#[test]
fn a_bundle_comes_from_a_server_and_goes_on_where_it_broke_off() -> Result<(), Failure> {
    let mut module = Module::new("sources-https", Times::default())?;
    let server = module.edge.https()?;
    let trust = module.edge.trust_bundle().display().to_string();
    module.set("SSL_CERT_FILE", &trust);
    let heavy = data::heavy(1, HEAVY, &module.directory.join("heavy"))?;
    let mut wanted = module.bundle_of(&heavy, 1)?;
    let file = file_of(&wanted)?;
    // The URL's query is a secret, as a shared access signature is.
    wanted["source"] = format!("{}/models/heavy.bundle?sig=secret", server.url).into();
    server.put("/models/heavy.bundle?sig=secret", file.clone());
    server.cut(&[300_000, 300_000]);
    module.edge.set_desired(&json!({"models": {MODEL: wanted}}));
    module.run()?;
    let reported = module.wait_for_active(1)?;
    let fetched = reported["models"][MODEL]["transfer"]["fetchedBytes"].as_u64().unwrap_or(0);
    assert!(fetched <= file.len() as u64 + 300_000, "{fetched} of {} bytes were fetched", file.len());
    let asked = server.asked();
    let latest = asked.iter().map(|(_, begin)| *begin).max();
    assert!(latest > Some(300_000), "nothing was resumed: {asked:?}");
    assert!(!module.log().contains("secret") && !reported.to_string().contains("secret"));
    module.send("amlInput", 0..3, &data::test_split()?)?;
    module.all_answered("amlOutput", 3)?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_source_that_is_wrong_is_told_and_one_that_is_late_is_waited_for() -> Result<(), Failure> {
    let module = Module::start("sources-wrong")?;
    let (mut wrong, mut missing) = (module.bundle(2)?, module.bundle(2)?);
    let bytes = file_of(&wrong)?;
    let late = module.directory.join("late.bundle");
    wrong["digest"] = "0f".repeat(32).into();
    missing["source"] = format!("file://{}", late.display()).into();
    let mut short = module.bundle(2)?;
    short["size"] = 17.into();
    module.edge.patch_desired(&json!({"models": {"wrong": wrong, "missing": missing, "short": short}}));
    let why = |reported: &Value, name: &str| {
        let model = &reported["models"][name];
        (
            model["phase"].as_str().unwrap_or_default().to_owned(),
            model["why"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let reported = module.edge.wait_for_reported(|reported| {
        ["wrong", "missing", "short"].iter().all(|name| !why(reported, name).1.is_empty())
    })?;
    let (phase, text) = why(&reported, "wrong");
    assert!(
        phase == "fetching" && text.contains("digest") && text.contains("power-demand-2.bundle"),
        "{text}"
    );
    let (phase, text) = why(&reported, "missing");
    assert!(phase == "fetching" && text.contains("late.bundle"), "{text}");
    let (phase, text) = why(&reported, "short");
    assert!(phase == "rejected" && text.contains("17"), "{text}");
    // Nothing of that is the running model's business.
    module.send("amlInput", 0..3, &data::test_split()?)?;
    module.edge.wait_for_inputs()?;

    files::write(&late, bytes)?;
    module.edge.wait_for_reported(|reported| reported["models"]["missing"]["phase"] == "active")?;
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

/// The file that a model of the twin comes from.
fn file_of(wanted: &Value) -> Result<Vec<u8>, Failure> {
    let path =
        wanted["source"].as_str().and_then(|source| source.strip_prefix("file://")).unwrap_or_default();
    std::fs::read(path).map_err(|error| format!("reading {path}: {error}"))
}
