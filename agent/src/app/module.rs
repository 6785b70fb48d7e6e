//! What an agent that is a module of IoT Edge has more: edgeHub beside it, as one more way in and out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::name::ModelName;
use cloud_sync::session::{self, Event, Identity as Login, Options, PendingLogin, Sender};
use tokio::sync::{Semaphore, mpsc, watch};

use super::Error;
use super::drain::Running;
use crate::commands::Commands;
use crate::config::Config;
use crate::exposition::{Exposition, Kind};
use crate::link::Uplink;
use crate::log::{LogLevel, Seldom};
use crate::metrics::Source;
use crate::module::identity::Identity;
use crate::module::intake::{self, Intake};
use crate::module::keeper::{self, Keeper};
use crate::module::methods;
use crate::module::outbox::{self, Carrier, Outbox};
use crate::module::reception::{self, Reception};
use crate::module::topic::Topics;
use crate::module::twin::Counts;
use crate::service::Service;
use crate::upload::edge_hub::EdgeHub;

/// edgeHub closes a connection that is silent for ten minutes, whatever was agreed, and looks at 1.5 intervals.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(300);

/// All of it, open and not started.
pub(super) struct Module {
    topics: Topics,
    sender: Sender,
    events: mpsc::Receiver<Event>,
    session: session::Driver,
    outbox: Outbox,
    carrier: Carrier,
    keeper: Keeper,
    default_model: Option<ModelName>,
    intake: Arc<intake::Counters>,
    reception: Arc<reception::Counters>,
}

impl Module {
    /// Opens it; `uplink` is told which registry the twin names.
    pub(super) fn open(
        identity: Identity,
        config: &Config,
        boot_id: &str,
        log_level: LogLevel,
        uplink: watch::Sender<Uplink>,
    ) -> Result<Self, Error> {
        let topics = identity.topics();
        let (broker, client_id) = (identity.broker(), identity.client_id());
        let identity = Arc::new(identity);
        let login = move || -> PendingLogin {
            let identity = identity.clone();
            Box::pin(async move { identity.login().await.map_err(|error| error.to_string()) })
        };
        let (sender, events, session) = session::open(Options {
            identity: Login::Issued(Arc::new(login)),
            persistent: true,
            keep_alive: config.cloud.keep_alive.min(LONGEST_KEEP_ALIVE),
            subscriptions: topics.subscriptions(),
            ..Options::new(broker, client_id)
        })?;
        let (outbox, carrier) = outbox::open(sender.clone());
        let keeper = Keeper::open(config, boot_id, sender.clone(), log_level, uplink);
        let default_model = config.http.score_model.clone();
        let (intake, reception) = (Arc::default(), Arc::default());
        Ok(Self {
            topics,
            sender,
            events,
            session,
            outbox,
            carrier,
            keeper,
            default_model,
            intake,
            reception,
        })
    }

    /// Where rows go out while there is no registry.
    pub(super) fn telemetry(&self) -> EdgeHub {
        EdgeHub { outbox: self.outbox.clone(), topics: self.topics.clone() }
    }

    /// What writes its metrics.
    pub(super) fn source(&self) -> Source {
        let (sender, outbox, twin) = (self.sender.clone(), self.outbox.clone(), self.keeper.counts());
        let (intake, reception) = (self.intake.clone(), self.reception.clone());
        Arc::new(move |exposition: &mut Exposition| {
            of_session(exposition, &sender);
            let twin: Counts = *twin.borrow();
            let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let delivered = outbox.counters();
            for (name, help, value) in [
                ("edgewise_module_inputs_total", "Messages for inputs.", get(&intake.received)),
                (
                    "edgewise_module_inputs_passed_over_total",
                    "Messages that come again, because the link was lost or their queue was full.",
                    get(&intake.passed_over) + get(&reception.inputs_put_off),
                ),
                ("edgewise_module_answered_total", "Predictions given.", get(&intake.answered)),
                (
                    "edgewise_module_failed_total",
                    "Errors given in place of a prediction.",
                    get(&intake.failed),
                ),
                ("edgewise_module_delivered_total", "Messages that edgeHub has.", get(&delivered.delivered)),
                ("edgewise_module_resent_total", "Messages that were sent again.", get(&delivered.resent)),
                ("edgewise_module_refused_total", "Messages that can't be sent.", get(&delivered.refused)),
                (
                    "edgewise_module_methods_refused_total",
                    "Methods refused because too many were waiting.",
                    get(&reception.calls_refused),
                ),
                (
                    "edgewise_module_foreign_total",
                    "Messages on topics that mean nothing here.",
                    get(&reception.foreign),
                ),
                ("edgewise_twin_failed_reads_total", "Reads of the twin that failed.", twin.failed_reads),
                (
                    "edgewise_twin_refused_changes_total",
                    "Changes of the twin that can't be believed.",
                    twin.refused_changes,
                ),
                (
                    "edgewise_twin_unasked_answers_total",
                    "Answers that nobody waits for.",
                    twin.unasked_answers,
                ),
                (
                    "edgewise_twin_refused_reports_total",
                    "Reports that edgeHub refused for what they say.",
                    twin.refused_reports,
                ),
                ("edgewise_twin_failed_reports_total", "Reports that failed otherwise.", twin.failed_reports),
            ] {
                exposition.family(name, Kind::Counter, help).sample(&[], value);
            }
        })
    }

    /// Starts it.
    pub(super) fn spawn(
        self,
        service: &Service,
        commands: Commands,
        parts: keeper::Parts,
        running: &mut Running,
    ) {
        let Running { intake, work, link } = running;
        let (twin, news) = mpsc::channel(keeper::NEWS);
        let (arrivals, arrivals_in) = mpsc::channel(intake::WAITING);
        let (calls, calls_in) = mpsc::channel(methods::PLACES);
        let inputs = Intake {
            service: service.clone(),
            default_model: self.default_model,
            routes: self.keeper.routes(),
            status: parts.status.clone(),
            outbox: self.outbox,
            topics: self.topics.clone(),
            counters: self.intake,
            told: Seldom::default(),
        };
        intake.tasks.spawn_endless("inputs", inputs.run(arrivals_in, intake.stop.clone()));
        let serve = methods::serve(commands, self.sender.clone(), calls_in, intake.stop.clone());
        intake.tasks.spawn("methods", serve);
        work.tasks.spawn_endless("outbox", self.carrier.run(work.stop.clone()));
        work.tasks.spawn_endless("twin", self.keeper.run(parts, news, work.stop.clone()));
        let reception = Reception {
            topics: self.topics,
            sender: self.sender,
            twin,
            arrivals,
            calls,
            places: Arc::new(Semaphore::new(methods::PLACES)),
            counters: self.reception,
            told: Seldom::default(),
        };
        link.tasks.spawn_endless("reception", reception.run(self.events, link.stop.clone()));
        link.tasks.spawn_endless("edgeHub", self.session.run(link.stop.clone()));
    }
}

fn of_session(exposition: &mut Exposition, sender: &Sender) {
    let up = u64::from(sender.is_online());
    exposition.family("edgewise_edgehub_up", Kind::Gauge, "Whether edgeHub is connected.").sample(&[], up);
    let connects = sender.counters().connects.load(Ordering::Relaxed);
    let help = "Connections made to edgeHub.";
    exposition.family("edgewise_edgehub_connects_total", Kind::Counter, help).sample(&[], connects);
}
