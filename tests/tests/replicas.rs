//! Several registries on one broker, one PostgreSQL and one store for objects: work is shared, a kill loses and doubles
//! nothing, and what one of them decides binds the others.

use std::thread;

use e2e::client::Client;
use e2e::data::{self, MODEL, Window};
use e2e::files;
use e2e::process::{Agent, Failure, wait_until};
use e2e::replicas::{DATABASE, Replicas};
use e2e::site::{DEVICE, PATIENCE, adds_up, exported, start_agent};
use e2e::toxic::Link;

/// Bytes of the asset that makes a bundle heavy.
const HEAVY: usize = 16 << 20;

/// Where the link is held: in the middle of the pull.
const HELD: u64 = 5 << 20;

#[test]
fn rows_arrive_once_though_a_replica_is_killed_in_the_middle() -> Result<(), Failure> {
    let mut site = Replicas::start("replicas-rows", 3, false)?;
    let steps =
        site.postgres.query(DATABASE, "SELECT count(*), count(DISTINCT version) FROM _sqlx_migrations")?;
    assert_eq!(steps, "3|3", "the tables were made more than once, or not at all");
    let agent = start_agent(&site.directory, &site.broker.url)?;
    let windows = data::test_split()?;
    site.clouds[0].register(&data::sample(Some(1)))?;
    site.clouds[1].text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    site.clouds[2].wait_for_phase(DEVICE, MODEL, 1, "active")?;

    // A backlog, which then goes up to all of them in turn, several batches at once.
    for cloud in &site.clouds {
        cloud.process.signal(libc::SIGSTOP);
    }
    score(&agent, &windows, 0..4000)?;
    for cloud in &site.clouds {
        cloud.process.signal(libc::SIGCONT);
    }
    wait_for_uploaded(&agent, 500)?;
    site.kill(0)?;
    wait_for_uploaded(&agent, 1500)?;
    site.restart(0)?;
    site.kill(2)?;
    score(&agent, &windows, 4000..5000)?;
    wait_for_uploaded(&agent, 5000)?;

    let flushed = site.clouds[1].json(&["command", DEVICE, "flush", "--timeout", "60s"])?;
    let ledger = &flushed["result"];
    assert!(adds_up(ledger), "{ledger}");
    assert_eq!((&ledger["captured"], &ledger["uploaded"]), (&5000.into(), &5000.into()), "{ledger}");
    let ids = exported(&site.clouds[0], &site.directory.join("rows"))?;
    assert!(ids.values().all(|times| *times == 1), "rows that are there more than once");
    assert_eq!(ids.len(), 5000);

    // Whoever reads the files themselves finds the same: no file that does not count.
    let counted = site.postgres.query(DATABASE, "SELECT count(*) FROM row_files WHERE state = 'durable'")?;
    let parquet = |path: &std::path::PathBuf| path.extension().is_some_and(|ending| ending == "parquet");
    let lying = files::below(&site.objects())?.into_iter().filter(parquet).count();
    assert_eq!(lying.to_string(), counted);
    Ok(())
}

#[test]
fn a_pull_goes_on_when_a_replica_that_feeds_it_is_killed() -> Result<(), Failure> {
    let mut site = Replicas::start("replicas-pull", 2, true)?;
    let link = Link::start(&site.broker.url)?;
    link.hold_at(HELD);
    let agent = start_agent(&site.directory, &link.url)?;
    site.clouds[0].register(&data::heavy(1, HEAVY, &site.directory.join("bundle"))?)?;
    site.clouds[1].text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    link.wait_until_held()?;
    for cloud in &site.clouds {
        let pieces = Client::new(&cloud.http).metric("edgewise_pieces_sent_total")?;
        assert!(pieces > 0, "the work is not shared");
    }
    site.kill(0)?;
    link.open();
    let model = site.clouds[1].wait_for_phase(DEVICE, MODEL, 1, "active")?;
    let passed = link.passed();
    assert!(passed < 2 * HEAVY as u64, "{passed} bytes went down: {model}");
    score(&agent, &data::test_split()?, 0..300)?;
    wait_for_uploaded(&agent, 300)?;
    let ids = exported(&site.clouds[1], &site.directory.join("rows"))?;
    assert!(ids.len() == 300 && ids.values().all(|times| *times == 1), "{} rows", ids.len());
    Ok(())
}

#[test]
fn what_one_replica_decides_binds_the_others() -> Result<(), Failure> {
    let mut site = Replicas::start("replicas-rules", 2, true)?;
    let (one, other) = (&site.clouds[0], &site.clouds[1]);
    let sample = data::sample(Some(1));
    // Numbers are given once, though both give them at the same time.
    let mut numbers = thread::scope(|scope| {
        let registering: Vec<_> = [one, other, one, other, one, other]
            .map(|cloud| scope.spawn(|| cloud.register(&sample)))
            .into_iter()
            .collect();
        let number = |thread: thread::ScopedJoinHandle<'_, Result<u64, Failure>>| {
            thread.join().map_err(|_| "a thread panicked".to_owned())?
        };
        registering.into_iter().map(number).collect::<Result<Vec<u64>, Failure>>()
    })?;
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);

    // What one has deployed the other does not delete; of both at once, one is done.
    one.text(&["deploy", &format!("{MODEL}:1"), "--device", DEVICE])?;
    let refused =
        Client::new(&other.http).send("DELETE", &format!("/api/models/{MODEL}/versions/1"), &[], &[])?;
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (412, &"DeletionRequired".into()),
        "{}",
        refused.text
    );
    for version in 2..=5 {
        let id = format!("{MODEL}:{version}");
        let deploy = || one.edgewise(&["deploy", &id, "--device", "away"]);
        let (deployed, deleted) = thread::scope(|scope| {
            let deployed = scope.spawn(deploy);
            let deleted = other.edgewise(&["model", "delete", &id]);
            (deployed.join(), deleted)
        });
        let deployed = deployed.map_err(|_| "a thread panicked")??.status.success();
        assert!(deployed != deleted?.status.success(), "{id}: both were done, or neither");
    }

    // Whoever is asked gives the device's answer, whoever received it.
    let agent = start_agent(&site.directory, &site.broker.url)?;
    for cloud in [one, other, one, other] {
        assert_eq!(cloud.json(&["command", DEVICE, "ping"])?["result"]["pong"], true);
    }

    // A database that was gone for a moment is found again by all.
    site.postgres.restart()?;
    for cloud in &site.clouds {
        wait_until(PATIENCE, || cloud.text(&["deploy", &format!("{MODEL}:6"), "--device", DEVICE]))?;
        cloud.wait_for_phase(DEVICE, MODEL, 6, "active")?;
    }
    drop(agent);
    Ok(())
}

fn score(agent: &Agent, windows: &[Window], which: std::ops::Range<usize>) -> Result<(), Failure> {
    let client = Client::new(&agent.http);
    let mut chosen = which.clone().zip(windows.iter().cycle());
    chosen.try_for_each(|(index, window)| client.predict_as(window, Some(&format!("row-{index}"))).map(drop))
}

fn wait_for_uploaded(agent: &Agent, rows: u64) -> Result<(), Failure> {
    let client = Client::new(&agent.http);
    wait_until(PATIENCE, || {
        let uploaded = client.metric("edgewise_rows_uploaded_total")?;
        if uploaded >= rows { Ok(()) } else { Err(format!("{uploaded} of {rows} rows are uploaded")) }
    })
}
