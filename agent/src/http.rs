//! The HTTP server: who may come in, how many at once, for how long, and what is answered where.
//!
//! - `router` what is answered where; `inference` the Open Inference Protocol; `azure` `/score` as Azure ML serves it, with its `swagger`;
//! - `metrics` what is counted; `intake` the bodies; `failure` the errors; `probe` whether it still answers;
//! - `keys` who may call; `listener` where it is reached; `places` who may be connected; `patient` who is given up;
//! - `grpc` the same over gRPC, `repository` what is served and how it fares, `spans` what is told of each request.
//!
//! Invariants:
//! - Memory is bounded whoever calls: connections, headers, each body and all bodies together, those of answers too, have
//!   limits.
//! - No peer holds a connection for nothing: heads and bodies must arrive in time, answers be taken, an idle one is
//!   closed, and makes way sooner where others want in.
//! - Large bodies are read and written on blocking threads, so that they delay nobody else's small ones.
//! - Every refusal has a status and one line in JSON, and is counted.

mod azure;
mod failure;
mod grpc;
mod inference;
mod intake;
mod keys;
mod listener;
mod metrics;
mod patient;
mod places;
mod probe;
mod repository;
mod router;
mod spans;
mod swagger;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use cloud_sync::name::ModelName;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::grpc::read_call;
use self::keys::Keys;
use self::listener::{Listener, Stream};
use self::patient::Patient;
use self::places::{Place, Places};
pub use self::probe::Probe;
use self::router::{Api, json, router, wrong_method};
use crate::config::{self, Grpc};
use crate::metrics::Source;
use crate::service::Service;

/// How long answers that are under way may take once the server is told to stop; the agent has 10 s in all.
const FAREWELL: Duration = Duration::from_secs(5);

/// Pause after the system refused a connection, for want of descriptors for instance: some will be free by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many of the largest bodies may be held at once; what is more is refused as busy. While it is read and scored a
/// body takes several times its size, and the boards this is for have 512 MiB.
const LARGEST_BODIES_AT_ONCE: usize = 4;

/// Most connections; for more, idle ones make way. Each takes a few times [`MAX_HEAD_BYTES`] of buffers.
const MAX_CONNECTIONS: usize = 256;

/// Largest head of a request, and what is read at once of a body. Browsers and proxies send a tenth of it.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Calls of one connection over HTTP/2 at a time. The first 32 KiB of each body are free (see `intake`): with [`MAX_CONNECTIONS`]
/// that is 64 MiB of bodies, or of answers that nobody takes, at the very most.
const MAX_STREAMS: u32 = 8;

/// What a peer may send over HTTP/2 before it is read: a round trip's worth of a local network's speed.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Longest time that a request's head, and then its body, may take to arrive, that a peer may take nothing of its answer, and
/// that a connection may idle.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the server listens, and its bounds.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where it listens besides, for those who look for gRPC there.
    pub grpc: Grpc,
    /// The socket in the file system at which it listens, too.
    pub socket: Option<PathBuf>,
    /// The file of keys, of which a caller needs one; `None` where nobody is asked.
    pub keys: Option<PathBuf>,
    /// Largest body of a request.
    pub max_body_bytes: usize,
    /// Largest sum of all bodies that are held at once.
    pub max_held_bytes: usize,
    /// Most connections.
    pub max_connections: usize,
    /// Longest time that a head or a body may take to arrive, and that a connection may idle.
    pub read_timeout: Duration,
    /// The model that answers at `/score`; `None` for the only one that serves.
    pub score_model: Option<ModelName>,
    /// Web origins whose pages may call `/score`; `*` for all.
    pub cors_origins: Vec<String>,
}

impl From<&config::Http> for Options {
    fn from(http: &config::Http) -> Self {
        Self {
            listen: http.listen,
            grpc: http.grpc,
            socket: http.socket.clone(),
            keys: http.keys.clone(),
            max_body_bytes: http.max_body_bytes,
            max_held_bytes: http.max_body_bytes.saturating_mul(LARGEST_BODIES_AT_ONCE),
            max_connections: MAX_CONNECTIONS,
            read_timeout: READ_TIMEOUT,
            score_model: http.score_model.clone(),
            cors_origins: http.cors_origins.clone(),
        }
    }
}

/// Whether the agent lives and is ready to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// False once it can't go on.
    pub live: bool,
    /// Whether every model that should serve does.
    pub ready: bool,
    /// Why not; empty where there is nothing to say.
    pub why: String,
}

impl Readiness {
    /// Alive, and not ready yet.
    pub fn starting() -> Self {
        Self {
            live: true,
            ready: false,
            why: "starting: the models that should serve are not all up".to_owned(),
        }
    }

    /// Alive and ready.
    pub fn ready() -> Self {
        Self { live: true, ready: true, why: String::new() }
    }
}

