//! The session against brokers that misbehave, played by hand-written packets; what a sound broker does to it is
//! in this package's `tests/session.rs`.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

const CONNECT: u8 = 1;
const SUBSCRIBE: u8 = 8;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const PING: u8 = 12;
const DISCONNECT: u8 = 14;

#[tokio::test]
async fn a_refused_subscription_is_named() {
    let (broker, mut session) = start(STALL_IN_TESTS).await;
    let mut peer = Peer::accept(&broker).await;
    let subscribe = peer.expect(SUBSCRIBE).await;
    peer.send(&[0x90, 3, subscribe[0], subscribe[1], 0x80]).await;
    assert!(session.lost().await.contains("refused the subscription to site/in"));
    assert!(!session.sender.is_online());
}

#[tokio::test]
async fn a_broker_that_grants_nothing_is_left() {
    let (broker, mut session) = start(STALL_IN_TESTS).await;
    let mut peer = Peer::accept(&broker).await;
    peer.expect(SUBSCRIBE).await;
    tokio::spawn(async move { while peer.packet().await.is_some() {} });
    assert!(session.lost().await.contains("unanswered"));
}

#[tokio::test]
async fn a_broker_that_loses_an_acknowledgement_is_left_and_an_idle_one_is_not() {
    let (broker, mut session) = start(STALL_IN_TESTS).await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    // Longer than the stall, with nothing but pings on the line.
    for _ in 0..3 {
        assert_eq!(peer.packet().await.unwrap().0, PING);
    }
    assert!(session.sender.is_online());
    session.sender.publish(message()).await.unwrap();
    peer.expect(PUBLISH).await;
    tokio::spawn(async move { while peer.packet().await.is_some() {} });
    assert!(session.lost().await.contains("unanswered"));
}

