//! One connection from edgeHub's side: what was sent on it and is not acknowledged, and what is to be sent later.
//!
//! edgeHub takes a PUBACK only for the oldest message that it has sent and that is not acknowledged.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::packet::{self, Publish};
use crate::process::Failure;

/// How long any message but an input may stay unacknowledged while it is the oldest.
const ACKNOWLEDGE: Duration = Duration::from_secs(30);

/// A connection that is open.
pub(super) struct Connection {
    /// To the one who writes. Without a bound: tests send little, and what a client doesn't read shall not block the hub.
    link: UnboundedSender<Vec<u8>>,
    /// Breaks the connection without a word.
    pub(super) cut: CancellationToken,
    /// The name that the client asked for in the TLS handshake.
    pub(super) server_name: Option<String>,
    /// The negotiated version of TLS.
    pub(super) tls: String,
    pub(super) opened: Instant,
    pub(super) heard: Instant,
    /// How long it may be silent; none before its CONNECT.
    pub(super) silence: Option<Duration>,
    /// When its token was last looked at.
    pub(super) checked: Instant,
    /// When its token ends, in seconds since 1970.
    pub(super) expires: u64,
    pub(super) will: Option<Publish>,
    /// Answers to twin requests that are to be sent then: filter, topic, body.
    pub(super) delayed: VecDeque<(Instant, String, Vec<u8>)>,
    /// The ids of the client's messages that have no PUBACK yet.
    held: VecDeque<u16>,
    unacknowledged: VecDeque<Pending>,
    /// How many more PUBACKs may come for an id because its message was sent again.
    repeats: HashMap<u16, u32>,
    last_id: u16,
    is_reported: bool,
}

/// A message that was sent with QoS 1.
struct Pending {
    publish: Publish,
    is_input: bool,
    sent: Instant,
}

/// What a PUBACK was for.
pub(super) enum Acknowledged {
    Input,
    Other,
    /// A message that came twice, so that its second PUBACK is ignored.
    Again,
}

impl Connection {
    pub(super) fn new(
        link: UnboundedSender<Vec<u8>>,
        cut: CancellationToken,
        server_name: Option<String>,
        tls: String,
    ) -> Self {
        Self {
            link,
            cut,
            server_name,
            tls,
            opened: Instant::now(),
            heard: Instant::now(),
            checked: Instant::now(),
            silence: None,
            expires: 0,
            will: None,
            delayed: VecDeque::new(),
            held: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            repeats: HashMap::new(),
            last_id: 0,
            is_reported: false,
        }
    }

    /// Sends a packet. One that is already broken is found out by whoever reads from it.
    pub(super) fn send(&self, packet: Vec<u8>) {
        let _ = self.link.send(packet);
    }

    /// Publishes to the client.
    pub(super) fn publish(&mut self, topic: String, body: Vec<u8>, qos: u8, is_input: bool, duplicate: bool) {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        let publish = Publish { topic, body, qos, duplicate, retain: false, id: self.last_id };
        self.send(packet::publish(&publish));
        if qos > 0 {
            self.unacknowledged.push_back(Pending { publish, is_input, sent: Instant::now() });
        }
    }

    /// Whether an input is on its way.
    pub(super) fn has_input(&self) -> bool {
        self.unacknowledged.iter().any(|pending| pending.is_input)
    }

    /// Takes a PUBACK.
    pub(super) fn acknowledged(&mut self, id: u16) -> Result<Acknowledged, Failure> {
        match self.unacknowledged.pop_front_if(|pending| pending.publish.id == id) {
            Some(Pending { is_input: true, .. }) => Ok(Acknowledged::Input),
            Some(_) => Ok(Acknowledged::Other),
            None => match self.repeats.get_mut(&id) {
                Some(left @ 1..) => {
                    *left -= 1;
                    Ok(Acknowledged::Again)
                }
                _ => {
                    let oldest = self.unacknowledged.front().map(|pending| pending.publish.id);
                    Err(format!("a PUBACK for {id}, the oldest unacknowledged is {oldest:?}"))
                }
            },
        }
    }

    /// Sends an input again that has waited too long; says what else has no PUBACK though it is the oldest.
    pub(super) fn resend(&mut self, now: Instant, input_timeout: Duration) -> Result<(), Failure> {
        let late = |pending: &&mut Pending| pending.is_input && now - pending.sent > input_timeout;
        if let Some(pending) = self.unacknowledged.iter_mut().find(late) {
            pending.sent = now;
            pending.publish.duplicate = true;
            let (id, packet) = (pending.publish.id, packet::publish(&pending.publish));
            *self.repeats.entry(id).or_default() += 1;
            self.send(packet);
        }
        match self.unacknowledged.front() {
            Some(oldest) if !oldest.is_input && now - oldest.sent > ACKNOWLEDGE && !self.is_reported => {
                self.is_reported = true;
                Err(format!("no PUBACK for {} within {ACKNOWLEDGE:?}", oldest.publish.topic))
            }
            _ => Ok(()),
        }
    }

    /// Acknowledges a message of the client, or will do so when nothing is held any more.
    pub(super) fn acknowledge(&mut self, id: u16, hold: bool) -> Result<(), Failure> {
        let is_in_use = self.held.contains(&id);
        self.held.push_back(id);
        if !hold {
            self.release();
        }
        if is_in_use { Err(format!("the packet id {id} is used again before its PUBACK")) } else { Ok(()) }
    }

    /// Sends all PUBACKs that were held.
    pub(super) fn release(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.send(packet::puback(id));
        }
    }
}