/// A server that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address that is taken, or not ours.
    #[error("listening for HTTP on {place}: {source}")]
    Place {
        /// Which one.
        place: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of keys that can't be used.
    #[error("reading the keys in {path}: {source}", path = path.display())]
    Keys {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// A server that listens.
pub struct Server {
    listeners: Vec<Listener>,
    address: SocketAddr,
    router: Router,
    keys: Option<Arc<Keys>>,
    places: Places,
    options: Options,
    probe: (Probe, mpsc::Receiver<DuplexStream>),
}

impl Server {
    /// Listens; connections wait until [`Server::run`].
    ///
    /// # Errors
    /// The address can't be had.
    pub async fn bind(
        options: impl Into<Options>,
        service: Service,
        readiness: watch::Receiver<Readiness>,
        metrics: Source,
    ) -> Result<Self, BindError> {
        let options = options.into();
        let wrong = |place: &dyn std::fmt::Display| {
            let place = place.to_string();
            move |source| BindError::Place { place, source }
        };
        let first = Listener::tcp(options.listen).await.map_err(wrong(&options.listen))?;
        let address = first.address().map_err(wrong(&options.listen))?;
        let mut listeners = vec![first];
        match options.grpc {
            Grpc::Nowhere => {}
            Grpc::At(grpc) => listeners.push(Listener::tcp(grpc).await.map_err(wrong(&grpc))?),
            Grpc::IfFree(grpc) => match Listener::tcp(grpc).await {
                Ok(listener) => listeners.push(listener),
                Err(error) => {
                    tracing::warn!(%grpc, %error, "gRPC is not taken there; it is where HTTP is, too: {address}");
                }
            },
        }
        if let Some(path) = &options.socket {
            listeners.push(Listener::unix(path).map_err(wrong(&path.display()))?);
        }
        let wrong_keys = |path: &Path| {
            let path = path.to_owned();
            move |source| BindError::Keys { path, source }
        };
        let keys = options.keys.as_deref().map(|path| Keys::open(path).map_err(wrong_keys(path)));
        let keys = keys.transpose()?.map(Arc::new);
        let places = Places::new(options.max_connections);
        let router = router(&options, keys.clone(), places.clone(), service, readiness, metrics);
        Ok(Self { listeners, address, router, keys, places, options, probe: Probe::new() })
    }

    /// Where it listens, with the port that it was given.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What asks this server whether it still answers.
    pub fn probe(&self) -> Probe {
        self.probe.0.clone()
    }

    /// Serves until `stop`; then takes no more requests, finishes those under way and returns, after at most
    /// [`FAREWELL`].
    ///
    /// # Errors
    /// None: it ends only when it is told to.
    pub async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let Self { listeners, router, keys, places, options, probe: (_probe, mut probes), .. } = self;
        let connections = TaskTracker::new();
        let drop_all = CancellationToken::new();
        let timeout = options.read_timeout;
        let accept = |listener: Listener| {
            let (router, stop, drop_all) = (router.clone(), stop.clone(), drop_all.clone());
            let (places, connections) = (places.clone(), connections.clone());
            async move {
                loop {
                    let stream = match listener.accept().await {
                        Ok(stream) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "a connection could not be accepted");
                            places.make_way();
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let place = Arc::new(places.take().await);
                    let serve = serve(stream, Some(place.clone()), router.clone(), timeout, stop.clone());
                    let drop_all = drop_all.clone();
                    connections.spawn(async move { drop_all.run_until_cancelled(place.hold(serve)).await });
                }
            }
        };
        let answer_probes = async {
            while let Some(stream) = probes.recv().await {
                connections.spawn(serve(Either::Right(stream), None, router.clone(), timeout, stop.clone()));
            }
        };
        // None of them ends by itself: the server's own probe lives as long as it.
        let follow_keys = async {
            if let Some(keys) = &keys {
                keys.follow().await;
            }
        };
        let accept_all = futures_util::future::join_all(listeners.into_iter().map(accept));
        stop.run_until_cancelled(futures_util::future::join3(accept_all, answer_probes, follow_keys)).await;
        connections.close();
        if tokio::time::timeout(FAREWELL, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "still answering {FAREWELL:?} after the stop");
            drop_all.cancel();
        }
        Ok(())
    }
}

/// One connection, until its end or, after `stop`, until its last answer.
async fn serve(
    stream: Stream,
    place: Option<Arc<Place>>,
    router: Router,
    timeout: Duration,
    stop: CancellationToken,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(timeout).max_buf_size(MAX_HEAD_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES)
        .keep_alive_interval(timeout)
        .keep_alive_timeout(timeout);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request| {
        request.extensions_mut().insert(place.clone());
        router.call(request)
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(Patient::new(stream, timeout)), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

#[cfg(test)]
mod tests;
