//! The whole agent: builds every part, spawns it, waits, drains. The only file that knows every part.
//!
//! Invariants:
//! - [`App::build`] opens and binds everything and starts nothing: what can't work is found before it begins.
//! - Every task and thread is watched; the first that ends unasked ends the agent, by its name, with a failure.
//! - Shutdown, in order: no new work → what was taken is answered → queued scores finish → rows are in the spool →
//!   `stopping` is reported → the link is closed. One deadline for all; whoever is late is named.

mod dispatcher;
mod drain;
mod local;
mod tasks;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cloud_sync::contract::{Collect, Ledger, Receipt};
use cloud_sync::session::{self, BrokerUrl, Event, Identity, Options, TlsError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::capture::{self, Capture};
use crate::commands::once::Once;
use crate::commands::{self, Commands};
use crate::config::Config;
use crate::deploy::driver::{self, Driver, Parts, Status};
use crate::deploy::state::StateError;
use crate::fetch::Fetcher;
use crate::health::{self, Reporter};
use crate::http::{self, Readiness};
use crate::link::{Address, Link};
use crate::log::LogLevel;
use crate::metrics::Metrics;
use crate::routes::{self, Routes};
use crate::scorer::Scorer;
use crate::service::Service;
use crate::spool::{Spool, SpoolError, SpoolOptions};
use crate::upload::{RECEIPTS, Uploader};
use crate::vault::{Vault, VaultError};
use dispatcher::{Dispatcher, Dropped};
use drain::Running;

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
    /// The certificates for the cloud can't be used.
    #[error("the link to the cloud: {0}")]
    Tls(#[from] TlsError),
    /// The record of commands can't be used.
    #[error("setting the damaged record of commands {path} aside: {source}", path = .path.display())]
    Commands {
        /// The record.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The link's own messages can't be made.
    #[error(transparent)]
    Contract(#[from] cloud_sync::contract::ContractError),
    /// The scoring API can't be opened.
    #[error(transparent)]
    Http(#[from] http::BindError),
    /// A route can't be opened.
    #[error("routes: {0}")]
    Route(#[from] routes::RouteError),
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
    cloud: Option<CloudParts>,
    readiness: watch::Sender<Readiness>,
}

/// What an agent with a cloud has more.
struct CloudParts {
    session: session::Driver,
    events: mpsc::Receiver<Event>,
    link: Link,
    driver: Driver,
    status: watch::Receiver<Status>,
    orders: (mpsc::Sender<driver::Order>, mpsc::Receiver<driver::Order>),
    fetcher: Fetcher,
    spool: Arc<Mutex<Spool>>,
    writer: capture::Writer,
    uploader: Uploader,
    receipts: mpsc::Sender<Receipt>,
    connects: watch::Sender<u64>,
    reporter: Reporter,
    commands: Commands,
    once: Once,
    collect: watch::Sender<Collect>,
    dropped: Arc<Dropped>,
}

/// Runs the agent until it is told to stop. Blocking: makes the runtime of its own.
pub fn run(config: Config, log_level: LogLevel) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The network needs little; scoring and the disk have threads of their own.
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let app = App::build(config, log_level).await?;
        app.run().await
    })
}

impl App {
    /// Opens and binds everything.
    pub async fn build(config: Config, log_level: LogLevel) -> Result<Self, Error> {
        let scorer = Scorer::default();
        for bundle in &config.local {
            local::serve(bundle, &config, &scorer)?;
        }
        let boot_id = uuid::Uuid::new_v4().simple().to_string();
        let mut metrics = Metrics::default();
        let (service, cloud) = match &config.cloud.broker {
            Some(broker) => {
                let (service, cloud) = CloudParts::build(broker, &config, scorer, boot_id, log_level)?;
                metrics.watch(cloud.link.clone(), cloud.status.clone(), cloud.commands.ledger.clone());
                metrics.add(cloud.dropped.clone().source());
                (service, Some(cloud))
            }
            None => (Service { scorer, capture: Capture::nowhere(), timeout: config.engine.timeout }, None),
        };
        let routes = Routes::open(&config.routes, &config.device, service.clone())?;
        metrics.add(routes.source());
        let (readiness, ready) = watch::channel(Readiness::starting());
        let http = http::Server::bind(&config.http, service.clone(), ready, metrics.into_source()).await?;
        Ok(Self { http, routes, service, cloud, readiness })
    }

    /// Starts everything, waits for the order to stop or for a part that ends unasked, and drains.
    pub async fn run(self) -> Result<(), Error> {
        let mut signals = Signals::new()?;
        let mut running = Running::default();
        let address = self.http.local_address();
        let intake = &mut running.intake;
        intake.tasks.spawn("http", self.http.run(intake.stop.clone()));
        intake.tasks.spawn("routes", self.routes.run(intake.stop.clone()));
        let mut spool = None;
        match self.cloud {
            Some(cloud) => {
                spool = Some(cloud.spool.clone());
                cloud.spawn(&self.service, self.readiness, &mut running)?;
            }
            None => drop(self.readiness.send_replace(Readiness::ready())),
        }
        tracing::info!(http = %address, "edgewise-agent is up");
        // For whoever starts the agent with port 0 and has to find it.
        println!("edgewise-agent: ready http=http://{address}");

        let outcome = tokio::select! {
            () = signals.stop() => Ok(()),
            (name, why) = running.first_to_end() => Err(Error::Ended(name, why)),
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "stopping");
        }
        running.drain(self.service, spool).await;
        outcome
    }
}

impl CloudParts {
    /// Opens what an agent with a cloud has more.
    fn build(
        broker: &BrokerUrl,
        config: &Config,
        scorer: Scorer,
        boot_id: String,
        log_level: LogLevel,
    ) -> Result<(Service, Self), Error> {
        let data = |source| Error::Data { path: config.data.clone(), source };
        std::fs::create_dir_all(&config.data).map_err(data)?;
        let address = Address { root: config.cloud.root.clone(), device: config.device.clone() };
        let mut options = Options {
            identity: Identity::Fixed(config.cloud.credentials.clone()),
            tls: config.cloud.tls.clone(),
            keep_alive: config.cloud.keep_alive,
            ..Options::new(broker.clone(), format!("edgewise-{}", config.device))
        };
        address.prepare(&mut options, &health::presence(&boot_id, false))?;
        let (sender, events, session) = session::open(options)?;
        let link = Link::new(address, sender);

        let spool =
            Spool::open(&config.data.join("spool"), SpoolOptions { max_bytes: config.spool_max_bytes })?;
        let spool = Arc::new(Mutex::new(spool));
        let (capture, writer, appended) = capture::open(spool.clone(), boot_id.clone());
        let service = Service { scorer: scorer.clone(), capture, timeout: config.engine.timeout };

        let vault = Arc::new(Vault::open(&config.data.join("vault"), config.vault_max_bytes)?);
        let fetcher = Fetcher::new(link.clone(), vault.clone());
        let (driver, status) = Driver::open(Parts {
            vault,
            fetcher: fetcher.clone(),
            scorer,
            settings: config.settings(),
            onnxruntime: config.engine.onnxruntime.clone(),
            state: config.data.join("deployments"),
        })?;
        let orders = mpsc::channel(driver::ORDERS);
        let (receipts, receipts_in) = mpsc::channel(RECEIPTS);
        let (connects, connects_in) = watch::channel(0);
        let (flush, flush_in) = watch::channel(0);
        let (collect, collect_in) = watch::channel(config.collect);
        let (ledger, ledger_in) = watch::channel(Ledger::default());
        let reporter = Reporter::new(&boot_id, config.data.clone(), status.clone(), ledger_in.clone());
        let uploader = Uploader {
            link: link.clone(),
            spool: spool.clone(),
            interval: config.upload_interval,
            appended,
            connects: connects_in,
            flush: flush_in,
            receipts: receipts_in,
            ledger,
        };
        let commands = Commands {
            service: service.clone(),
            orders: orders.0.clone(),
            reporter: reporter.clone(),
            collect: collect_in,
            ledger: ledger_in,
            flush,
            log_level,
        };
        let record = config.data.join("commands");
        let once = Once::open(record.clone()).map_err(|source| Error::Commands { path: record, source })?;
        let parts = Self {
            session,
            events,
            link,
            driver,
            status,
            orders,
            fetcher,
            spool,
            writer,
            uploader,
            receipts,
            connects,
            reporter,
            commands,
            once,
            collect,
            dropped: Arc::default(),
        };
        Ok((service, parts))
    }

    /// Starts what an agent with a cloud has more.
    fn spawn(
        self,
        service: &Service,
        readiness: watch::Sender<Readiness>,
        running: &mut Running,
    ) -> std::io::Result<()> {
        let Running { intake, work, link } = running;
        let stop = || work.stop.clone();
        let capture = service.capture.clone();
        let status = follow_status(self.status, readiness, capture, self.collect, stop());
        work.tasks.spawn("status", status);
        work.tasks.spawn("capture", run_thread("capture", stop(), move || self.writer.run())?);
        let (orders, orders_in) = self.orders;
        let driver = self.driver.run(orders_in, stop());
        work.tasks.spawn_endless("deploy", driver);
        work.tasks.spawn_endless("upload", self.uploader.run(stop()));
        let reporter = self.reporter.run(self.link.clone(), self.connects.subscribe(), stop());
        work.tasks.spawn_endless("report", reporter);
        let (run, waiting) = mpsc::channel(commands::serve::WAITING);
        let serve =
            commands::serve::serve(self.commands, self.once, self.link.clone(), waiting, intake.stop.clone());
        intake.tasks.spawn("commands", serve);
        let dispatcher = Dispatcher {
            link: self.link,
            events: self.events,
            orders,
            fetcher: self.fetcher,
            receipts: self.receipts,
            connects: self.connects,
            commands: run,
            dropped: self.dropped,
        };
        link.tasks.spawn_endless("dispatcher", dispatcher.run(link.stop.clone()));
        link.tasks.spawn_endless("session", self.session.run(link.stop.clone()));
        Ok(())
    }
}

/// Lets the rest of the agent know what the deployments have come to.
async fn follow_status(
    mut status: watch::Receiver<Status>,
    readiness: watch::Sender<Readiness>,
    capture: Capture,
    collect: watch::Sender<Collect>,
    stop: CancellationToken,
) -> Result<(), String> {
    let default = *collect.borrow();
    loop {
        let now = status.borrow_and_update().clone();
        readiness.send_replace(if now.restored { Readiness::ready() } else { Readiness::starting() });
        let wanted = now.collect.unwrap_or(default);
        capture.set_collect(wanted);
        collect.send_replace(wanted);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = status.changed() => changed.map_err(|error| error.to_string())?,
        }
    }
}

/// Starts a thread. The task ends with the thread, also in a panic, or at `stop`.
fn run_thread(
    name: &'static str,
    stop: CancellationToken,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<impl Future<Output = Result<(), String>> + Send> {
    let (alive, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let _alive = alive;
        work();
    })?;
    Ok(async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            _ = ended => Err("its thread ended".to_owned()),
        }
    })
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
