//! What an agent that is told what to run has more than one that only serves what lies beside it: models that come and
//! go, rows that are captured and leave, and the link to a registry. In a module of IoT Edge, edgeHub beside it.

use std::sync::{Arc, Mutex};

use cloud_sync::contract::{Collect, Receipt};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::dialer::{self, Dialer, Opened};
use super::dispatcher::{Dispatcher, Dropped};
use super::drain::Running;
use super::module::Module;
use super::tasks::run_thread;
use crate::board::{Board, Root};
use crate::capture::{self, Capture};
use crate::clock::RunClock;
use crate::commands::once::Once;
use crate::commands::{self, Commands};
use crate::config::Config;
use crate::deploy::driver::{self, Driver, Parts, Status};
use crate::fetch::Fetcher;
use crate::health::Reporter;
use crate::http::Readiness;
use crate::link::{Link, Registry, Uplink};
use crate::log::LogLevel;
use crate::metrics::Metrics;
use crate::module::identity::Identity;
use crate::module::keeper;
use crate::pressure::{self, Gauge, Pressure};
use crate::scorer::Scorer;
use crate::service::Service;
use crate::spool::{Spool, SpoolOptions};
use crate::trace::Tracer;
use crate::upload::{self, RECEIPTS, Uploader};
use crate::vault::Vault;

/// All of it, open and not started.
pub(super) struct Managed {
    link: Link,
    session: Option<Opened>,
    uplink: watch::Receiver<Uplink>,
    first: Uplink,
    trouble: watch::Sender<Option<String>>,
    boot_id: String,
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
    pressure: watch::Sender<Pressure>,
    dropped: Arc<Dropped>,
    module: Option<Module>,
}

impl Managed {
    /// Opens it.
    pub(super) fn build(
        config: &Config,
        board: Board,
        identity: Option<Identity>,
        scorer: Scorer,
        tracer: Tracer,
        log_level: LogLevel,
        metrics: &mut Metrics,
    ) -> Result<(Service, Self), Error> {
        let data = |source| Error::Data { path: config.data.clone(), source };
        std::fs::create_dir_all(&config.data).map_err(data)?;
        let boot_id = uuid::Uuid::new_v4().simple().to_string();
        let clock = RunClock::start(&boot_id);
        let link = Link::default();
        let configured = match config.cloud.broker {
            Some(_) => Uplink::Registry(Box::new(Registry {
                device: config.device.clone(),
                cloud: config.cloud.clone(),
            })),
            None => Uplink::None,
        };
        let (wanted, uplink) = watch::channel(configured.clone());

        let spool =
            Spool::open(&config.data.join("spool"), SpoolOptions { max_bytes: config.spool_max_bytes })?;
        let (ledger, ledger_in) = watch::channel(upload::on_the_wire(spool.ledger()));
        let spool = Arc::new(Mutex::new(spool));
        let (capture, writer, appended) = capture::open(spool.clone(), clock.clone(), config.capture);
        let service = Service { scorer: scorer.clone(), capture, timeout: config.engine.timeout, tracer };

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
        let (pressure, pressure_in) = watch::channel(Pressure::default());
        metrics.add(pressure::source(pressure_in.clone()));
        let reporter = Reporter::new(
            &boot_id,
            config.data.clone(),
            config.cloud.tls.certificate.clone(),
            board,
            status.clone(),
            ledger_in.clone(),
            pressure_in,
        );
        let module = match identity {
            Some(identity) => Some(Module::open(identity, config, &boot_id, log_level.clone(), wanted)?),
            None => None,
        };
        let uploader = Uploader {
            link: link.clone(),
            spool: spool.clone(),
            clock,
            interval: config.upload_interval,
            appended,
            connects: connects_in,
            flush: flush_in,
            receipts: receipts_in,
            ledger,
            uplink: uplink.clone(),
            hub: module.as_ref().map(Module::telemetry),
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

        let first = uplink.borrow().clone();
        let (session, trouble) = match dialer::open(&first, &link, &boot_id) {
            Ok(session) => (session, None),
            // What the twin says wrong must not keep the agent from starting, and hearing what is said next.
            Err(error) if first != configured => (None, Some(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let dropped: Arc<Dropped> = Arc::default();
        metrics.watch(link.clone(), status.clone(), commands.ledger.clone());
        metrics.add(dropped.clone().source());
        if let Some(module) = &module {
            metrics.add(module.source());
        }
        let parts = Self {
            link,
            session,
            uplink,
            first,
            trouble: watch::channel(trouble).0,
            boot_id,
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
            pressure,
            dropped,
            module,
        };
        Ok((service, parts))
    }

    /// The rows that wait to go up.
    pub(super) fn spool(&self) -> Arc<Mutex<Spool>> {
        self.spool.clone()
    }

    /// Starts it.
    pub(super) fn spawn(
        self,
        service: &Service,
        readiness: watch::Sender<Readiness>,
        running: &mut Running,
    ) -> std::io::Result<()> {
        if let Some(module) = self.module {
            let parts = keeper::Parts {
                orders: self.orders.0.clone(),
                status: self.status.clone(),
                reporter: self.reporter.clone(),
                ledger: self.commands.ledger.clone(),
                pressure: self.pressure.subscribe(),
                link: self.link.clone(),
                connects: self.connects.subscribe(),
                trouble: self.trouble.subscribe(),
            };
            module.spawn(service, self.commands.clone(), parts, running);
        }
        let Running { intake, work, link } = running;
        let stop = || work.stop.clone();
        let capture = service.capture.clone();
        let status = follow_status(self.status, readiness, capture, self.collect, stop());
        work.tasks.spawn("status", status);
        let gauge = Gauge::new(Root::new("/"));
        let look = pressure::run(gauge, pressure::PERIOD, service.capture.clone(), self.pressure, stop());
        work.tasks.spawn_endless("pressure", look);
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
            link: self.link.clone(),
            orders,
            fetcher: self.fetcher,
            receipts: self.receipts,
            connects: self.connects,
            commands: run,
            dropped: self.dropped,
        };
        let dialer = Dialer {
            link: self.link,
            wanted: self.uplink,
            dispatcher,
            boot_id: self.boot_id,
            trouble: self.trouble,
        };
        link.tasks.spawn_endless("registry", dialer.run(self.first, self.session, link.stop.clone()));
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
