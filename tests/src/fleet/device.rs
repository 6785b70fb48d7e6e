//! One light device: it says that it is there, follows what is desired, sends rows and pulls chunks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cloud_sync::contract::{
    self, AgentInfo, Chunk, Desired, Fetch, Hardware, Ledger, Message, Phase as ModelPhase, Presence,
    Receipt, Reported, ReportedModel, Telemetry, Want,
};
use cloud_sync::digest::Digest;
use cloud_sync::name::DeviceId;
use cloud_sync::session::{self, Event, Incoming, Outgoing};
use cloud_sync::topic::{Kind, Root};
use serde_bytes::ByteBuf;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BATCH_ROWS, Phase, Shared};

/// As the agent's: how long a receipt may take before the batch is sent again.
const RECEIPT: Duration = Duration::from_secs(20);

/// How long pieces may take before they are asked for again.
const PIECES: Duration = Duration::from_secs(5);

/// Pieces on their way to one device.
const WINDOW: usize = 16;

struct Device {
    id: DeviceId,
    root: Root,
    sender: session::Sender,
    shared: Arc<Shared>,
    revision: u64,
    /// Rows with a receipt, and rows that were sent.
    durable: u64,
    sent: u64,
    /// Pieces that were asked for and have not come, and the place of the next in the list.
    wanted: HashSet<Digest>,
    next: usize,
    /// When what was sent or asked for last is given up.
    deadline: Option<Instant>,
}

/// The name of a device by its number.
pub(super) fn name(index: usize) -> String {
    format!("device-{index:06}")
}

/// Lives until its runtime ends. A device that can't even begin is missed by whoever counts.
pub(super) async fn run(index: usize, shared: Arc<Shared>) {
    let (Ok(id), Ok(broker)) = (name(index).parse::<DeviceId>(), shared.broker.parse()) else { return };
    let root = Root::default();
    let presence =
        |online| Presence { online, boot_id: "fleet".to_owned(), agent_version: "fleet".to_owned() };
    let Some(will) = outgoing(&root, &id, &presence(false)) else { return };
    let opened = session::open(session::Options {
        subscriptions: root.of_device(&id),
        last_will: Some(will),
        ..session::Options::new(broker, id.as_str())
    });
    let Ok((sender, mut events, driver)) = opened else { return };
    tokio::spawn(driver.run(CancellationToken::new()));
    let mut phases = shared.phase.clone();
    let mut is_new = true;
    let mut device = Device {
        id,
        root,
        sender,
        shared,
        revision: 0,
        durable: 0,
        sent: 0,
        wanted: HashSet::new(),
        next: index,
        deadline: None,
    };
    loop {
        let late = device.deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        let is_late = tokio::select! {
            event = events.recv() => {
                match event {
                    Some(Event::Connected) => {
                        device.send(&presence(true)).await;
                        device.report().await;
                        device.shared.connected.fetch_add(u64::from(is_new), Ordering::Relaxed);
                        is_new = false;
                    }
                    Some(Event::Message(message)) => device.take(&message).await,
                    Some(Event::Disconnected(_)) => {}
                    None => return,
                }
                false
            }
            changed = phases.changed() => {
                if changed.is_err() {
                    return;
                }
                device.wanted.clear();
                device.deadline = None;
                true
            }
            () = tokio::time::sleep_until(late), if device.deadline.is_some() => {
                device.shared.again.fetch_add(1, Ordering::Relaxed);
                true
            }
        };
        let phase = *phases.borrow();
        match phase {
            Phase::Idle => device.deadline = None,
            Phase::Rows if is_late || device.durable == device.sent => device.send_rows().await,
            Phase::Chunks if is_late || device.wanted.is_empty() => device.ask().await,
            Phase::Rows | Phase::Chunks => {}
        }
    }
}

impl Device {
    async fn take(&mut self, message: &Incoming) {
        let Some((_, kind)) = self.root.parse(&message.topic) else { return };
        match kind {
            Kind::Desired => {
                if let Ok(desired) = contract::decode::<Desired>(&message.body)
                    && desired.revision > self.revision
                {
                    self.shared.told.fetch_add(u64::from(self.revision == 0), Ordering::Relaxed);
                    self.revision = desired.revision;
                    self.report().await;
                }
            }
            Kind::Receipt => {
                if let Ok(receipt) = contract::decode::<Receipt>(&message.body)
                    && receipt.durable_through > self.durable
                {
                    let rows = receipt.durable_through - self.durable;
                    self.shared.rows.fetch_add(rows, Ordering::Relaxed);
                    self.durable = receipt.durable_through;
                }
            }
            Kind::Chunk => {
                if let Ok(chunk) = contract::decode::<Chunk>(&message.body)
                    && self.wanted.remove(&chunk.digest)
                {
                    self.shared.bytes.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }

    async fn report(&self) {
        let serves = ReportedModel {
            name: match crate::data::MODEL.parse() {
                Ok(name) => name,
                Err(_) => return,
            },
            version: 1,
            phase: ModelPhase::Active,
            why: None,
            active: Some(1),
            previous: None,
            engine: Some("tract".to_owned()),
            provider: Some("tract".to_owned()),
            memory_bytes: Some(8 << 20),
            transfer: None,
        };
        self.send(&Reported {
            revision: self.revision,
            models: if self.revision == 0 { Vec::new() } else { vec![serves] },
            agent: AgentInfo {
                version: "fleet".to_owned(),
                boot_id: "fleet".to_owned(),
                state: "running".to_owned(),
            },
            hardware: Hardware::default(),
            ledger: Ledger::default(),
        })
        .await;
    }

    /// Sends the next batch, or the same again.
    async fn send_rows(&mut self) {
        let (codec, rows) = &self.shared.batch;
        self.sent = self.durable + BATCH_ROWS;
        let batch = Telemetry {
            stream: "fleet".to_owned(),
            first_sequence: self.durable + 1,
            after: self.durable,
            codec: *codec,
            rows: ByteBuf::from(rows.clone()),
            ledger: Ledger::default(),
            clock: None,
        };
        self.send(&batch).await;
        self.deadline = Some(Instant::now() + RECEIPT);
    }

    /// Asks for what has not come, and for the next pieces.
    async fn ask(&mut self) {
        while self.wanted.len() < WINDOW.min(self.shared.wants.len()) {
            let want = self.shared.wants.get(self.next % self.shared.wants.len());
            self.next += 1;
            self.wanted.extend(want.map(|want| want.digest));
        }
        let wants = self.wanted.iter().map(|digest| Want { digest: *digest, offset: 0 }).collect();
        self.send(&Fetch { wants }).await;
        self.deadline = Some(Instant::now() + PIECES);
    }

    /// What is not sent for want of a connection is sent again when there is one, or when no answer comes.
    async fn send<M: Message>(&self, message: &M) {
        if let Some(message) = outgoing(&self.root, &self.id, message) {
            let _ = self.sender.publish(message).await;
        }
    }
}

fn outgoing<M: Message>(root: &Root, id: &DeviceId, message: &M) -> Option<Outgoing> {
    let body = contract::encode(message).ok()?.into();
    Some(Outgoing { topic: root.topic(id, M::KIND), body, qos: M::KIND.qos(), retain: M::KIND.retained() })
}
