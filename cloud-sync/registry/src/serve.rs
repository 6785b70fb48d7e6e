//! `edgewise serve`: builds every part, runs them together, and ends them in order. The only file that knows them all.
//!
//! The first task to end unasked ends the process, by name. When asked to stop: no new requests and messages, what is
//! held is finished and answered, then the connection and the database are closed.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::digest::Digest;
use cloud_sync::session::{self, BrokerUrl, Credentials, TlsError, TlsFiles};
use cloud_sync::topic::Root;
use engine::LoadOptions;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, AuthorityError};
use crate::broker::{self, BrokerError};
use crate::commands::Commands;
use crate::deployments::Deployments;
use crate::http::{self, Api};
use crate::link::Link;
use crate::objects::{ObjectError, Objects};
use crate::registry::Registry;
use crate::sharing::{self, Sharing};
use crate::sink::Sink;
use crate::store::{Store, StoreError};
use crate::worker::{self, Parts};

/// Longest time from the wish to stop until requests and messages that were under way are finished.
const DRAIN: Duration = Duration::from_secs(6);

/// Interval of pings to the broker.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Largest token or password file.
const MAX_SECRET_BYTES: u64 = 4096;

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything lies that has no place of its own.
    pub data: PathBuf,
    /// Where the HTTP API listens; port 0 takes a free one.
    pub http: SocketAddr,
    /// Which broker to use.
    pub broker: Broker,
    /// `sqlite:PATH` or `postgres://…`; in `data` where none is given.
    pub database: Option<String>,
    /// `file:///DIR` or `s3://BUCKET/PREFIX`; in `data` where none is given.
    pub storage: Option<String>,
    /// Where the authority lies that signs certificates; in `data` where none is given.
    pub authority: Option<PathBuf>,
    /// A file whose first line is the token that callers must show.
    pub token_file: Option<PathBuf>,
    /// Where the devices have their topics.
    pub root: Root,
    /// ONNX Runtime's library, where it is not found by itself.
    pub onnxruntime: Option<PathBuf>,
}

/// Which broker to use.
#[derive(Debug, Clone)]
pub enum Broker {
    /// One of our own, listening here; port 0 takes a free one.
    Embedded(SocketAddr),
    /// One that is there.
    External {
        /// Where.
        url: BrokerUrl,
        /// How it knows us.
        credentials: Option<Credentials>,
        /// How we know it.
        tls: TlsFiles,
    },
}

/// Where the parts listen.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The HTTP API.
    pub http: SocketAddr,
    /// The broker.
    pub mqtt: BrokerUrl,
}

/// Why serving did not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The options can't be served; nothing was begun.
    #[error("{0}")]
    Usage(String),
    /// A file or directory can't be used.
    #[error("{doing} {path}: {source}", path = .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The HTTP port is taken, or not ours to take.
    #[error("--http {address}: {source}; choose another port")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The embedded broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// A part ended that should not.
    #[error("{0} ended unasked; see the log")]
    Ended(String),
}

