//! A peer on the broker that is not the cloud: it hears what the device hears and says, and says what it likes.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use bytes::Bytes;
use cloud_sync::contract::{Chunk, Desired, Fetch, Message, Telemetry, Want, decode, encode};
use cloud_sync::digest::Digest;
use cloud_sync::session::{self, Event, Incoming, Options, Outgoing, Sender};
use cloud_sync::topic::{Kind, Qos, Root};
use serde_bytes::ByteBuf;
use tokio::sync::mpsc;

use crate::process::Failure;
use crate::site::{DEVICE, PATIENCE};

/// Somebody on the broker who hears what the device asks for.
pub struct Peer {
    sender: Sender,
    events: mpsc::Receiver<Event>,
}

impl Peer {
    /// Connects, and hears what the device of a site asks for, what it shall run and its rows.
    pub async fn connect(broker: &str) -> Result<Self, Failure> {
        let options = Options {
            subscriptions: [Kind::Fetch, Kind::Desired, Kind::Telemetry]
                .map(|kind| (topic(kind), kind.qos()))
                .into(),
            ..Options::new(broker.parse().map_err(|error| format!("{error}"))?, "peer")
        };
        let (sender, events, driver) = session::open(options).map_err(|error| error.to_string())?;
        tokio::spawn(driver.run(tokio_util::sync::CancellationToken::new()));
        let mut peer = Self { sender, events };
        while !matches!(peer.event().await?, Event::Connected) {}
        Ok(peer)
    }

    /// Gives one wrong answer to each want, then the manifest of `bundle` as it is; ends when the device asks again for a
    /// chunk that it got wrong.
    pub async fn answer_wrongly(&mut self, bundle: Digest, manifest: &[u8]) -> Result<(), Failure> {
        let mut answered = HashSet::new();
        loop {
            for want in self.wants().await? {
                let is_first = answered.insert(want);
                let (total, bytes) = match (is_first, want.digest == bundle) {
                    (true, true) => (u64::MAX, b"too much".to_vec()),
                    (false, true) => (manifest.len() as u64, manifest.to_vec()),
                    (true, false) => match answered.len() % 3 {
                        0 => (11, b"other bytes".to_vec()),
                        1 => (64 * 1024, vec![0; 64 * 1024]),
                        _ => (u64::MAX, Vec::new()),
                    },
                    (false, false) => return Ok(()),
                };
                let Want { digest, offset } = want;
                let chunk = Chunk { digest, offset, total, bytes: ByteBuf::from(bytes) };
                self.publish(Kind::Chunk, encode(&chunk).map_err(|error| error.to_string())?).await?;
            }
        }
    }

    /// Waits until the broker has a desired state with this version.
    pub async fn desired(&mut self, version: u64) -> Result<(), Failure> {
        loop {
            let desired: Desired = self.message(Kind::Desired).await?;
            if desired.models.iter().any(|model| model.version == version) {
                return Ok(());
            }
        }
    }

    /// Waits until the device has sent rows from this sequence number on.
    pub async fn rows(&mut self, first_sequence: u64) -> Result<(), Failure> {
        while self.message::<Telemetry>(Kind::Telemetry).await?.first_sequence != first_sequence {}
        Ok(())
    }

    async fn wants(&mut self) -> Result<Vec<Want>, Failure> {
        let fetch: Fetch = self.message(Kind::Fetch).await?;
        Ok(fetch.wants)
    }

    async fn message<M: Message>(&mut self, kind: Kind) -> Result<M, Failure> {
        loop {
            if let Event::Message(Incoming { topic: from, body, .. }) = self.event().await?
                && from == topic(kind)
            {
                return decode(&body).map_err(|error| error.to_string());
            }
        }
    }

    async fn event(&mut self) -> Result<Event, Failure> {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.ok().flatten().ok_or_else(|| format!("nothing came within {PATIENCE:?}"))
    }

    /// Publishes a message to the device, or as if it came from it.
    pub async fn publish(&self, kind: Kind, body: Vec<u8>) -> Result<(), Failure> {
        let message =
            Outgoing { topic: topic(kind), body: Bytes::from(body), qos: Qos::AtLeastOnce, retain: false };
        self.sender.publish(message).await.map(drop).map_err(|error| error.to_string())
    }
}

fn topic(kind: Kind) -> String {
    format!("{}/{DEVICE}/{kind}", Root::default())
}

/// Publishes a message of any size with a client of a few lines.
pub fn publish_raw(broker: &str, kind: Kind, body: &[u8]) -> Result<(), Failure> {
    let topic = topic(kind);
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
