//! How fast a bundle comes to a device, against what the same broker passes on between two bare sessions.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloud_sync::digest::Digest;
use cloud_sync::limits::AVERAGE_CHUNK_BYTES;
use cloud_sync::session::{self, BrokerUrl, Event, Options, Outgoing};
use cloud_sync::topic::Qos;
use e2e::process::{Failure, Process, wait_until};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use crate::measure::{Unit, alone, compare, in_turns, rate, skipped};
use crate::sample;
use crate::site::Site;

/// What each turn moves. Random, so that no version shares a chunk with the one before.
const BYTES: u64 = 100 * 1024 * 1024;

/// Turns of one transfer each.
const TURNS: usize = 5;

/// Messages that may be on their way, as many as a pull asks for at most: an unbounded flood would lose some.
const WINDOW: usize = 64;

/// Longest that the raw transfer may take.
const PATIENCE: Duration = Duration::from_secs(60);

const TOPIC: &str = "bench/raw";

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    against("pull, embedded broker", &directory.join("embedded"), &[])?;
    let figure = "pull, Mosquitto";
    match mosquitto(&directory.join("mosquitto")) {
        Ok((url, _broker)) => against(figure, &directory.join("mosquitto"), &["--mqtt", &url]),
        Err(why) => {
            skipped(figure, &why);
            Ok(())
        }
    }
}

fn against(figure: &str, directory: &Path, cloud: &[&str]) -> Result<(), Failure> {
    let site = Site::start(directory, cloud, &["--provider", "tract"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let mut version = 0;
    let pull = || {
        version += 1;
        let bundle = directory.join(format!("bundle-{version}"));
        write_bundle(&bundle).map_err(|error| format!("writing {}: {error}", bundle.display()))?;
        let transfer = site.bring(&bundle, "pulled", version)?["transfer"].clone();
        std::fs::remove_dir_all(&bundle)
            .map_err(|error| format!("removing {}: {error}", bundle.display()))?;
        let number = |key: &str| transfer[key].as_u64().ok_or_else(|| format!("no {key} in {transfer}"));
        Ok(vec![rate(number("fetched_bytes")?, Duration::from_millis(number("fetch_ms")?))])
    };
    let raw = || {
        let took = async { tokio::time::timeout(PATIENCE, raw(&site.cloud.mqtt)).await };
        let took = runtime.block_on(took).map_err(|_| format!("nothing came in {PATIENCE:?}"))??;
        Ok(vec![rate(BYTES, took)])
    };
    let compared = in_turns(TURNS, pull, raw)?;
    let peer = format!("QoS 0, {} KiB messages, {WINDOW} on their way", AVERAGE_CHUNK_BYTES / 1024);
    compare(figure, Unit::MegabytesPerSecond, &peer, compared);
    let work = (0..TURNS).map(|_| work(directory)).collect::<Result<_, _>>()?;
    alone(
        &format!("{figure}: its reads, hashes and writes alone, on one core"),
        Unit::MegabytesPerSecond,
        work,
    );
    Ok(())
}

/// What both ends do beside passing messages on: each chunk in the registry's store is read and hashed, hashed again, and
/// appended to a file.
fn work(directory: &Path) -> Result<f64, Failure> {
    let pack = directory.join("pack");
    let worked = || {
        let (mut pack, mut bytes) = (File::create(&pack)?, 0);
        let begun = Instant::now();
        for folder in std::fs::read_dir(directory.join("cloud/objects/chunks"))? {
            for chunk in std::fs::read_dir(folder?.path())? {
                let chunk = std::fs::read(chunk?.path())?;
                black_box([Digest::of(&chunk), Digest::of(black_box(&chunk))]);
                pack.write_all(&chunk)?;
                bytes += chunk.len() as u64;
            }
        }
        Ok(rate(bytes, begun.elapsed()))
    };
    worked().map_err(|error: std::io::Error| format!("working on {}: {error}", pack.display()))
}

/// The sample with a large file of random bytes beside it.
fn write_bundle(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for file in std::fs::read_dir(sample::bundle())? {
        let file = file?;
        std::fs::copy(file.path(), directory.join(file.file_name()))?;
    }
    let mut random = File::open("/dev/urandom")?.take(BYTES);
    std::io::copy(&mut random, &mut File::create(directory.join("asset.bin"))?).map(drop)
}

/// Sends [`BYTES`] through the broker, from one session to another; gives the time until all have come.
async fn raw(url: &str) -> Result<Duration, Failure> {
    let stop = CancellationToken::new();
    let _stop_at_the_end = stop.clone().drop_guard();
    let (_, mut incoming) =
        connect(url, "bench-receiver", vec![(TOPIC.to_owned(), Qos::AtMostOnce)], &stop).await?;
    let (sender, _events) = connect(url, "bench-sender", Vec::new(), &stop).await?;
    let window = Arc::new(Semaphore::new(WINDOW));
    let free = window.clone();
    let begun = Instant::now();
    let sending = tokio::spawn(async move {
        let body = Bytes::from(vec![0; AVERAGE_CHUNK_BYTES]);
        for _ in 0..BYTES / AVERAGE_CHUNK_BYTES as u64 {
            window.acquire().await.map_err(|error| error.to_string())?.forget();
            let message =
                Outgoing { topic: TOPIC.to_owned(), body: body.clone(), qos: Qos::AtMostOnce, retain: false };
            sender.publish(message).await.map_err(|error| error.to_string())?;
        }
        Ok::<(), Failure>(())
    });
    let mut come = 0;
    while come < BYTES {
        match incoming.recv().await {
            Some(Event::Message(message)) => come += message.body.len() as u64,
            other => return Err(format!("the receiver was interrupted: {other:?}")),
        }
        free.add_permits(1);
    }
    let took = begun.elapsed();
    sending.await.map_err(|error| error.to_string())??;
    Ok(took)
}

/// A session that is connected.
async fn connect(
    url: &str,
    client: &str,
    subscriptions: Vec<(String, Qos)>,
    stop: &CancellationToken,
) -> Result<(session::Sender, Receiver<Event>), Failure> {
    let options = Options {
        subscriptions,
        ..Options::new(url.parse::<BrokerUrl>().map_err(|error| error.to_string())?, client)
    };
    let (sender, mut events, driver) = session::open(options).map_err(|error| error.to_string())?;
    tokio::spawn(driver.run(stop.clone()));
    match events.recv().await {
        Some(Event::Connected) => Ok((sender, events)),
        other => Err(format!("{client} can't connect to {url}: {other:?}")),
    }
}

/// Starts a Mosquitto, where there is one.
fn mosquitto(directory: &Path) -> Result<(String, Process), Failure> {
    std::fs::create_dir_all(directory).map_err(|error| format!("making {}: {error}", directory.display()))?;
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.map_err(|error| format!("looking for a free port: {error}"))?;
    let config = directory.join("mosquitto.conf");
    // As root it would become another user, who can't read the file.
    let text = format!(
        "user root\nset_tcp_nodelay true\nallow_anonymous true\nlistener {} 127.0.0.1\n",
        address.port()
    );
    std::fs::write(&config, text).map_err(|error| format!("writing {}: {error}", config.display()))?;
    // Where Debian puts daemons, which not every user's path names.
    let search = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
    let arguments = [Path::new("-c"), &config];
    let log = directory.join("mosquitto.log");
    let broker =
        Process::start_program(Path::new("mosquitto"), "mosquitto", arguments, &[("PATH", &search)], &log)?;
    wait_until(Duration::from_secs(10), || TcpStream::connect(address).map_err(|error| error.to_string()))?;
    Ok((format!("mqtt://{address}"), broker))
}