/// Serves until `stop`. `ready` is called once everything listens.
pub async fn serve(
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(&Ready),
) -> Result<(), ServeError> {
    let token = token(&options)?;
    let (data, _held) = prepare(&options.data)?;
    let database =
        options.database.clone().unwrap_or_else(|| format!("sqlite:{}", escaped(&data.join("edgewise.db"))));
    let storage =
        options.storage.clone().unwrap_or_else(|| format!("file://{}", data.join("objects").display()));
    let objects = Objects::open(&storage).await?;
    let _alone = hold(&database)?;
    let store = Store::open(&database).await?;
    objects.claim(&store.id().await?).await?;
    let listener = TcpListener::bind(options.http).await;
    let listener = listener.map_err(|source| ServeError::Bind { address: options.http, source })?;
    let http = listener.local_addr().map_err(|source| ServeError::Bind { address: options.http, source })?;

    let authority = Authority::new(options.authority.clone().unwrap_or_else(|| data.join("authority")));
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let (url, credentials, tls) = match options.broker.clone() {
        Broker::External { url, credentials, tls } => {
            let tls = if url.tls && credentials.is_none() && tls.certificate.is_none() {
                enrolled(&authority, &data, tls).await?
            } else {
                tls
            };
            (url, credentials, tls)
        }
        Broker::Embedded(listen) => {
            let embedded = broker::start(listen).await?;
            let stopped = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    _ = embedded.ended => {}
                    () = stopped.cancelled() => {}
                }
                "the embedded broker"
            });
            let address = embedded.address;
            (
                BrokerUrl { host: address.ip().to_string(), port: address.port(), tls: false },
                None,
                TlsFiles::default(),
            )
        }
    };
    let client_id = format!("edgewise-{}", uuid::Uuid::new_v4().simple());
    let mut subscriptions = options.root.of_registry(&store.group().await?);
    subscriptions.extend(sharing::probes(&options.root, &client_id));
    let (sender, events, driver) = session::open(session::Options {
        identity: session::Identity::Fixed(credentials),
        tls,
        keep_alive: KEEP_ALIVE,
        subscriptions,
        ..session::Options::new(url.clone(), client_id.clone())
    })?;

    let sharing = Sharing::new(sender.clone(), options.root.clone(), &client_id);
    let link = Link::new(sender, options.root.clone());
    let sink = Arc::new(Sink::new(store.clone(), objects.clone(), options.root.site().to_owned()));
    let engines = LoadOptions { onnxruntime: options.onnxruntime.clone(), ..LoadOptions::default() };
    let incoming = data.join("incoming");
    let registry = Arc::new(Registry::new(store.clone(), objects.clone(), incoming.clone(), engines));
    let parts = Parts {
        link: link.clone(),
        store: store.clone(),
        objects,
        sink: sink.clone(),
        deployments: Arc::new(Deployments::new(store.clone(), link.clone())),
        commands: Arc::new(Commands::new(store.clone(), link)),
        counters: Arc::default(),
    };

    // The connection outlives those who speak through it.
    let disconnect = CancellationToken::new();
    let connection = tokio::spawn(driver.run(disconnect.clone()));
    spawn(&mut tasks, "the sweep of unused chunks", {
        let (registry, stop) = (registry.clone(), stop.clone());
        async move { registry.sweep_garbage(stop).await }
    });
    spawn(&mut tasks, "the sweep of abandoned rows", {
        let stop = stop.clone();
        async move { sink.sweep_abandoned(stop).await }
    });
    spawn(&mut tasks, "the publisher of desired states", {
        let (deployments, stop) = (parts.deployments.clone(), stop.clone());
        async move { deployments.run(stop).await }
    });
    spawn(&mut tasks, "the worker", worker::run(parts.clone(), events, sharing, stop.clone()));
    let router =
        http::router(Api { registry, parts, authority, broker: url.clone(), token, temporary: incoming });
    let graceful = stop.clone();
    spawn(&mut tasks, "the HTTP server", async move {
        http::server::run(listener, router, graceful).await;
    });
    ready(&Ready { http, mqtt: url });

    let unasked = tokio::select! {
        // When asked, a task may end before it is seen here that it was asked.
        biased;
        () = stop.cancelled() => None,
        ended = tasks.join_next() => Some(name_of(ended)),
    };
    stop.cancel();
    if tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(late = tasks.len(), "tasks were not finished in {DRAIN:?} and are cut off");
        tasks.abort_all();
    }
    disconnect.cancel();
    if connection.await.is_err() {
        tracing::warn!("the connection to the broker was not closed in order");
    }
    if tokio::time::timeout(Duration::from_secs(1), store.close()).await.is_err() {
        tracing::warn!("the database was not closed in time");
    }
    match unasked {
        Some(name) => Err(ServeError::Ended(name)),
        None => Ok(()),
    }
}

/// Serves until SIGTERM or SIGINT, and says on standard output when it is ready.
pub async fn serve_until_signal(options: Options) -> Result<(), ServeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| {
        signal(kind).map_err(|source| ServeError::File {
            doing: "listening for",
            path: "signals".into(),
            source,
        })
    };
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        asked.cancel();
    });
    serve(options, stop, |ready| {
        let mut output = std::io::stdout().lock();
        // Whoever does not read our output does not need to know.
        let _ = writeln!(output, "edgewise serve: ready http=http://{} mqtt={}", ready.http, ready.mqtt);
        let _ = output.flush();
    })
    .await
}

