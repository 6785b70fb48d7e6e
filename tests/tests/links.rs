//! Bad links: what has to come or go does so in the end, once; a dead peer is noticed; a herd is spread.

use std::time::{Duration, Instant};

use cloud_sync::session::{self, Event, Options};
use e2e::data;
use e2e::mosquitto::Mosquitto;
use e2e::peer::Peer;
use e2e::process::{Failure, wait_until};
use e2e::remote::Remote;
use e2e::site::{DEVICE, PATIENCE, Site};
use e2e::toxic::{Link, Toxics};
use tokio_util::sync::CancellationToken;

/// The least that the link can be proven alive.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

#[test]
fn a_pull_finishes_over_a_link_that_breaks_in_the_middle_of_messages() -> Result<(), Failure> {
    // A piece has up to 64 KiB, so one passes on each connection, and on none the whole bundle.
    const PASSES: u64 = 90_000;
    let remote = Remote::start("links-pull", &[])?;
    let version = remote.cloud.register(&data::heavy(1, 64 << 10, &remote.directory.join("bundle"))?)?;
    remote.link.set(Toxics { reset_after: Some(PASSES), ..Toxics::default() });
    remote.deploy(version, PATIENCE)?;
    let resets = remote.link.resets();
    assert!(resets >= 2, "the link broke {resets} times");
    let failures = remote.client().metric("edgewise_link_failures_total")?;
    assert!(failures >= resets, "{failures} failures are counted");
    Ok(())
}

#[test]
fn an_upload_finishes_over_a_link_that_breaks_in_the_middle_of_messages() -> Result<(), Failure> {
    let remote = Remote::start("links-upload", &[])?;
    remote.deploy(1, PATIENCE)?;
    // Less than what these rows have as one batch: it passes in no number of attempts, but smaller ones do.
    remote.link.set(Toxics { reset_after: Some(20_000), ..Toxics::default() });
    remote.score(0..150)?;
    remote.all_went_up(150, PATIENCE)?;
    assert!(remote.link.resets() >= 1, "the link never broke");
    Ok(())
}

#[test]
fn pulls_and_uploads_finish_over_a_slow_link() -> Result<(), Failure> {
    let remote = Remote::start("links-slow", &[])?;
    remote.deploy(1, PATIENCE)?;
    remote.link.set(Toxics { delay: Duration::from_millis(300), rate: Some(8_000), ..Toxics::default() });
    remote.score(0..100)?;
    remote.deploy(2, PATIENCE)?;
    remote.all_went_up(100, PATIENCE)
}

/// As above, at the least that is promised; it takes minutes.
#[test]
#[ignore = "takes minutes: tests/run links"]
fn pulls_and_uploads_finish_at_a_thousand_bytes_a_second() -> Result<(), Failure> {
    const LONGEST: Duration = Duration::from_secs(900);
    let remote = Remote::start("links-crawl", &[])?;
    remote.link.set(Toxics { delay: Duration::from_millis(500), rate: Some(1_000), ..Toxics::default() });
    remote.deploy(1, LONGEST)?;
    remote.score(0..1000)?;
    remote.all_went_up(1000, LONGEST)?;
    println!("connections lost: {}", remote.client().metric("edgewise_link_failures_total")?);
    Ok(())
}

#[test]
fn a_dead_peer_is_noticed_within_two_keep_alives_and_nothing_is_lost() -> Result<(), Failure> {
    let remote = Remote::start("links-dead", &[("EDGEWISE_CLOUD_KEEP_ALIVE", "5s")])?;
    remote.deploy(1, PATIENCE)?;
    let client = remote.client();
    remote.link.set(Toxics { refuse: true, ..Toxics::default() });
    remote.link.go_dead();
    let died = Instant::now();
    remote.score(0..50)?;
    wait_until(KEEP_ALIVE * 3, || match client.metric("edgewise_link_up")? {
        0 => Ok(()),
        _ => Err("the link still counts as up".to_owned()),
    })?;
    let noticed = died.elapsed();
    assert!(noticed <= KEEP_ALIVE * 2 + Duration::from_secs(1), "noticed after {noticed:?}");

    // Nobody lets it in, so it waits, longer and longer, and says for how long.
    let pause = wait_until(PATIENCE, || {
        let pause: f64 = client.metric_as("edgewise_link_retry_seconds")?;
        let failures = client.metric("edgewise_link_failures_total")?;
        if failures >= 2 && pause > 0.0 { Ok(pause) } else { Err(format!("{failures} failures, {pause} s")) }
    })?;
    assert!((1.0..=60.0).contains(&pause), "a pause of {pause} s");
    remote.link.set(Toxics::default());
    remote.all_went_up(50, PATIENCE)
}

