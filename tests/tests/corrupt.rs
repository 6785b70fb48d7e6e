//! A hostile or broken peer on the broker: nothing it says is believed, and what is right still arrives.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::bundle::Bundle;
use cloud_sync::contract::{Chunk, Fetch, Want, decode, encode};
use cloud_sync::digest::Digest;
use cloud_sync::limits::{MAX_MESSAGE_BYTES, MAX_PACKET_BYTES};
use cloud_sync::session::{self, Event, Incoming, Options, Outgoing, Sender, TlsFiles};
use cloud_sync::topic::{Kind, Qos, Root};
use e2e::data::{self, MODEL};
use e2e::flow::Background;
use e2e::process::Failure;
use e2e::site::{DEVICE, PATIENCE, Site, start_cloud};
use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

#[test]
fn a_pull_ends_well_though_a_peer_answers_with_other_bytes() -> Result<(), Failure> {
    let mut site = Site::start("corrupt-pull")?;
    site.bring(1)?;
    let heavy = data::heavy(2, 1 << 20, &site.directory.join("bundle"))?;
    site.cloud.register(&heavy)?;
    let bundle = Bundle::open(&heavy).map_err(|error| error.to_string())?;
    let flow = Background::start(&site.agent.http, &data::test_split()?);
    flow.wait_for(1, 1)?;
    // The desired state stays with the broker, so that the device's only answers are the peer's.
    site.cloud.text(&["deploy", &format!("{MODEL}:2"), "--device", DEVICE])?;
    site.cloud.process.kill();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut peer = Peer::connect(&site.broker.url).await?;
        peer.answer_wrongly(bundle.digest(), bundle.encoded_manifest()).await
    })?;
    site.cloud = start_cloud(&site.directory, &site.broker.url)?;
    site.cloud.wait_for_phase(DEVICE, MODEL, 2, "active")?;
    flow.wait_for(2, 50)?;
    let flowed = flow.stop()?;
    assert_eq!(flowed.failed, 0, "{}", flowed.why);
    Ok(())
}

#[test]
fn garbage_on_every_topic_is_counted_and_disturbs_nothing() -> Result<(), Failure> {
    let site = Site::start("corrupt-garbage")?;
    site.bring(1)?;
    let flow = Background::start(&site.agent.http, &data::test_split()?);
    let before = site.client().metric("edgewise_link_refused_total")?;
    let truncated = encode(&Fetch { wants: vec![Want { digest: Digest::of(b"x"), offset: 0 }; 3] });
    let truncated = truncated.map_err(|error| error.to_string())?;
    let truncated = truncated.get(..truncated.len() / 2).unwrap_or_default().to_vec();
    let bodies = [
        Vec::new(),
        b"{\"json\": true}".to_vec(),
        vec![0xFF; 64],
        truncated,
        // An array that says it has 2^60 elements.
        vec![0x9B, 0x10, 0, 0, 0, 0, 0, 0, 0],
        // A hundred thousand arrays within each other.
        vec![0x81; 100_000],
        vec![0xA1; MAX_MESSAGE_BYTES + 1],
    ];
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let peer = Peer::connect(&site.broker.url).await?;
        for kind in [Kind::Desired, Kind::Chunk, Kind::Receipt, Kind::Command] {
            for body in &bodies {
                peer.publish(kind, body.clone()).await?;
            }
        }
        Ok::<_, Failure>(())
    })?;
    let garbage = 4 * bodies.len() as u64;
    site.wait_for_metric("edgewise_link_refused_total", |refused| refused >= before + garbage)?;

    // What no client of ours sends: a message beyond what is read at all.
    let connects = site.client().metric("edgewise_link_connects_total")?;
    publish_raw(&site.broker.url, &topic(Kind::Chunk), &vec![0; MAX_PACKET_BYTES + 1])?;
    site.wait_for_metric("edgewise_link_connects_total", |now| now > connects)?;

    site.bring(2)?;
    flow.wait_for(2, 50)?;
    let flowed = flow.stop()?;
    assert_eq!(flowed.failed, 0, "{}", flowed.why);
    let ledger = site.flush()?;
    assert!(e2e::site::adds_up(&ledger) && ledger["uploaded"] == flowed.total(), "{ledger}");
    Ok(())
}