/// Our own authority vouches for us, and for the broker where nobody else is named.
async fn enrolled(authority: &Authority, data: &Path, given: TlsFiles) -> Result<TlsFiles, ServeError> {
    let (authority, directory) = (authority.clone(), data.join("broker"));
    let identify = tokio::task::spawn_blocking(move || authority.identify(&directory)).await;
    let own = identify.map_err(|error| ServeError::Ended(format!("the authority ({error})")))??;
    Ok(TlsFiles { authorities: given.authorities.or(own.authorities), ..own })
}

fn spawn(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

fn name_of(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> String {
    match ended {
        Some(Ok(name)) => name.to_owned(),
        Some(Err(error)) => format!("a task ({error})"),
        None => "everything".to_owned(),
    }
}

/// The token's digest. An address that others can reach needs one.
fn token(options: &Options) -> Result<Option<Digest>, ServeError> {
    let Some(path) = &options.token_file else {
        if options.http.ip().is_loopback() {
            return Ok(None);
        }
        return Err(ServeError::Usage(format!(
            "--http {}: others can reach that address; give --token-file FILE with a secret in its first line, \
             or listen on 127.0.0.1",
            options.http
        )));
    };
    let token = secret(path)?;
    if token.len() < 16 {
        return Err(ServeError::Usage(format!(
            "--token-file {}: the token has {} characters; use at least 16, for example from `openssl rand -hex 32`",
            path.display(),
            token.len()
        )));
    }
    Ok(Some(Digest::of(token.as_bytes())))
}

/// The first line of a file that holds a secret.
pub fn secret(path: &Path) -> Result<String, ServeError> {
    use std::io::Read;
    let failed = |source| ServeError::File { doing: "reading", path: path.to_owned(), source };
    let mut text = String::new();
    let file = path.metadata().and_then(|metadata| match metadata.is_file() {
        true => File::open(path),
        // To open a pipe waits for somebody who may never come.
        false => Err(std::io::Error::other("it is not a file")),
    });
    file.and_then(|file| file.take(MAX_SECRET_BYTES).read_to_string(&mut text)).map_err(failed)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Holds a database that is a file: two registries on it would each delete chunks that the other is registering.
fn hold(database: &str) -> Result<Option<File>, ServeError> {
    let Some(path) = database.strip_prefix("sqlite:") else { return Ok(None) };
    let path = path.trim_start_matches("//").split('?').next().unwrap_or_default();
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let lock = PathBuf::from(format!("{path}.lock"));
    let failed = |source| ServeError::File { doing: "making", path: lock.clone(), source };
    let held = File::create(&lock).map_err(failed)?;
    held.try_lock().map_err(|_| {
        ServeError::Usage(format!(
            "--database {database}: another edgewise serve works on it; several need a postgres:// database"
        ))
    })?;
    Ok(Some(held))
}

/// Makes the data directory, empties what is temporary in it, and holds it: two registries on one would each
/// delete what the other is writing.
fn prepare(data: &Path) -> Result<(PathBuf, File), ServeError> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::File { doing, path, source }
    };
    std::fs::create_dir_all(data).map_err(failed("making", data))?;
    let lock = data.join("lock");
    let held = File::create(&lock).map_err(failed("making", &lock))?;
    held.try_lock().map_err(|_| {
        ServeError::Usage(format!(
            "another edgewise serve works in {}; choose another --data",
            data.display()
        ))
    })?;
    let incoming = data.join("incoming");
    match std::fs::remove_dir_all(&incoming) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("emptying", &incoming)(error));
        }
        _ => {}
    }
    std::fs::create_dir_all(&incoming).map_err(failed("making", &incoming))?;
    Ok((data.canonicalize().map_err(failed("opening", data))?, held))
}

/// A path in a database URL.
fn escaped(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('%', "%25").replace('?', "%3F").replace('#', "%23").replace(' ', "%20")
}

#[cfg(test)]
mod tests;