#[tokio::test]
async fn a_peer_that_is_slow_to_answer_pings_is_kept_and_a_silent_one_is_left_in_time() {
    let (broker, mut session) = start(driver::STALL).await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    // For four intervals of pings, none of which is answered.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        peer.send(&[0x30, 6, 0, 3, b'f', b'o', b'o', b'!']).await;
    }
    assert!(session.sender.is_online());
    let silent = tokio::time::Instant::now();
    soon(session.sender.online.wait_for(|online| !*online)).await.unwrap();
    assert!(silent.elapsed() < Duration::from_millis(2500), "{:?}", silent.elapsed());
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_left_in_time() {
    let (broker, mut session) = start(driver::STALL).await;
    let _peer = Peer::subscribed(&broker).await;
    session.connected().await;
    let begun = tokio::time::Instant::now();
    let large = Outgoing { body: Bytes::from(vec![0; 100_000]), qos: Qos::AtMostOnce, ..message() };
    // More than the buffers of both ends hold.
    while soon(session.sender.publish(large.clone())).await.is_ok() {}
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nothing_of_a_lost_connection_reaches_the_next() {
    let (broker, mut session) = start(driver::STALL).await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    peer.fill(&session.sender).await;
    // Out of order (the first message has 2), so that the next one gets the packet id of one that is still on its
    // way: the client puts it aside and takes no more from the queue.
    peer.acknowledge(3).await;
    session.sender.publish(message()).await.unwrap();
    drop(peer);
    session.lost().await;

    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    session.sender.publish(Outgoing { topic: "fresh".into(), ..message() }).await.unwrap();
    let fresh = peer.expect(PUBLISH).await;
    assert_eq!(&fresh[..7], b"\0\x05fresh");
}

#[tokio::test]
async fn what_is_queued_leaves_before_the_disconnect() {
    let (broker, mut session) = start(driver::STALL).await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    let queued = peer.fill(&session.sender).await;
    session.stop.cancel();
    for id in 1..=IN_FLIGHT {
        peer.acknowledge(id).await;
    }
    for _ in 0..queued {
        peer.expect(PUBLISH).await;
    }
    peer.expect(DISCONNECT).await;
    session.driver.await.unwrap();
    assert_eq!(session.sender.publish(message()).await.map(drop), Err(SendError::Offline));
}

#[tokio::test]
async fn a_slow_consumer_misses_messages_and_never_the_link() {
    const FLOOD: u64 = 1000;
    let (broker, mut session) = start(driver::STALL).await;
    let mut peer = Peer::subscribed(&broker).await;
    let packet = [0x30, 6, 0, 3, b'f', b'o', b'o', b'!'];
    peer.send(&packet.repeat(FLOOD as usize)).await;
    drop(peer);
    let _peer = Peer::subscribed(&broker).await;
    soon(session.sender.online.wait_for(|online| *online)).await.unwrap();

    session.connected().await;
    let mut messages = 0;
    let reason = loop {
        match session.event().await {
            Event::Message(message) => {
                messages += u64::from(&message.topic == "foo" && &message.body[..] == b"!")
            }
            Event::Disconnected(reason) => break reason,
            Event::Connected => panic!("connected twice"),
        }
    };
    session.connected().await;
    assert!(reason.contains("closed"), "{reason}");
    let counters = session.sender.counters();
    assert_eq!(counters.received.load(Ordering::Relaxed), FLOOD);
    assert_eq!(counters.dropped.load(Ordering::Relaxed), FLOOD - messages);
    assert!(messages >= (INCOMING_QUEUE - 2 * driver::RESERVED_FOR_LINK) as u64, "{messages}");
}

#[tokio::test]
async fn a_burst_larger_than_the_queue_reaches_whoever_takes_it_at_once() {
    const BURST: usize = 8 * INCOMING_QUEUE;
    let (broker, mut session) = start(driver::STALL).await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    let burst = [0x30, 6, 0, 3, b'f', b'o', b'o', b'!'].repeat(BURST);
    let taken = async {
        for _ in 0..BURST {
            assert!(matches!(session.event().await, Event::Message(_)));
        }
    };
    tokio::join!(peer.send(&burst), taken);
    assert_eq!(session.sender.counters().dropped.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn garbage_ends_the_connection_and_no_more() {
    let (broker, mut session) = start(driver::STALL).await;
    // An acknowledgement nobody waits for; a topic that is no text; a length without end. Each costs a longer
    // pause than the one before.
    let garbage: [&[u8]; 3] =
        [&[0x40, 2, 0, 9], &[0x30, 4, 0, 2, 0xff, 0xff], &[0x30, 0xff, 0xff, 0xff, 0xff]];
    for packet in garbage {
        let mut peer = Peer::subscribed(&broker).await;
        session.connected().await;
        peer.send(packet).await;
        session.lost().await;
    }
}

#[tokio::test]
async fn a_delivery_is_told_when_it_is_acknowledged_and_when_it_is_lost() {
    let (broker, mut session) = start(driver::STALL).await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    let unacknowledged = Outgoing { qos: Qos::AtMostOnce, ..message() };
    let mut never = session.sender.publish(unacknowledged).await.unwrap();
    assert!(!soon(never.acknowledged()).await);
    let mut first = session.sender.publish(message()).await.unwrap();
    let mut second = session.sender.publish(message()).await.unwrap();
    for _ in 0..3 {
        peer.expect(PUBLISH).await;
    }
    // The subscription has 1.
    peer.acknowledge(2).await;
    assert!(soon(first.acknowledged()).await);
    drop(peer);
    assert!(!soon(second.acknowledged()).await);
}

#[tokio::test]
async fn acknowledgements_leave_in_the_order_of_the_messages_and_never_for_a_lost_connection() {
    let (broker, mut session) = start_with(driver::STALL, persistent).await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    peer.deliver(7).await;
    peer.deliver(8).await;
    let (first, second) = (session.acknowledgement().await, session.acknowledgement().await);
    second.give();
    // Sent again, as by a broker that has lost patience: it is in hand, and keeps its place.
    peer.deliver(7).await;
    first.give();
    assert_eq!(peer.expect(PUBACK).await, [0, 7]);
    assert_eq!(peer.expect(PUBACK).await, [0, 8]);
    assert!(!first.is_awaited());

    peer.deliver(7).await;
    session.acknowledgement().await.put_off();
    peer.deliver(7).await;
    session.acknowledgement().await.give();
    assert_eq!(peer.expect(PUBACK).await, [0, 7]);

    peer.deliver(9).await;
    let lost = session.acknowledgement().await;
    drop(peer);
    session.lost().await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    peer.deliver(9).await;
    let anew = session.acknowledgement().await;
    lost.give();
    session.sender.publish(message()).await.unwrap();
    peer.expect(PUBLISH).await;
    anew.give();
    assert_eq!(peer.expect(PUBACK).await, [0, 9]);
}

#[tokio::test]
async fn a_login_is_issued_for_every_connection_and_renewed_in_order() {
    let asked = Arc::new(AtomicU64::new(0));
    let (broker, mut session) = start_with(driver::STALL, |options| {
        let asked = asked.clone();
        let issue = move || -> PendingLogin {
            let count = asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                if count == 0 {
                    return Err("the issuer is away".to_owned());
                }
                let (username, password) = ("device".to_owned(), format!("token-{count}"));
                let renew_in = (count == 1).then_some(Duration::from_millis(300));
                Ok(Login {
                    credentials: Some(Credentials { username, password }),
                    authorities: None,
                    renew_in,
                })
            })
        };
        Options { identity: Identity::Issued(Arc::new(issue)), ..persistent(options) }
    })
    .await;
    assert_eq!(session.lost().await, "no login: the issuer is away");
    let mut peer = Peer(soon(broker.accept()).await.unwrap().0);
    let connect = peer.expect(CONNECT).await;
    assert!(connect.ends_with(b"\0\x07token-1"), "{connect:?}");
    assert_eq!(connect[7] & 2, 0, "a persistent session is no clean one");
    peer.welcome().await;
    session.connected().await;
    peer.expect(DISCONNECT).await;
    session.lost().await;

    let mut peer = Peer(soon(broker.accept()).await.unwrap().0);
    assert!(peer.expect(CONNECT).await.ends_with(b"\0\x07token-2"));
    peer.welcome().await;
    session.connected().await;
}

#[tokio::test]
async fn a_login_that_can_not_be_renewed_does_not_cost_the_connection() {
    let asked = Arc::new(AtomicU64::new(0));
    let (broker, mut session) = start_with(driver::STALL, |options| {
        let asked = asked.clone();
        let issue = move || -> PendingLogin {
            let is_first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            let login = Login { renew_in: Some(Duration::from_millis(100)), ..Login::default() };
            Box::pin(async move { is_first.then_some(login).ok_or_else(|| "the issuer is away".to_owned()) })
        };
        Options { identity: Identity::Issued(Arc::new(issue)), ..persistent(options) }
    })
    .await;
    let mut peer = Peer::subscribed(&broker).await;
    session.connected().await;
    soon(async {
        while asked.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    session.sender.publish(message()).await.unwrap();
    peer.expect(PUBLISH).await;
    assert!(session.sender.is_online());
}

#[tokio::test]
async fn a_flood_that_must_be_acknowledged_is_left_and_comes_again() {
    let (broker, mut session) = start_with(driver::STALL, persistent).await;
    let mut peer = Peer::subscribed(&broker).await;
    soon(session.sender.online.wait_for(|online| *online)).await.unwrap();
    let message = |id: usize| [0x32, 8, 0, 3, b'f', b'o', b'o', (id >> 8) as u8, id as u8, b'!'];
    peer.send(&(1..=INCOMING_QUEUE).map(message).collect::<Vec<_>>().concat()).await;
    soon(session.sender.online.wait_for(|online| !*online)).await.unwrap();
    let reason = loop {
        if let Event::Disconnected(reason) = session.event().await {
            break reason;
        }
    };
    assert_eq!(reason, "more messages came than can wait");
}

/// Long enough for two pings, short enough for a test.
const STALL_IN_TESTS: Duration = Duration::from_millis(2500);

struct Session {
    sender: Sender,
    events: mpsc::Receiver<Event>,
    stop: CancellationToken,
    driver: JoinHandle<()>,
}

async fn start(stall: Duration) -> (TcpListener, Session) {
    start_with(stall, |options| options).await
}

async fn start_with(stall: Duration, change: impl FnOnce(Options) -> Options) -> (TcpListener, Session) {
    let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options =
        change(Options::new(format!("mqtt://{}", broker.local_addr().unwrap()).parse().unwrap(), "session"));
    let (sender, events, mut driver) = open(Options {
        keep_alive: Duration::ZERO,
        subscriptions: vec![("site/in".into(), Qos::AtLeastOnce)],
        ..options
    })
    .unwrap();
    driver.stall = stall;
    let stop = CancellationToken::new();
    let driver = tokio::spawn(driver.run(stop.clone()));
    (broker, Session { sender, events, stop, driver })
}

impl Session {
    async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.unwrap()
    }

    async fn connected(&mut self) {
        match self.event().await {
            Event::Connected => {}
            other => panic!("{other:?}"),
        }
    }

    async fn acknowledgement(&mut self) -> Acknowledgement {
        match self.event().await {
            Event::Message(message) => message.acknowledgement.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn lost(&mut self) -> String {
        match self.event().await {
            Event::Disconnected(reason) => reason,
            other => panic!("{other:?}"),
        }
    }
}

/// The broker's end of one connection.
struct Peer(TcpStream);

impl Peer {
    async fn accept(broker: &TcpListener) -> Self {
        let mut peer = Self(soon(broker.accept()).await.unwrap().0);
        peer.expect(CONNECT).await;
        peer.send(&[0x20, 2, 0, 0]).await;
        peer
    }

    async fn subscribed(broker: &TcpListener) -> Self {
        let mut peer = Self(soon(broker.accept()).await.unwrap().0);
        peer.expect(CONNECT).await;
        peer.welcome().await;
        peer
    }

    /// Accepts the connection, and grants the subscription.
    async fn welcome(&mut self) {
        self.send(&[0x20, 2, 0, 0]).await;
        let subscribe = self.expect(SUBSCRIBE).await;
        self.send(&[0x90, 3, subscribe[0], subscribe[1], 1]).await;
    }

    /// Sends a message that is to be acknowledged.
    async fn deliver(&mut self, id: u8) {
        self.send(&[0x32, 8, 0, 3, b'f', b'o', b'o', 0, id, b'!']).await;
    }

    /// Takes as many messages as may be unacknowledged, and lets the queue behind them fill; says how many are
    /// in it.
    async fn fill(&mut self, sender: &Sender) -> usize {
        for _ in 0..IN_FLIGHT {
            sender.publish(message()).await.unwrap();
        }
        for _ in 0..IN_FLIGHT {
            self.expect(PUBLISH).await;
        }
        let mut queued = 0;
        while sender.try_publish(message()).map(drop) != Err(SendError::Busy) {
            queued += 1;
        }
        queued
    }

    async fn acknowledge(&mut self, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.send(&[0x40, 2, high, low]).await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        soon(self.0.write_all(bytes)).await.unwrap();
    }

    /// The body of the next packet but pings, which is of this type.
    async fn expect(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            match self.packet().await {
                Some((PING, _)) => {}
                Some((kind, body)) if kind == wanted => return body,
                other => panic!("{other:?} and not {wanted}"),
            }
        }
    }

    /// The type and the body of the next packet; pings are answered.
    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let kind = soon(self.0.read_u8()).await.ok()? >> 4;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.ok()?;
        if kind == PING {
            self.send(&[0xd0, 0]).await;
        }
        Some((kind, body))
    }
}

fn persistent(options: Options) -> Options {
    Options { persistent: true, ..options }
}

fn message() -> Outgoing {
    Outgoing {
        topic: "site/out".into(),
        body: Bytes::from_static(b"body"),
        qos: Qos::AtLeastOnce,
        retain: false,
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it never happened")
}