/// Somebody on the broker who hears what the device asks for.
struct Peer {
    sender: Sender,
    events: mpsc::Receiver<Event>,
}

impl Peer {
    async fn connect(broker: &str) -> Result<Self, Failure> {
        let options = Options {
            broker: broker.parse().map_err(|error| format!("{error}"))?,
            client_id: "peer".to_owned(),
            credentials: None,
            tls: TlsFiles::default(),
            keep_alive: Duration::from_secs(30),
            subscriptions: vec![(topic(Kind::Fetch), Qos::AtMostOnce)],
            last_will: None,
        };
        let (sender, events, driver) = session::open(options).map_err(|error| error.to_string())?;
        tokio::spawn(driver.run(tokio_util::sync::CancellationToken::new()));
        let mut peer = Self { sender, events };
        while !matches!(peer.event().await?, Event::Connected) {}
        Ok(peer)
    }

    /// Gives the manifest as it is, and to each other want one wrong answer; ends when the device has asked for
    /// everything that it got wrong again.
    async fn answer_wrongly(&mut self, bundle: Digest, manifest: &[u8]) -> Result<(), Failure> {
        let mut wrong = VecDeque::new();
        loop {
            for want in self.wants().await? {
                let piece = |bytes: Vec<u8>, total: usize| Chunk {
                    digest: want.digest,
                    offset: want.offset,
                    total: total as u64,
                    bytes: ByteBuf::from(bytes),
                };
                let chunk = if want.digest == bundle {
                    piece(manifest.to_vec(), manifest.len())
                } else if wrong.contains(&want) {
                    return Ok(());
                } else {
                    wrong.push_back(want);
                    match wrong.len() % 3 {
                        0 => piece(b"other bytes".to_vec(), 11),
                        1 => piece(vec![0; 64 * 1024], 64 * 1024),
                        _ => piece(Vec::new(), usize::MAX),
                    }
                };
                self.publish(Kind::Chunk, encode(&chunk).map_err(|error| error.to_string())?).await?;
            }
        }
    }

    async fn wants(&mut self) -> Result<Vec<Want>, Failure> {
        loop {
            if let Event::Message(Incoming { body, .. }) = self.event().await? {
                let fetch: Fetch = decode(&body).map_err(|error| error.to_string())?;
                return Ok(fetch.wants);
            }
        }
    }

    async fn event(&mut self) -> Result<Event, Failure> {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.ok().flatten().ok_or_else(|| format!("the device asked for nothing within {PATIENCE:?}"))
    }

    async fn publish(&self, kind: Kind, body: Vec<u8>) -> Result<(), Failure> {
        let message =
            Outgoing { topic: topic(kind), body: Bytes::from(body), qos: Qos::AtLeastOnce, retain: false };
        self.sender.publish(message).await.map_err(|error| error.to_string())
    }
}

fn topic(kind: Kind) -> String {
    format!("{}/{DEVICE}/{kind}", Root::default())
}

/// Publishes a message of any size with a client of a few lines.
fn publish_raw(broker: &str, topic: &str, body: &[u8]) -> Result<(), Failure> {
    let publish = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect(broker.trim_start_matches("mqtt://"))?;
        stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01r")?;
        stream.read_exact(&mut [0; 4])?;
        let mut packet = vec![0x30];
        let mut length = 2 + topic.len() + body.len();
        while length > 0 {
            let more = if length > 0x7F { 0x80 } else { 0 };
            packet.push((length & 0x7F) as u8 | more);
            length >>= 7;
        }
        packet.extend([(topic.len() >> 8) as u8, topic.len() as u8]);
        packet.extend([topic.as_bytes(), body].concat());
        // A ping behind it, so that its answer says that the broker has read all.
        packet.extend([0xC0, 0]);
        stream.write_all(&packet)?;
        stream.read_exact(&mut [0; 2])
    };
    publish().map_err(|error| format!("publishing {} bytes: {error}", body.len()))
}
