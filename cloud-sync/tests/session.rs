//! The session against a real broker. Needs `mosquitto` (apt-get install mosquitto) and the `openssl` command.

// A test says what went wrong by panicking; the exemption in .clippy.toml does not reach a test's helpers here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::limits::MAX_PACKET_BYTES;
use cloud_sync::session::{
    Credentials, Event, Identity, Options, Outgoing, SendError, Sender, TlsFiles, open,
};
use cloud_sync::topic::Qos;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn who_is_connected_misses_nothing() {
    let broker = Broker::start("");
    let mut publisher = Session::start(options(&broker, "publisher"));
    publisher.connected().await;
    publisher.publish("site/kept", b"retained", true).await;

    let mut listener = Session::start(Options {
        subscriptions: vec![("site/+".into(), Qos::AtLeastOnce), ("other".into(), Qos::AtMostOnce)],
        ..options(&broker, "listener")
    });
    listener.connected().await;
    publisher.publish("other", b"1", false).await;
    publisher.publish("site/a", &[7; 100_000], false).await;
    publisher.publish("site/not/ours", b"2", false).await;
    publisher.publish("site/b", b"3", false).await;
    let mut messages = vec![];
    for _ in 0..4 {
        messages.push(listener.message().await);
    }
    messages.sort();
    let expected: [(&str, &[u8]); 4] =
        [("other", b"1"), ("site/a", &[7; 100_000]), ("site/b", b"3"), ("site/kept", b"retained")];
    assert_eq!(messages, expected.map(|(topic, body)| (topic.to_owned(), body.to_vec())));
    let counters = listener.sender.counters();
    assert_eq!(counters.received.load(Ordering::Relaxed), 4);
    assert_eq!(counters.received_bytes.load(Ordering::Relaxed), 100_010);
    assert_eq!(publisher.sender.counters().sent.load(Ordering::Relaxed), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_is_found_again_with_all_subscriptions() {
    let mut broker = Broker::start("");
    let mut session = Session::start(Options {
        subscriptions: vec![("a".into(), Qos::AtLeastOnce), ("b".into(), Qos::AtMostOnce)],
        ..options(&broker, "session")
    });
    session.connected().await;
    broker.kill();
    session.lost().await;
    assert_eq!(session.sender.publish(outgoing("a", b"", false)).await.map(drop), Err(SendError::Offline));
    assert_eq!(session.sender.try_publish(outgoing("a", b"", false)).map(drop), Err(SendError::Offline));
    broker.restart();
    loop {
        match session.event().await {
            Event::Connected => break,
            Event::Disconnected(reason) => assert!(reason.contains("refused"), "{reason}"),
            Event::Message(message) => panic!("{message:?} of a former connection"),
        }
    }
    for topic in ["a", "b"] {
        session.publish(topic, b"again", false).await;
        assert_eq!(session.message().await, (topic.to_owned(), b"again".to_vec()));
    }
    assert_eq!(session.sender.counters().connects.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_will_speaks_for_the_lost_and_only_for_them() {
    let broker = Broker::start("");
    let mut watcher = Session::start(Options {
        subscriptions: vec![("#".into(), Qos::AtLeastOnce)],
        ..options(&broker, "watcher")
    });
    watcher.connected().await;
    let with_will =
        |id: &str| Options { last_will: Some(outgoing("will", id.as_bytes(), true)), ..options(&broker, id) };

    let mut orderly = Session::start(with_will("orderly"));
    orderly.connected().await;
    orderly.publish("goodbye", b"orderly", false).await;
    orderly.stop.cancel();
    orderly.driver.await.unwrap();
    broker.says("Client orderly disconnected.");
    assert_eq!(orderly.sender.publish(outgoing("a", b"", false)).await.map(drop), Err(SendError::Offline));

    let mut lost = Session::start(with_will("lost"));
    lost.connected().await;
    lost.driver.abort();
    broker.says("Client lost closed its connection.");

    assert_eq!(watcher.message().await, ("goodbye".to_owned(), b"orderly".to_vec()));
    assert_eq!(watcher.message().await, ("will".to_owned(), b"lost".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_never_ran_is_offline() {
    let broker = Broker::start("");
    let (sender, _events, driver) = open(options(&broker, "session")).unwrap();
    assert_eq!(sender.publish(outgoing("a", b"", false)).await.map(drop), Err(SendError::Offline));
    assert_eq!(sender.try_publish(outgoing("a", b"", false)).map(drop), Err(SendError::Offline));
    let stop = CancellationToken::new();
    stop.cancel();
    soon(driver.run(stop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_broker_takes_is_refused_and_costs_nothing() {
    let broker = Broker::start("");
    let mut session = Session::start(Options {
        subscriptions: vec![("a".into(), Qos::AtLeastOnce)],
        ..options(&broker, "session")
    });
    session.connected().await;
    for topic in ["", "a/+", "#", "a\0b", &"x".repeat(70_000)] {
        let error = session.sender.publish(outgoing(topic, b"", false)).await;
        assert!(matches!(error, Err(SendError::Refused(_))), "{topic}");
    }
    let too_large = outgoing("a", &vec![0; MAX_PACKET_BYTES - 16], false);
    assert!(matches!(session.sender.try_publish(too_large), Err(SendError::Refused(_))));
    let largest = vec![0; MAX_PACKET_BYTES - 17];
    session.publish("a", &largest, false).await;
    assert_eq!(session.message().await.1.len(), largest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_costs_the_connection_and_is_counted() {
    let broker = Broker::start("");
    let mut session = Session::start(Options {
        subscriptions: vec![("a".into(), Qos::AtLeastOnce)],
        ..options(&broker, "session")
    });
    session.connected().await;
    publish_raw(&broker, "a", 2 * MAX_PACKET_BYTES);
    let reason = session.lost().await;
    assert!(reason.contains("payload size limit exceeded"), "{reason}");
    session.connected().await;
    session.publish("a", b"next", false).await;
    assert_eq!(session.message().await.1, b"next");
    assert_eq!(session.sender.counters().dropped.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_the_door_and_are_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let passwords = directory.path().join("passwords");
    command("mosquitto_passwd", &["-b", "-c", passwords.to_str().unwrap(), "device", "secret"]);
    let broker = Broker::start(&format!("allow_anonymous false\npassword_file {}\n", passwords.display()));
    let known = |password: &str| Credentials { username: "device".into(), password: password.into() };

    let fixed = |credentials, id| Options { identity: Identity::Fixed(credentials), ..options(&broker, id) };
    for credentials in [None, Some(known("wrong"))] {
        let mut refused = Session::start(fixed(credentials, "refused"));
        let reason = refused.lost().await;
        assert!(reason.contains("NotAuthorized") || reason.contains("BadUserNamePassword"), "{reason}");
    }
    let mut welcome = Session::start(fixed(Some(known("secret")), "welcome"));
    welcome.connected().await;
    assert!(!format!("{:?}", known("secret")).contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_both_ends_prove_who_they_are() {
    let files = Certificates::make();
    let tls = format!(
        "cafile {0}/ca.pem\ncertfile {0}/server.pem\nkeyfile {0}/server.key\nrequire_certificate true\n",
        files.0.path().display()
    );
    let broker = Broker::start(&tls);
    let tls = |authorities: &str, client: Option<&str>| TlsFiles {
        authorities: Some(files.path(&format!("{authorities}.pem"))),
        certificate: client.map(|client| files.path(&format!("{client}.pem"))),
        key: client.map(|client| files.path(&format!("{client}.key"))),
    };
    let mqtts = |host: &str, tls: TlsFiles| Options {
        broker: format!("mqtts://{host}:{}", broker.port).parse().unwrap(),
        tls,
        ..options(&broker, "session")
    };

    let mut welcome = Session::start(mqtts("localhost", tls("ca", Some("client"))));
    welcome.connected().await;
    for (host, tls, why) in [
        ("localhost", tls("stranger", Some("client")), "UnknownIssuer"),
        ("127.0.0.1", tls("ca", Some("client")), "not valid for name"),
        // The broker closes at once, so its alert may be lost to the reset.
        ("localhost", tls("ca", None), ""),
    ] {
        let mut refused = Session::start(mqtts(host, tls));
        let reason = refused.lost().await;
        assert!(reason.contains(why), "{reason}, not {why}");
        assert!(!refused.sender.is_online());
    }
}

struct Session {
    sender: Sender,
    events: tokio::sync::mpsc::Receiver<Event>,
    stop: CancellationToken,
    driver: JoinHandle<()>,
}

impl Session {
    fn start(options: Options) -> Self {
        let (sender, events, driver) = open(options).unwrap();
        let stop = CancellationToken::new();
        let driver = tokio::spawn(driver.run(stop.clone()));
        Self { sender, events, stop, driver }
    }

    async fn publish(&self, topic: &str, body: &[u8], retain: bool) {
        self.sender.publish(outgoing(topic, body, retain)).await.unwrap();
    }

    async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.unwrap()
    }

    async fn connected(&mut self) {
        match self.event().await {
            Event::Connected => assert!(self.sender.is_online()),
            other => panic!("{other:?}"),
        }
    }

    async fn lost(&mut self) -> String {
        match self.event().await {
            Event::Disconnected(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn message(&mut self) -> (String, Vec<u8>) {
        match self.event().await {
            Event::Message(message) => (message.topic, message.body.to_vec()),
            other => panic!("{other:?}"),
        }
    }
}

fn options(broker: &Broker, id: &str) -> Options {
    Options {
        keep_alive: Duration::from_secs(5),
        ..Options::new(format!("mqtt://127.0.0.1:{}", broker.port).parse().unwrap(), id)
    }
}

fn outgoing(topic: &str, body: &[u8], retain: bool) -> Outgoing {
    Outgoing { topic: topic.into(), body: Bytes::copy_from_slice(body), qos: Qos::AtLeastOnce, retain }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("it never happened")
}

/// A Mosquitto of the test's own, on a free port.
struct Broker {
    port: u16,
    process: Child,
    log: Receiver<String>,
    directory: TempDir,
}

impl Broker {
    fn start(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // As root it would become another user, who can't read the test's files.
        let config = format!(
            "user root\nlog_dest stderr\nlog_type all\nset_tcp_nodelay true\nlistener {port} 127.0.0.1\n{}{more}",
            if more.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" },
        );
        std::fs::write(directory.path().join("mosquitto.conf"), config).unwrap();
        let (process, log) = run(directory.path());
        Self { port, process, log, directory }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        (self.process, self.log) = run(self.directory.path());
    }

    /// Waits until the broker logs this.
    fn says(&self, text: &str) {
        while !self.log.recv_timeout(Duration::from_secs(20)).expect(text).contains(text) {}
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(directory: &Path) -> (Child, Receiver<String>) {
    let mut process = Command::new("mosquitto")
        .arg("-c")
        .arg(directory.join("mosquitto.conf"))
        .env("PATH", search_path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests start a mosquitto; install it: apt-get install mosquitto");
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let (log, told) = channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| log.send(line)));
    let mut said = String::new();
    loop {
        match told.recv_timeout(Duration::from_secs(20)) {
            Ok(line) if line.ends_with(" running") => return (process, told),
            Ok(line) => said.extend([line.as_str(), "\n"]),
            Err(_) => panic!("mosquitto does not start: {said}"),
        }
    }
}

/// Where Debian puts daemons, which not every user's path names.
fn search_path() -> String {
    format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default())
}

fn command(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).env("PATH", search_path()).output();
    let output = output.unwrap_or_else(|error| panic!("these tests need {program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A message of zeros, larger than the session itself would send.
fn publish_raw(broker: &Broker, topic: &str, bytes: usize) {
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port)).unwrap();
    stream.write_all(b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x03raw").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    let length = 2 + topic.len() + bytes;
    let mut packet = vec![0x30];
    packet.extend([
        length as u8 | 0x80,
        (length >> 7) as u8 | 0x80,
        (length >> 14) as u8 | 0x80,
        (length >> 21) as u8,
    ]);
    packet.extend([0, topic.len() as u8]);
    packet.extend(topic.as_bytes());
    packet.resize(packet.len() + bytes, 0);
    packet.extend([0xe0, 0]);
    stream.write_all(&packet).unwrap();
}

/// Two authorities, `ca` and `stranger`; the first has signed `server`, for localhost, and `client`.
struct Certificates(TempDir);

impl Certificates {
    fn make() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.certificate("ca", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        files.certificate("stranger", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        let (ca, key) = (files.path("ca.pem"), files.path("ca.key"));
        let signed = ["-CA", ca.to_str().unwrap(), "-CAkey", key.to_str().unwrap()];
        let end =
            ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=DNS:localhost"];
        files.certificate("server", &[signed, end].concat());
        files.certificate("client", &[signed, end].concat());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn certificate(&self, name: &str, more: &[&str]) {
        let (out, key, subject) =
            (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")), format!("/CN={name}"));
        let key_kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let files = ["-out", out.to_str().unwrap(), "-keyout", key.to_str().unwrap()];
        let rest = ["-subj", &subject, "-days", "2"];
        command("openssl", &[&["req", "-x509"], &key_kind[..], &files[..], &rest[..], more].concat());
    }
}
