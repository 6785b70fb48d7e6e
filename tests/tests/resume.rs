//! What a kill -9 of any program takes away: nothing that was on a disk.

use cloud_sync::bundle::Bundle;
use e2e::data::{self, MODEL};
use e2e::files;
use e2e::mosquitto::Mosquitto;
use e2e::process::{Cloud, Failure, wait_until};
use e2e::site::{DEVICE, PATIENCE, Site, start_agent, start_cloud};
use e2e::toxic::Link;

/// Bytes of the asset that makes the bundle heavy.
const HEAVY: usize = 24 << 20;

/// Bytes of an asset that comes with a few requests.
const LIGHT: usize = 1 << 20;

/// Where the link is held: in the middle of the pull.
const HELD: u64 = 10 << 20;

#[test]
fn a_pull_goes_on_where_the_agent_and_the_cloud_were_killed() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/resume-pull")?;
    let broker = Mosquitto::start(&directory.join("broker"))?;
    let link = Link::start(&broker.url)?;
    link.hold_at(HELD);
    let mut cloud = start_cloud(&directory, &broker.url)?;
    let mut agent = start_agent(&directory, &link.url)?;
    cloud.register(&data::heavy(1, HEAVY, &directory.join("bundle"))?)?;
    cloud.text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    link.wait_until_held()?;
    agent.process.kill();
    cloud.process.kill();

    link.open();
    let before = link.passed();
    agent = start_agent(&directory, &link.url)?;
    cloud = start_cloud(&directory, &broker.url)?;
    let model = cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;
    let passed = link.passed() - before;
    let bytes = |key: &str| model["transfer"][key].as_u64().unwrap_or(0);
    let (fetched, shared) = (bytes("fetched_bytes"), bytes("shared_bytes"));
    // The last pieces may have been on their way to the disk, so not all that went down is there.
    assert!(shared > HELD * 3 / 4, "only {shared} of {HELD} bytes were kept");
    assert!(fetched + shared >= HEAVY as u64, "{fetched} + {shared} bytes are not the whole bundle");
    assert!(
        passed < HEAVY as u64 - HELD * 3 / 4,
        "{passed} bytes went down again, {shared} were on the disk"
    );
    assert_eq!(agent.process.terminate()?, 0);
    Ok(())
}

#[test]
fn a_pull_goes_on_when_a_chunk_that_the_registry_had_lost_is_back() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/resume-lost-chunk")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let agent = start_agent(&directory, &cloud.mqtt)?;
    let bundle = data::heavy(1, LIGHT, &directory.join("bundle"))?;
    cloud.register(&bundle)?;
    let chunks = Bundle::open(&bundle).map_err(|error| error.to_string())?.manifest().distinct_chunks();
    let lost = chunks.last().ok_or("the bundle has no chunks")?;
    let objects = files::below(&directory.join("cloud/objects/chunks"))?;
    let object = objects.into_iter().find(|path| path.ends_with(lost.digest.to_string()));
    let (object, aside) = (object.ok_or("the chunk is no object")?, directory.join("aside"));
    std::fs::rename(&object, &aside).map_err(|error| error.to_string())?;

    cloud.text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    let why = format!("the registry does not have {}", lost.digest);
    wait_until(PATIENCE, || match cloud.model_on(DEVICE, MODEL)?.to_string() {
        said if said.contains(&why) => Ok(()),
        said => Err(format!("the device does not say that {why}: {said}")),
    })?;
    std::fs::rename(&aside, &object).map_err(|error| error.to_string())?;
    let model = cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;
    // Pieces that were under way when it was missed come again.
    let fetched = model["transfer"]["fetched_bytes"].as_u64().unwrap_or(u64::MAX);
    assert!((u64::from(lost.size)..LIGHT as u64 / 2).contains(&fetched), "{model}");
    drop(agent);
    Ok(())
}

#[test]
fn a_killed_agent_serves_its_version_again_without_the_cloud() -> Result<(), Failure> {
    let mut site = Site::start("resume-serving")?;
    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    site.bring(1)?;
    site.bring(2)?;
    let label = site.client().predict(&window)?;
    assert_eq!(label.0, 2);

    site.cloud.process.kill();
    site.broker.kill();
    for _ in 0..3 {
        site.restart_agent()?;
        assert_eq!(site.client().predict(&window)?, label);
    }

    site.broker.restart()?;
    site.restart_cloud()?;
    site.cloud.wait_for_phase(DEVICE, MODEL, 2, "active")?;
    let rolled_back =
        site.cloud.json(&["command", DEVICE, "rollback", "--arg", &format!("model={MODEL}")])?;
    assert_eq!(rolled_back["result"]["version"], 1, "the version before was not kept: {rolled_back}");
    site.wait_for_version(1)
}

#[test]
fn a_killed_cloud_and_broker_lose_no_version_and_no_deployment() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/resume-cloud")?;
    let mut broker = Mosquitto::start(&directory.join("broker"))?;
    let mut cloud = start_cloud(&directory, &broker.url)?;
    assert_eq!(cloud.register(&data::sample(Some(1)))?, 1);
    assert_eq!(cloud.register(&data::sample(Some(2)))?, 2);
    cloud.text(&["model", "delete", &format!("{MODEL}:2")])?;
    cloud.text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    cloud.process.kill();
    // With it goes what it kept for subscribers to come: the desired state too.
    broker.kill();
    broker.restart()?;
    cloud = start_cloud(&directory, &broker.url)?;
    assert_eq!(cloud.register(&data::sample(Some(2)))?, 3, "a number was given again");
    let _agent = start_agent(&directory, &broker.url)?;
    cloud.wait_for_phase(DEVICE, MODEL, 1, "active")?;
    Ok(())
}
