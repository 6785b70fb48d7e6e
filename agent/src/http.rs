//! The HTTP server: who may come in, how many at once, for how long, and what is answered where.
//!
//! - `inference` the Open Inference Protocol; `azure` `/score` as Azure ML serves it, with its `swagger`;
//! - `metrics` what is counted; `intake` the bodies; `failure` the errors; `probe` whether it still answers;
//! - `places` who may be connected; `patient` who is given up.
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
mod inference;
mod intake;
mod metrics;
mod patient;
mod places;
mod probe;
mod swagger;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cloud_sync::name::ModelName;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::failure::Failure;
use self::intake::Intake;
use self::metrics::HttpCounters;
use self::patient::Patient;
use self::places::{Place, Places};
pub use self::probe::Probe;
use crate::config;
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

/// Longest time that a request's head, and then its body, may take to arrive, that a peer may take nothing of its answer, and
/// that a connection may idle.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the server listens, and its bounds.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
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

/// An address that can't be had.
#[derive(Debug, thiserror::Error)]
#[error("listening for HTTP on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
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
        let wrong = |source| BindError { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(wrong)?;
        let address = listener.local_addr().map_err(wrong)?;
        let places = Places::new(options.max_connections);
        let router = router(&options, places.clone(), service, readiness, metrics);
        Ok(Self { listener, address, router, places, options, probe: Probe::new() })
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
        let Self { listener, router, places, options, probe: (_probe, mut probes), .. } = self;
        let connections = TaskTracker::new();
        let drop_all = CancellationToken::new();
        let mut arrived: Option<TcpStream> = None;
        loop {
            tokio::select! {
                accepted = listener.accept(), if arrived.is_none() => match accepted {
                    Ok((stream, _)) => arrived = Some(stream),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        places.make_way();
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                place = places.take(), if arrived.is_some() => {
                    let Some(stream) = arrived.take() else { continue };
                    // Without it an answer in two writes waits for the client's delayed acknowledgement.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY is refused");
                    }
                    let place = Arc::new(place);
                    let serve =
                        serve(stream, Some(place.clone()), router.clone(), options.read_timeout, stop.clone());
                    let drop_all = drop_all.clone();
                    connections.spawn(async move { drop_all.run_until_cancelled(place.hold(serve)).await });
                }
                Some(stream) = probes.recv() => {
                    connections.spawn(serve(stream, None, router.clone(), options.read_timeout, stop.clone()));
                }
                () = stop.cancelled() => break,
            }
        }
        drop(listener);
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
    stream: impl AsyncRead + AsyncWrite + Unpin,
    place: Option<Arc<Place>>,
    router: Router,
    timeout: Duration,
    stop: CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(timeout).max_buf_size(MAX_HEAD_BYTES);
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

/// What every handler shares.
struct Shared {
    service: Service,
    readiness: watch::Receiver<Readiness>,
    /// The agent's own metrics, beside those of models and server.
    metrics: Source,
    intake: Intake,
    places: Places,
    counters: HttpCounters,
    score_model: Option<ModelName>,
    cors_origins: Vec<String>,
}

type Api = Arc<Shared>;

fn router(
    options: &Options,
    places: Places,
    service: Service,
    readiness: watch::Receiver<Readiness>,
    metrics: Source,
) -> Router {
    let shared = Arc::new(Shared {
        service,
        readiness,
        metrics,
        intake: Intake::new(options.max_body_bytes, options.max_held_bytes, options.read_timeout),
        places,
        counters: HttpCounters::default(),
        score_model: options.score_model.clone(),
        cors_origins: options.cors_origins.clone(),
    });
    Router::new()
        .merge(inference::routes())
        .merge(azure::routes(shared.clone()))
        .route("/metrics", get(metrics::show))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(shared.clone(), count))
        .with_state(shared)
}

async fn count(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let place = request.extensions_mut().remove::<Option<Arc<Place>>>().flatten();
    if let Some(place) = &place {
        request = place.watch(request);
    }
    let uri = request.uri().clone();
    let response = next.run(request).await;
    let response = api.intake.charge(response).unwrap_or_else(|failure| answer_for(&uri, &failure));
    if let Some(place) = place {
        place.answered();
    }
    api.counters.answered(response.status());
    response
}

async fn unknown_path(uri: Uri) -> Response {
    let line = format!("there is nothing at {}", uri.path());
    answer_for(&uri, &Failure::not_found(line))
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    answer_for(&uri, &Failure::method(&method, uri.path()))
}

/// An error in the form that callers of this path know.
fn answer_for(uri: &Uri, failure: &Failure) -> Response {
    if uri.path().starts_with("/v2") { failure.as_error() } else { failure.as_message() }
}

fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests;
