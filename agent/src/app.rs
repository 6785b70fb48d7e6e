//! The whole agent: builds every part, spawns it, waits, drains. The only file that knows every part.
//!
//! Invariants:
//! - [`App::build`] opens and binds everything and starts nothing: what can't work is found before it begins.
//! - Every task and thread is watched; the first that ends unasked ends the agent, by its name, with a failure.
//! - Shutdown, in order: no new work → what was taken is answered → queued scores finish → rows are in the spool →
//!   `stopping` is reported → the link is closed. One deadline for all; whoever is late is named.

mod dialer;
mod dispatcher;
mod drain;
pub(crate) mod local;
mod managed;
mod module;
mod supervisor;
mod tasks;

use std::path::PathBuf;

use cloud_sync::session::TlsError;
use tokio::sync::watch;

use crate::board::{Board, Root};
use crate::capture::Capture;
use crate::config::Config;
use crate::deploy::state::StateError;
use crate::http::{self, Readiness};
use crate::log::LogLevel;
use crate::metrics::{self, Metrics};
use crate::module::identity::Identity;
use crate::routes::{self, Routes};
use crate::scorer::Scorer;
use crate::service::Service;
use crate::spool::SpoolError;
use crate::trace::{self, Exporter};
use crate::vault::VaultError;
use drain::Running;
use managed::Managed;
use supervisor::{Supervised, Supervisor};

/// Why the agent could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory can't be made.
    #[error("making the data directory {path}: {source}; choose another with --data", path = .path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The models on disk can't be opened, or a bundle given with `--local` is wrong.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A bundle given with `--local` does not pass its proof.
    #[error("{bundle}: {source}", bundle = .bundle.display())]
    Local {
        /// The bundle.
        bundle: PathBuf,
        /// Why.
        source: crate::deploy::prove::ProofError,
    },
    /// A bundle given with `--local` whose name is no model's.
    #[error("{bundle}: {source}; rename it", bundle = .bundle.display())]
    LocalName {
        /// The bundle.
        bundle: PathBuf,
        /// Why.
        source: cloud_sync::name::NameError,
    },
    /// The spool can't be opened.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The deployments' state can't be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The link to the cloud can't be opened.
    #[error("the link to the cloud: {0}")]
    Dial(#[from] dialer::DialError),
    /// The record of commands can't be used.
    #[error("setting the damaged record of commands {path} aside: {source}", path = .path.display())]
    Commands {
        /// The record.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The session with edgeHub can't be opened.
    #[error("the link to edgeHub: {0}")]
    Tls(#[from] TlsError),
    /// The scoring API can't be opened.
    #[error(transparent)]
    Http(#[from] http::BindError),
    /// A route can't be opened.
    #[error("routes: {0}")]
    Route(#[from] routes::RouteError),
    /// The collector of traces can't be spoken to.
    #[error("traces: {0}")]
    Trace(String),
    /// The system has no threads or signals left.
    #[error("starting: {0}")]
    Start(#[from] std::io::Error),
    /// A part ended unasked.
    #[error("{0} ended unasked: {1}")]
    Ended(&'static str, String),
}

/// Everything open and bound, nothing started.
pub struct App {
    http: http::Server,
    routes: Routes,
    service: Service,
    spans: Option<Exporter>,
    managed: Option<Managed>,
    readiness: watch::Sender<Readiness>,
}

/// Runs the agent on `board` until it is told to stop. Blocking: makes the runtime of its own.
/// `identity` makes it a module of IoT Edge.
pub fn run(
    config: Config,
    board: Board,
    identity: Option<Identity>,
    log_level: LogLevel,
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The network needs little; scoring and the disk have threads of their own.
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let app = App::build(config, board, identity, log_level).await?;
        app.run().await
    });
    // What is late has been named, and is not waited for once more.
    runtime.shutdown_background();
    outcome
}

impl App {
    /// Opens and binds everything.
    pub async fn build(
        config: Config,
        board: Board,
        identity: Option<Identity>,
        log_level: LogLevel,
    ) -> Result<Self, Error> {
        let scorer = Scorer::default();
        for bundle in &config.local {
            local::serve(bundle, &config, &scorer)?;
        }
        let mut metrics = Metrics::default();
        let (tracer, spans) = trace::open(&config.trace, config.device.as_str()).map_err(Error::Trace)?;
        if let Some(spans) = &spans {
            metrics.add(spans.source());
        }
        let (service, managed) = if config.cloud.broker.is_some() || identity.is_some() {
            let (service, managed) =
                Managed::build(&config, board, identity, scorer, tracer, log_level, &mut metrics)?;
            (service, Some(managed))
        } else {
            let (capture, timeout) = (Capture::nowhere(), config.engine.timeout);
            (Service { scorer, capture, timeout, tracer }, None)
        };
        let routes = Routes::open(&config.routes, &config.device, service.clone())?;
        metrics.add(routes.source());
        metrics.add(metrics::machine::source(Root::new("/")));
        let (readiness, ready) = watch::channel(Readiness::starting());
        let http = http::Server::bind(&config.http, service.clone(), ready, metrics.into_source()).await?;
        Ok(Self { http, routes, service, spans, managed, readiness })
    }

    /// Starts everything, waits for the order to stop or for a part that ends unasked, and drains.
    pub async fn run(self) -> Result<(), Error> {
        let mut signals = Signals::new()?;
        let mut running = Running::default();
        let address = self.http.local_address();
        let supervised = Supervised {
            readiness: self.readiness.subscribe(),
            probe: self.http.probe(),
            scorer: self.service.scorer.clone(),
            address,
        };
        let intake = &mut running.intake;
        intake.tasks.spawn("http", self.http.run(intake.stop.clone()));
        intake.tasks.spawn("routes", self.routes.run(intake.stop.clone()));
        if let Some(spans) = self.spans {
            running.work.tasks.spawn_endless("traces", spans.run(running.work.stop.clone()));
        }
        let mut spool = None;
        match self.managed {
            Some(managed) => {
                spool = Some(managed.spool());
                managed.spawn(&self.service, self.readiness, &mut running)?;
            }
            None => drop(self.readiness.send_replace(Readiness::ready())),
        }
        tracing::info!(http = %address, "edgewise-agent is up");
        // For whoever starts the agent with port 0 and has to find it.
        println!("edgewise-agent: ready http=http://{address}");

        let supervisor = Supervisor::from_environment();
        let outcome = tokio::select! {
            () = signals.stop() => Ok(()),
            (name, why) = running.first_to_end() => Err(Error::Ended(name, why)),
            never = supervisor.watch(supervised) => match never {},
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "stopping");
        }
        supervisor.stopping().await;
        running.drain(self.service, spool).await;
        outcome
    }
}

/// SIGTERM and SIGINT: the orders to stop.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
