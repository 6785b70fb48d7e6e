//! edgeHub: what it keeps, and what it does with each packet and as time goes by. No I/O is done here.
//!
//! Every broken rule is kept, whatever edgeHub itself would make of it. Subscriptions outlive a connection, messages to
//! the module don't, but for inputs, which wait until they are acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::hmac;
use serde_json::json;

use super::connection::{Acknowledged, Connection};
use super::methods::Methods;
use super::packet::{self, Connect, Packet, Publish};
use super::telemetry::{self, Output};
use super::topic::{self, ToHub};
use super::twin::{Refused, Twin};
use super::{Faults, Times, bag, connect};
use crate::process::Failure;

/// edgeHub's state.
pub(super) struct Hub {
    pub(super) times: Times,
    pub(super) faults: Faults,
    /// The module's key, with which the workload API signs.
    pub(super) key: hmac::Key,
    /// The host name under which the module dials.
    pub(super) gateway: String,
    pub(super) twin: Twin,
    pub(super) methods: Methods,
    pub(super) outputs: Vec<Output>,
    pub(super) connects: Vec<Connected>,
    pub(super) violations: Vec<String>,
    /// TLS handshakes that came to nothing.
    pub(super) failed_handshakes: u64,
    /// Calls to the workload API by their name, and the texts that were signed.
    pub(super) calls: BTreeMap<String, u64>,
    pub(super) signed: Vec<String>,
    /// The filters with the QoS that is granted; `None` without a session.
    session: Option<BTreeMap<String, u8>>,
    /// When the module began to listen for methods, if it does.
    pub(super) hears_methods: Option<Instant>,
    inputs: VecDeque<Input>,
    open: BTreeMap<u64, Connection>,
    /// The connection that is the module's.
    current: Option<u64>,
    opened: u64,
}

/// A CONNECT and what became of it.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The client id.
    pub client_id: String,
    /// The user name.
    pub username: String,
    /// The password: a token.
    pub password: String,
    /// Seconds.
    pub keep_alive: u16,
    /// Whether CONNACK said that the session is there.
    pub session_present: bool,
    /// CONNACK's code.
    pub code: u8,
    /// The negotiated version of TLS.
    pub tls: String,
    /// How it ended, once it has.
    pub end: Option<End>,
    number: u64,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The module said DISCONNECT.
    Disconnected,
    /// The module went without DISCONNECT.
    Lost,
    /// edgeHub closed it, and why.
    Closed(String),
    /// The test cut it.
    Cut,
}

struct Input {
    topic: String,
    body: Vec<u8>,
    was_sent: bool,
}

impl Hub {
    pub(super) fn new(times: Times, key: hmac::Key, gateway: String) -> Self {
        Self {
            times,
            faults: Faults::default(),
            key,
            gateway,
            twin: Twin::new(),
            methods: Methods::default(),
            outputs: vec![],
            connects: vec![],
            violations: vec![],
            failed_handshakes: 0,
            calls: BTreeMap::new(),
            signed: vec![],
            session: None,
            hears_methods: None,
            inputs: VecDeque::new(),
            open: BTreeMap::new(),
            current: None,
            opened: 0,
        }
    }

    /// A connection was opened; gives its number.
    pub(super) fn opened(&mut self, connection: Connection) -> u64 {
        self.opened += 1;
        if let Some(name) = connection.server_name.as_ref().filter(|name| **name != self.gateway) {
            self.violations.push(format!("TLS: {name:?} was asked for, this is {:?}", self.gateway));
        }
        self.open.insert(self.opened, connection);
        self.opened
    }

