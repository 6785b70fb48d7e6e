//! The embedded broker: for one machine, on loopback. The only file that names it.
//!
//! It keeps nothing over a restart and sends small answers late (no TCP_NODELAY): good enough to try and to develop
//! with, and the reason why `--mqtt` takes a real one.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cloud_sync::limits::MAX_PACKET_BYTES;
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Each topic has a log in memory of at most this many segments of this size: 2 MiB, twice the window of a pull.
/// The broker forgets the oldest segment of whoever lags behind that; receipts and re-asking make up for it.
const SEGMENT_BYTES: usize = 512 * 1024;
/// See [`SEGMENT_BYTES`].
const SEGMENTS: usize = 4;

/// Most clients at once: it serves one machine.
const CONNECTIONS: usize = 1024;

/// Longest wait until the broker answers on its port.
const START: Duration = Duration::from_secs(10);

/// A broker that answers on its port.
#[derive(Debug)]
pub struct Embedded {
    /// Where it listens.
    pub address: SocketAddr,
    /// Resolves if it ends, which it never does by itself.
    pub ended: oneshot::Receiver<()>,
}

/// A broker that can't be started.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It would be open to the network without any password.
    #[error(
        "--mqtt-listen {0}: the embedded broker has no passwords and listens on loopback only; use --mqtt with a broker of yours"
    )]
    NotLoopback(SocketAddr),
    /// The port is taken, or not ours to take.
    #[error(
        "--mqtt-listen {address}: {source}; choose another port or use --mqtt with the broker that has it"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It ended, or did not answer, right after its start.
    #[error("the embedded broker did not start on {0}; see the log")]
    Start(SocketAddr),
}

/// Starts the broker on threads of its own, and waits until it answers. Port 0 takes a free one.
pub async fn start(listen: SocketAddr) -> Result<Embedded, BrokerError> {
    if !listen.ip().is_loopback() {
        return Err(BrokerError::NotLoopback(listen));
    }
    let bind = |source| BrokerError::Bind { address: listen, source };
    // The broker binds the port itself and says nothing when it can't, so it is tried here first.
    let address = TcpListener::bind(listen).await.map_err(bind)?.local_addr().map_err(bind)?;
    let (end, mut ended) = oneshot::channel();
    let mut broker = Broker::new(config(address));
    std::thread::Builder::new()
        .name("broker".to_owned())
        .spawn(move || {
            if let Err(error) = broker.start() {
                tracing::error!(%error, "the embedded broker failed");
            }
            drop(end);
        })
        .map_err(bind)?;
    let answers = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        answered = tokio::time::timeout(START, answers) => answered.map_err(|_| BrokerError::Start(address))?,
        _ = &mut ended => return Err(BrokerError::Start(address)),
    }
    Ok(Embedded { address, ended })
}

fn config(listen: SocketAddr) -> Config {
    let connections = ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: MAX_PACKET_BYTES,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "edgewise".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let router = RouterConfig {
        max_connections: CONNECTIONS,
        max_outgoing_packet_count: 200,
        max_segment_size: SEGMENT_BYTES,
        max_segment_count: SEGMENTS,
        ..RouterConfig::default()
    };
    Config { router, v4: Some(HashMap::from([("v4".to_owned(), server)])), ..Config::default() }
}

/// Where the broker listens when nothing else is said.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1883);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_or_taken_address_is_refused_with_what_to_do() {
        let open = start("0.0.0.0:0".parse().unwrap()).await.unwrap_err().to_string();
        assert!(open.contains("--mqtt"), "{open}");
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = start(taken.local_addr().unwrap()).await.unwrap_err();
        assert!(matches!(error, BrokerError::Bind { .. }), "{error}");
    }
}
