//! Mutual TLS on Mosquitto with what the command line and the package give: who is enrolled comes in and does all that a
//! device does, on its own topics alone; who is not stays out, and both ends say why.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::name::DeviceId;
use cloud_sync::session::{self, Event, Options, Outgoing, Sender};
use cloud_sync::topic::{Kind, Qos, Root};
use e2e::enrolment::{Enrolled, HOST};
use e2e::process::{Failure, wait_until};
use e2e::site::PATIENCE;
use e2e::{files, journey};
use tokio::sync::mpsc;

#[test]
fn an_enrolled_device_makes_the_whole_journey() -> Result<(), Failure> {
    let site = Enrolled::start("enrolled")?;
    let id = "gateway-7";
    let device = site.enroll(id)?;
    let agent = site.start_agent(&device)?;
    journey::whole(&site.cloud, &agent, id, &site.directory)?;
    assert!(
        site.broker.log()?.contains(&format!("u'{id}'")),
        "the broker does not know it by its certificate"
    );

    // Enrolled again it has a new key, and keeps a configuration that its owner has changed.
    drop(agent);
    let key = files::read(&device.join("key.pem"))?;
    let configuration = files::read(&device.join("agent.toml"))? + "keep_alive = \"50s\"\n";
    files::write(&device.join("agent.toml"), &configuration)?;
    site.enroll(id)?;
    assert_ne!(files::read(&device.join("key.pem"))?, key);
    assert_eq!(files::read(&device.join("agent.toml"))?, configuration);
    let _agent = site.start_agent(&device)?;
    wait_until(PATIENCE, || site.cloud.json(&["command", id, "ping"]).map(drop))?;

    // What the command line refuses before anything is made.
    for (arguments, code) in [
        (&["device", "enroll", "a/b"][..], 2),
        (&["device", "enroll", "@registry"], 2),
        (&["device", "enroll", "d", "--days", "0"], 2),
        (&["device", "enroll", "d", "--broker", "mqtt://broker.example"], 2),
        (&["broker", "enroll", "broker.example:8883"], 2),
    ] {
        assert_eq!(site.cloud.edgewise(arguments)?.status.code(), Some(code), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn without_a_good_certificate_nobody_comes_in_and_both_ends_say_why() -> Result<(), Failure> {
    let site = Enrolled::start("strangers")?;
    let edit = |device: &Path, from: &str, to: &str| {
        let file = device.join("agent.toml");
        let text = files::read(&file)?;
        assert!(text.contains(from), "{text}");
        files::write(&file, text.replace(from, to))
    };
    let spoil = |id: &str, device: &Path| -> Result<(), Failure> {
        match id {
            "expired" => site.expire(device, id),
            "foreign" => site.estrange(device, id).map(drop),
            "nobody" => edit(device, "certificate = ", "# ").and_then(|()| edit(device, "key = ", "# ")),
            "misled" => edit(device, HOST, "127.0.0.1"),
            _ => files::write(&device.join("authorities.pem"), site.estrange(device, id)?),
        }
    };
    for (id, says, broker_says) in [
        ("expired", "our certificate has expired: enrol anew", "certificate verify failed"),
        ("foreign", "does not trust the authority of our certificate", "certificate verify failed"),
        ("nobody", "wants a certificate of ours: configure", "peer did not return a certificate"),
        ("misled", "is for another host: check the name in the broker's URL", "alert"),
        ("distrustful", "an authority that is not trusted here: check the file", "alert unknown ca"),
    ] {
        let device = site.enroll(id)?;
        spoil(id, &device)?;
        let before = site.broker.log()?.len();
        let agent = site.start_agent(&device)?;
        wait_until(PATIENCE, || {
            let log = site.log_of(&device)?;
            if log.contains(says) { Ok(()) } else { Err(format!("{id}: no {says:?} in:\n{log}")) }
        })?;
        wait_until(PATIENCE, || {
            let log = site.broker.log()?;
            let new = log.get(before..).unwrap_or_default();
            if new.contains(broker_says) {
                Ok(())
            } else {
                Err(format!("{id}: no {broker_says:?} in:\n{new}"))
            }
        })?;
        drop(agent);
        assert!(!site.log_of(&device)?.contains("connected to the broker"), "{id} came in");
        assert!(!site.broker.log()?.contains(&format!("u'{id}'")), "{id} came in");
    }
    Ok(())
}

#[tokio::test]
async fn a_device_neither_hears_nor_speaks_for_another() -> Result<(), Failure> {
    let mut site = Enrolled::start("neighbours")?;
    let root = Root::default();
    let registry = site.files_in(&site.directory.join("cloud/broker"));
    let mut registry = Client::connect(&site, "registry", registry, &[format!("{root}/#")]).await?;
    let [mut a, mut b] = [None, None];
    for (id, client) in [("device-a", &mut a), ("device-b", &mut b)] {
        let files = site.files_in(&site.enroll(id)?);
        // Everything there is; the broker grants it, and hands out what each may hear.
        *client = Some(Client::connect(&site, id, files, &["#".to_owned()]).await?);
    }
    let (Some(a), Some(b)) = (&mut a, &mut b) else { return Err("no clients".to_owned()) };
    let topic = |id: &str, kind| id.parse().map(|id: DeviceId| root.topic(&id, kind)).unwrap_or_default();

    // What the cloud says to B reaches B alone: the next that A hears is what was said to A behind it.
    let heard = [Kind::Desired, Kind::Chunk, Kind::Receipt, Kind::Command];
    for kind in heard {
        registry.publish(topic("device-b", kind)).await?;
    }
    registry.publish(topic("device-a", Kind::Command)).await?;
    for kind in heard {
        b.expect(&topic("device-b", kind)).await?;
    }
    a.expect(&topic("device-a", Kind::Command)).await?;

    // What A says for B reaches nobody, nor do orders to B or to itself: the next that the cloud hears is A's own word.
    registry.skip_own().await?;
    for kind in Kind::ALL {
        a.publish(topic("device-b", kind)).await?;
    }
    for kind in heard {
        a.publish(topic("device-a", kind)).await?;
    }
    let said = [Kind::Presence, Kind::Reported, Kind::Fetch, Kind::Telemetry, Kind::Reply];
    for (client, id) in [(&*a, "device-a"), (&*b, "device-b")] {
        for kind in said {
            client.publish(topic(id, kind)).await?;
        }
        for kind in said {
            registry.expect(&topic(id, kind)).await?;
        }
    }

    // B is lost, and shut out as the access list's head says.
    let list = site.directory.join("broker/devices.acl");
    let denied = format!("user device-b\ntopic deny {root}/device-b/#\n\nuser @registry\n");
    let text = files::read(&list)?;
    assert!(text.contains("user @registry\n"));
    site.broker.kill();
    files::write(&list, text.replace("user @registry\n", &denied))?;
    site.broker.restart()?;
    for client in [&mut registry, a, b] {
        client.connected().await?;
    }
    b.publish(topic("device-b", Kind::Reply)).await?;
    registry.publish(topic("device-b", Kind::Command)).await?;
    registry.expect(&topic("device-b", Kind::Command)).await?;
    registry.publish(topic("device-a", Kind::Command)).await?;
    a.expect(&topic("device-a", Kind::Command)).await?;
    assert!(b.events.try_recv().is_err(), "the broker speaks to who is shut out");
    Ok(())
}

/// Somebody on the broker with a certificate, who hears and says what the broker lets through.
struct Client {
    sender: Sender,
    events: mpsc::Receiver<Event>,
}

impl Client {
    async fn connect(
        site: &Enrolled,
        id: &str,
        tls: session::TlsFiles,
        filters: &[String],
    ) -> Result<Self, Failure> {
        let broker = site.broker.url.parse().map_err(|error| format!("{error}"))?;
        let subscriptions = filters.iter().map(|filter| (filter.clone(), Qos::AtLeastOnce)).collect();
        let options = Options { tls, subscriptions, ..Options::new(broker, format!("test-{id}")) };
        let (sender, events, driver) = session::open(options).map_err(|error| error.to_string())?;
        tokio::spawn(driver.run(tokio_util::sync::CancellationToken::new()));
        let mut client = Self { sender, events };
        client.connected().await?;
        Ok(client)
    }

    /// Waits until it is let in.
    async fn connected(&mut self) -> Result<(), Failure> {
        let connected = async {
            while !matches!(self.event().await?, Event::Connected) {}
            Ok(())
        };
        tokio::time::timeout(PATIENCE, connected).await.map_err(|_| "the broker lets nobody in".to_owned())?
    }

    async fn publish(&self, topic: String) -> Result<(), Failure> {
        let message =
            Outgoing { topic, body: Bytes::from_static(b"word"), qos: Qos::AtLeastOnce, retain: false };
        let mut delivery = self.sender.publish(message).await.map_err(|error| error.to_string())?;
        // Mosquitto acknowledges what it does not let through, too.
        let answered = tokio::time::timeout(Duration::from_secs(20), delivery.acknowledged()).await;
        if answered == Ok(true) { Ok(()) } else { Err("the broker did not answer".to_owned()) }
    }

    /// The next message of a test came there.
    async fn expect(&mut self, topic: &str) -> Result<(), Failure> {
        let next = self.word().await?;
        if next == topic { Ok(()) } else { Err(format!("{next} came in place of {topic}")) }
    }

    /// Leaves behind what the registry has sent and hears, too.
    async fn skip_own(&mut self) -> Result<(), Failure> {
        let end = format!("{}/end", Root::default());
        self.publish(end.clone()).await?;
        while self.word().await? != end {}
        Ok(())
    }

    /// The topic of the next message of a test; the registry that runs beside it sends others.
    async fn word(&mut self) -> Result<String, Failure> {
        loop {
            match self.event().await? {
                Event::Message(message) if message.body.as_ref() == b"word" => return Ok(message.topic),
                Event::Message(_) => {}
                other => return Err(format!("{other:?}")),
            }
        }
    }

    async fn event(&mut self) -> Result<Event, Failure> {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.ok().flatten().ok_or_else(|| format!("nothing came within {PATIENCE:?}"))
    }
}