    /// A packet came.
    pub(super) fn receive(&mut self, number: u64, packet: Packet) {
        let Some(connection) = self.open.get_mut(&number) else { return };
        connection.heard = Instant::now();
        let is_connected = connection.silence.is_some();
        let outcome = match packet {
            Packet::Connect(_) if is_connected => Err("a second CONNECT".to_owned()),
            Packet::Connect(connect) => {
                self.connect(number, *connect);
                Ok(())
            }
            _ if !is_connected => Err("a packet before CONNECT".to_owned()),
            Packet::Publish(publish) => self.publish(number, publish),
            Packet::PubAck(id) => {
                self.acknowledged(number, id);
                Ok(())
            }
            Packet::Subscribe { id, filters } => {
                self.subscribe(number, id, filters);
                Ok(())
            }
            Packet::Unsubscribe { id, filters } => {
                connection.send(packet::unsuback(id));
                self.session
                    .iter_mut()
                    .for_each(|session| session.retain(|filter, _| !filters.contains(filter)));
                self.listen();
                Ok(())
            }
            Packet::Ping => {
                connection.send(packet::pong());
                Ok(())
            }
            Packet::Disconnect => {
                connection.will = None;
                self.end(number, End::Disconnected);
                Ok(())
            }
        };
        if let Err(why) = outcome {
            self.close(number, why);
        }
    }

    /// Closes a connection because a rule was broken on it.
    pub(super) fn close(&mut self, number: u64, why: Failure) {
        self.violations.push(why.clone());
        self.end(number, End::Closed(why));
    }

    /// A connection is no more.
    pub(super) fn end(&mut self, number: u64, how: End) {
        let Some(connection) = self.open.remove(&number) else { return };
        if how == End::Cut {
            connection.cut.cancel();
        }
        if let Some(record) = self.connects.iter_mut().find(|record| record.number == number) {
            record.end = Some(how);
        }
        if self.current == Some(number) {
            self.current = None;
            self.listen();
        }
        if let Some(will) = connection.will {
            self.store(will, Some("Will"));
        }
    }

    /// Cuts all connections.
    pub(super) fn cut(&mut self) {
        for number in self.open.keys().copied().collect::<Vec<_>>() {
            self.end(number, End::Cut);
        }
    }

    /// Forgets the session, as an edgeHub does that is made again without its storage.
    pub(super) fn forget_session(&mut self) {
        self.session = None;
        self.listen();
    }

    /// What has to be done on a connection as time goes by.
    pub(super) fn tick(&mut self, number: u64) {
        let now = Instant::now();
        let over = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Some(connection) = self.open.get_mut(&number) else { return };
        let Some(silence) = connection.silence else {
            if now - connection.opened > self.times.connect {
                self.close(number, format!("no CONNECT within {:?}", self.times.connect));
            }
            return;
        };
        let resent = connection.resend(now, self.times.input);
        let due = |(due, ..): &mut (Instant, String, Vec<u8>)| *due <= now;
        let answer = connection.delayed.pop_front_if(due);
        let silent = now - connection.heard;
        let is_over = over > Duration::from_secs(connection.expires) + self.times.clock_skew;
        let is_checked = now - connection.checked > self.times.reauthentication;
        if is_checked {
            connection.checked = now;
        }
        self.violations.extend(resent.err());
        if let Some((_, topic, body)) = answer {
            self.deliver(topic::TWIN_ANSWERS, topic, body);
        }
        if silent > silence {
            self.close(number, format!("nothing was heard for {silence:?}"));
        } else if is_over && is_checked {
            self.close(number, "the token of the connection is over".to_owned());
        }
    }

    /// Publishes to the module if it is connected and has subscribed.
    pub(super) fn deliver(&mut self, filter: &str, topic: String, body: Vec<u8>) -> bool {
        let granted = self.session.as_ref().and_then(|session| session.get(filter)).copied();
        let connection = self.current.and_then(|number| self.open.get_mut(&number));
        let (Some(connection), Some(qos)) = (connection, granted) else { return false };
        connection.publish(topic, body, qos, false, false);
        true
    }

    /// Queues an input's message.
    pub(super) fn input(&mut self, topic: String, body: Vec<u8>) {
        self.inputs.push_back(Input { topic, body, was_sent: false });
        self.send_input();
    }

