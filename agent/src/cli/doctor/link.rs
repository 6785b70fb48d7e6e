//! The link to the cloud, one step after the other, each with a limit: name, connection, TLS and login.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cloud_sync::session::{self, BrokerUrl, Event, Options};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::page::{Finding, Part};
use crate::config::Config;
use crate::error::Error;
use crate::module::identity::Identity;

/// How long each step may take: a link of 100 kbit/s needs two seconds for a TLS handshake.
const PATIENCE: Duration = Duration::from_secs(5);

/// What images call every board that starts from them.
const COMMON_NAMES: [&str; 6] =
    ["localhost", "raspberrypi", "debian", "ubuntu", "tegra-ubuntu", "localhost.localdomain"];

/// Blocking: makes a runtime of its own.
pub(super) fn examine(config: &Config, identity: Option<Identity>) -> Result<Part, Error> {
    let mut part = Part::new("link");
    let broker = match (&identity, &config.cloud.broker) {
        (Some(identity), _) => identity.broker(),
        (None, Some(broker)) => broker.clone(),
        (None, None) => {
            part.fact("broker", Some("none".to_owned()));
            part.findings.push(Finding::note(
                "no cloud is configured (cloud.broker): nothing is pulled, captured or uploaded",
            ));
            return Ok(part);
        }
    };
    if identity.is_none() && COMMON_NAMES.contains(&config.device.as_str()) {
        part.findings.push(Finding::warning(format!(
            "this device is called {}, as others are from the start: two of one name push each other off the broker; \
             give it a name of its own (hostnamectl hostname NAME), or set `device`",
            config.device
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(crate::app::Error::Start)?;
    runtime.block_on(async {
        if let Err(trouble) = steps(&mut part, &broker, config, identity.is_some()).await {
            part.findings.push(Finding::problem(trouble));
        }
    });
    // A lookup that hangs is left behind.
    runtime.shutdown_background();
    Ok(part)
}

/// Each step is a fact; the first that fails says what to do.
async fn steps(part: &mut Part, broker: &BrokerUrl, config: &Config, is_module: bool) -> Result<(), String> {
    part.fact("broker", Some(broker.to_string()));
    let addresses = resolve(broker).await?;
    let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    part.fact("resolves to", Some(shown.join(", ")));

    let begun = Instant::now();
    let connected = timeout(PATIENCE, TcpStream::connect(addresses.as_slice())).await;
    let connected = connected.map_err(|_| format!("{broker} does not answer within {PATIENCE:?}"));
    let connected = connected.and_then(|result| result.map_err(|error| format!("{broker}: {error}")));
    connected.map_err(|why| {
        format!("{why}; is it running, and does a firewall let port {} through?", broker.port)
    })?;
    part.fact("connects", Some(format!("in {:.0?}", begun.elapsed())));

    // A module's login comes from its security daemon, and edgeHub would close the connection of one that runs.
    if is_module {
        return Ok(());
    }
    let begun = Instant::now();
    sign_in(broker, config).await?;
    let how = if broker.tls { "TLS and MQTT" } else { "MQTT" };
    part.fact("signs in", Some(format!("over {how} in {:.0?}", begun.elapsed())));
    Ok(())
}

async fn resolve(broker: &BrokerUrl) -> Result<Vec<SocketAddr>, String> {
    let host = &broker.host;
    let advice = "check the name in cloud.broker, and the name server";
    match timeout(PATIENCE, lookup_host((host.as_str(), broker.port))).await {
        Ok(Ok(found)) => {
            let found: Vec<SocketAddr> = found.collect();
            if found.is_empty() { Err(format!("{host} has no address; {advice}")) } else { Ok(found) }
        }
        Ok(Err(error)) => Err(format!("{host} does not resolve: {error}; {advice}")),
        Err(_) => Err(format!("no name server answers for {host} within {PATIENCE:?}; {advice}")),
    }
}

/// As the agent does, under another client id, so that an agent that runs is not pushed off.
async fn sign_in(broker: &BrokerUrl, config: &Config) -> Result<(), String> {
    let options = Options {
        identity: session::Identity::Fixed(config.cloud.credentials.clone()),
        tls: config.cloud.tls.clone(),
        ..Options::new(broker.clone(), format!("edgewise-{}-doctor", config.device))
    };
    let (_sender, mut events, driver) = session::open(options).map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    let running = tokio::spawn(driver.run(stop.clone()));
    let first = timeout(PATIENCE, events.recv()).await;
    stop.cancel();
    let outcome = match first {
        Ok(Some(Event::Connected)) => Ok(()),
        Ok(Some(Event::Disconnected(why))) => Err(format!(
            "{broker} refuses us: {why}; check the clock, cloud.authorities, cloud.certificate and cloud.username"
        )),
        Ok(_) => Err(format!("the session with {broker} ended without a word")),
        Err(_) => Err(format!(
            "{broker} takes the connection and does not answer within {PATIENCE:?}; is it an MQTT broker, and {} \
             its port for {}?",
            broker.port,
            if broker.tls { "TLS" } else { "unencrypted MQTT" }
        )),
    };
    // It takes its leave within three seconds.
    let _ = running.await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flag, Sources};

    fn examined(broker: &str) -> Part {
        examined_as("d", broker)
    }

    fn examined_as(name: &str, broker: &str) -> Part {
        let flag = Flag { name: "--cloud", key: "cloud.broker", value: broker.to_owned() };
        let sources = Sources { flags: vec![flag], host_name: Some(name.to_owned()), ..Sources::default() };
        examine(&crate::config::load(&sources).config.unwrap(), None).unwrap()
    }

    #[test]
    fn a_name_that_every_new_board_has_is_told() {
        let part = examined_as("raspberrypi", "mqtt://127.0.0.1:1");
        assert!(part.findings[0].what.contains("raspberrypi, as others are"), "{:?}", part.findings);
        assert_eq!((part.findings.len(), examined("mqtt://127.0.0.1:1").findings.len()), (2, 1));
    }

    #[test]
    fn the_first_step_that_fails_is_named() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = nobody.local_addr().unwrap().port();
        // It takes connections and hangs up.
        let server = std::thread::spawn(move || drop(nobody.accept().and_then(|_| nobody.accept())));
        let part = examined(&format!("mqtt://127.0.0.1:{port}"));
        server.join().unwrap();
        let facts: Vec<&str> = part.facts.iter().map(|fact| fact.name.as_str()).collect();
        assert_eq!(facts, ["broker", "resolves to", "connects"]);
        assert!(part.findings[0].what.contains("refuses us"), "{:?}", part.findings);

        let part = examined(&format!("mqtt://127.0.0.1:{port}"));
        assert_eq!(part.facts.len(), 2);
        assert!(part.findings[0].what.contains("firewall"), "{:?}", part.findings);
    }
}