#[test]
fn who_is_pushed_off_by_a_second_client_of_its_name_comes_back() -> Result<(), Failure> {
    let remote = Remote::start("links-twin", &[])?;
    remote.deploy(1, PATIENCE)?;
    remote.score(0..50)?;
    let twin = options(&remote.link.url, &format!("edgewise-{DEVICE}"))?;
    runtime()?.block_on(async {
        let (_sender, mut events, driver) = session::open(twin).map_err(|error| error.to_string())?;
        let stop = CancellationToken::new();
        let driver = tokio::spawn(driver.run(stop.clone()));
        connected(&mut events).await?;
        stop.cancel();
        driver.await.map_err(|error| error.to_string())
    })?;
    remote.score(50..100)?;
    remote.all_went_up(100, PATIENCE)?;
    assert!(remote.client().metric("edgewise_link_failures_total")? >= 1, "nobody was pushed off");
    Ok(())
}

#[test]
fn rows_that_went_up_while_no_registry_listened_go_again_when_it_comes() -> Result<(), Failure> {
    // As the agent's, for a receipt.
    const PATIENCE_OF_AGENT: Duration = Duration::from_secs(20);
    let mut site = Site::start("links-return")?;
    site.bring(1)?;
    let (client, window) = (site.client(), data::test_split()?.swap_remove(0));
    // Of the first row's stream no registry knows anything.
    for row in 1..=2 {
        site.cloud.process.kill();
        let sent = runtime()?.block_on(async {
            let mut peer = Peer::connect(&site.broker.url).await?;
            client.predict(&window)?;
            peer.rows(row).await.map(|()| Instant::now())
        })?;
        site.restart_cloud()?;
        site.wait_for_metric("edgewise_rows_uploaded_total", |rows| rows == row)?;
        assert!(sent.elapsed() < PATIENCE_OF_AGENT, "after {:?}", sent.elapsed());
    }
    Ok(())
}

#[test]
fn a_herd_that_lost_its_broker_comes_back_spread() -> Result<(), Failure> {
    const HERD: usize = 100;
    // The first pause is drawn from these 3 s; of each tenth of them an even spread has a tenth of the herd.
    const TENTH: Duration = Duration::from_millis(300);
    const MOST_IN_A_TENTH: usize = HERD * 3 / 10;

    let directory = e2e::fresh_directory("e2e/links-herd")?;
    let mut broker = Mosquitto::start(&directory.join("broker"))?;
    let link = Link::start(&broker.url)?;
    let stop = CancellationToken::new();
    let runtime = runtime()?;
    let mut herd = Vec::new();
    for number in 0..HERD {
        let options = options(&link.url, &format!("device-{number}"))?;
        let (_, events, driver) = session::open(options).map_err(|error| error.to_string())?;
        runtime.spawn(driver.run(stop.clone()));
        herd.push(events);
    }
    let all_connected =
        |herd: &mut Vec<_>| herd.iter_mut().try_for_each(|events| runtime.block_on(connected(events)));
    all_connected(&mut herd)?;
    assert_eq!(link.accepted().len(), HERD);
    broker.kill();
    broker.restart()?;
    all_connected(&mut herd)?;
    stop.cancel();

    let mut back = link.accepted().split_off(HERD);
    back.sort();
    let crowd = |(from, at): (usize, &Instant)| {
        back[from..].iter().take_while(|other| **other <= *at + TENTH).count()
    };
    let most = back.iter().enumerate().map(crowd).max().unwrap_or(0);
    assert!(most <= MOST_IN_A_TENTH, "{most} of {HERD} came within {TENTH:?}");
    Ok(())
}

fn options(broker: &str, id: &str) -> Result<Options, Failure> {
    Ok(Options::new(broker.parse().map_err(|error| format!("{broker}: {error}"))?, id))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Runtime::new().map_err(|error| error.to_string())
}

/// Waits for the next connection.
async fn connected(events: &mut tokio::sync::mpsc::Receiver<Event>) -> Result<(), Failure> {
    let connected = async {
        while let Some(event) = events.recv().await {
            if matches!(event, Event::Connected) {
                return Ok(());
            }
        }
        Err("the session ended".to_owned())
    };
    tokio::time::timeout(PATIENCE, connected).await.unwrap_or_else(|_| Err("nobody connected".to_owned()))
}