    /// Inputs that are not acknowledged yet.
    pub(super) fn waiting_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Whether the module is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.current.is_some()
    }

    /// The filters of the session.
    pub(super) fn subscriptions(&self) -> Vec<String> {
        self.session.iter().flat_map(|session| session.keys().cloned()).collect()
    }

    /// Does what a change of the faults lets happen.
    pub(super) fn settle(&mut self) {
        if !self.faults.hold_pubacks {
            self.open.values_mut().for_each(Connection::release);
        }
    }

    fn connect(&mut self, number: u64, connect: Connect) {
        let findings = connect::findings(&connect);
        self.violations.extend(findings.into_iter().map(|finding| format!("CONNECT: {finding}")));
        let mut outcome = connect::admit(&connect, &self.key, &self.gateway);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if outcome.as_ref().is_ok_and(|end| now > Duration::from_secs(*end) + self.times.clock_skew) {
            outcome = Err(connect::Refused { code: 5, why: "the token is over".to_owned() });
        }
        let code = match &outcome {
            Err(refused) => {
                self.violations.push(format!("CONNECT: {}", refused.why));
                refused.code
            }
            Ok(_) => self.faults.connack.unwrap_or(0),
        };
        let session_present = code == 0 && !connect.clean_session && self.session.is_some();
        let Some(connection) = self.open.get_mut(&number) else { return };
        self.connects.push(Connected {
            client_id: connect.client_id,
            username: connect.username.unwrap_or_default(),
            password: connect.password.unwrap_or_default(),
            keep_alive: connect.keep_alive,
            session_present,
            code,
            tls: connection.tls.clone(),
            end: None,
            number,
        });
        connection.send(packet::connack(session_present, code));
        if code != 0 {
            return self.end(number, End::Closed(format!("CONNACK {code}")));
        }
        connection.expires = outcome.unwrap_or_default();
        let keep_alive = Duration::from_secs(connect.keep_alive.into()).mul_f64(1.5);
        let longest = Duration::from_secs(600);
        connection.silence = Some(if keep_alive.is_zero() { longest } else { keep_alive.min(longest) });
        connection.will = connect.will;
        if let Some(older) = self.current.replace(number) {
            self.end(older, End::Closed("the module has connected again".to_owned()));
            self.current = Some(number);
        }
        if !session_present {
            self.session = Some(BTreeMap::new());
        }
        self.listen();
        self.send_input();
    }

    fn subscribe(&mut self, number: u64, id: u16, filters: Vec<(String, u8)>) {
        let mut granted = vec![];
        for (filter, qos) in filters {
            if qos != 1 {
                self.violations.push(format!("SUBSCRIBE to {filter} with QoS {qos}"));
            }
            granted.push(qos.min(1));
            match topic::canonical(&filter) {
                Some(filter) => drop(self.session.get_or_insert_default().insert(filter, qos.min(1))),
                None => self.violations.push(format!("SUBSCRIBE to {filter}, which a module has not")),
            }
        }
        if let Some(connection) = self.open.get(&number) {
            connection.send(packet::suback(id, &granted));
        }
        self.listen();
        self.send_input();
    }

    /// Notes since when the module hears methods.
    fn listen(&mut self) {
        let hears =
            self.current.is_some() && self.subscriptions().iter().any(|filter| filter == topic::METHODS);
        self.hears_methods = hears.then(|| self.hears_methods.unwrap_or_else(Instant::now));
    }

    fn acknowledged(&mut self, number: u64, id: u16) {
        let Some(connection) = self.open.get_mut(&number) else { return };
        match connection.acknowledged(id) {
            Ok(Acknowledged::Input) => {
                self.inputs.pop_front();
                self.send_input();
            }
            Ok(Acknowledged::Other | Acknowledged::Again) => {}
            Err(why) => self.violations.push(why),
        }
    }

    /// Sends the oldest input if none is on its way.
    fn send_input(&mut self) {
        let filter = topic::inputs();
        let granted = self.session.as_ref().and_then(|session| session.get(&filter)).copied();
        let connection = self.current.and_then(|number| self.open.get_mut(&number));
        let (Some(connection), Some(qos), Some(input)) = (connection, granted, self.inputs.front_mut())
        else {
            return;
        };
        if !connection.has_input() {
            connection.publish(input.topic.clone(), input.body.clone(), qos, true, input.was_sent);
            input.was_sent = true;
        }
    }

    fn publish(&mut self, number: u64, publish: Publish) -> Result<(), Failure> {
        let to = topic::parse(&publish.topic)?;
        let (qos, id) = (publish.qos, publish.id);
        match qos {
            0 => self.violations.push(format!("PUBLISH to {} with QoS 0", publish.topic)),
            1 => {}
            _ => return Err(format!("PUBLISH to {} with QoS {qos}", publish.topic)),
        }
        if publish.retain {
            self.violations.push(format!("PUBLISH to {} with RETAIN", publish.topic));
        }
        match to {
            ToHub::Telemetry { .. } => {
                if take(&mut self.faults.cut_before_storing) {
                    self.end(number, End::Cut);
                    return Ok(());
                }
                self.store(publish, None);
                if take(&mut self.faults.cut_before_puback) {
                    self.end(number, End::Cut);
                    return Ok(());
                }
            }
            ToHub::TwinGet { rid } => self.twin_request(number, rid, None),
            ToHub::TwinPatch { rid } => self.twin_request(number, rid, Some(&publish.body)),
            ToHub::MethodAnswer { status, rid } => {
                let answered = self.methods.answered(number, rid, status, &publish.body, publish.duplicate);
                self.violations.extend(answered.err());
            }
            ToHub::Unknown => self.violations.push(format!("PUBLISH to {}, which is dropped", publish.topic)),
        }
        // Behind the answer to a twin request: edgeHub sends that first.
        if let Some(connection) = self.open.get_mut(&number).filter(|_| qos > 0) {
            let acknowledged = connection.acknowledge(id, self.faults.hold_pubacks);
            self.violations.extend(acknowledged.err());
        }
        Ok(())
    }

    fn store(&mut self, publish: Publish, kind: Option<&str>) {
        let topic = publish.topic.clone();
        let Ok(ToHub::Telemetry { bag }) = topic::parse(&topic) else { return };
        match telemetry::read(bag, publish) {
            Ok((mut output, wrong)) => {
                self.violations.extend(wrong.into_iter().map(|wrong| format!("PUBLISH to {topic}: {wrong}")));
                output.properties.extend(kind.map(|kind| ("iothub-MessageType".to_owned(), kind.to_owned())));
                self.outputs.push(output);
            }
            Err(why) => self.violations.push(format!("PUBLISH to {topic} is dropped: {why}")),
        }
    }

    /// Answers a read of the twin, or a change of the reported properties.
    fn twin_request(&mut self, number: u64, rid: &str, patch: Option<&[u8]>) {
        let Some(connection) = self.open.get_mut(&number) else { return };
        if !connection.delayed.is_empty() {
            self.violations.push(format!("the twin request {rid} while another waits for its answer"));
        }
        if self.faults.twin_is_silent {
            return;
        }
        let (mut body, mut version) = (String::new(), String::new());
        let status = match (self.faults.twin_status, patch) {
            (Some(status), _) => status,
            (None, None) => {
                let empty = json!({"desired": {}, "reported": {}});
                let twin = if self.faults.twin_is_empty { empty } else { self.twin.document() };
                body = twin.to_string();
                200
            }
            (None, Some(patch)) => match self.twin.report(patch) {
                Ok(()) => {
                    version = format!("&$version={}", self.twin.reported_version());
                    204
                }
                Err(Refused(status, why)) => {
                    self.violations.push(why);
                    status
                }
            },
        };
        if !self.faults.twin_answers_have_versions {
            version.clear();
        }
        let topic = format!("$iothub/twin/res/{status}/?$rid={rid}{version}");
        if self.faults.twin_delay.is_zero() {
            if !self.deliver(topic::TWIN_ANSWERS, topic, body.into_bytes()) {
                let filter = topic::TWIN_ANSWERS;
                self.violations.push(format!("the twin request {rid} without a subscription to {filter}"));
            }
        } else if let Some(connection) = self.open.get_mut(&number) {
            let due = Instant::now() + self.faults.twin_delay;
            connection.delayed.push_back((due, topic, body.into_bytes()));
        }
    }

    /// The topic of an input's message.
    pub(super) fn input_topic(input: &str, properties: &[(&str, &str)]) -> String {
        let sender = [("$.cdid", super::DEVICE), ("$.cmid", "sensor")];
        let bag = bag::encode(&[&sender, properties].concat());
        let filter = topic::inputs();
        format!("{}{input}/{bag}", filter.trim_end_matches('#'))
    }
}

/// Counts one down; whether there was one.
fn take(left: &mut u32) -> bool {
    let is_left = *left > 0;
    *left = left.saturating_sub(1);
    is_left
}
