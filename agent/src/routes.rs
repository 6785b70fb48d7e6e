//! Local MQTT routes: what is published on one topic is scored, and the answer published on another.
//!
//! A message is what the route's [`Format`](crate::body::Format) takes, and so is the answer. What can't be scored is
//! answered on `OUTPUT/error` as `{"error": …}`. The trace that a message belongs to stands in its body's field
//! `traceparent`.
//!
//! Invariants:
//! - Messages of a route are scored and answered in the order in which they came, one at a time.
//! - A message that finds its route's queue full is dropped and counted: a sensor's newest data must not wait behind
//!   what nobody will read any more.
//! - Nothing that a message says ends the flow.
//! - Routes that would feed each other in a circle are refused.
//! - On a stop, what is queued is still answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::limits::{MAX_MESSAGE_BYTES, bounded_text};
use cloud_sync::name::DeviceId;
use cloud_sync::session::{self, BrokerUrl, Event, Outgoing, TlsError};
use cloud_sync::topic::Qos;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Route;
use crate::exposition::{Exposition, Kind};
use crate::metrics::Source;
use crate::service::Service;
use crate::trace;

/// Messages of a route that may wait: a second of a fast sensor, and at most 16 MiB.
const QUEUE: usize = 64;

/// How often a local broker is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Why the routes can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The certificates for a broker can't be used.
    #[error("broker {broker}: {source}")]
    Tls {
        /// The broker.
        broker: BrokerUrl,
        /// Why.
        source: TlsError,
    },
    /// An answer would be scored again, and its answer too, for ever.
    #[error("the route from {input:?} to {output:?} feeds itself, directly or by way of others")]
    Circle {
        /// What it listens to.
        input: String,
        /// Where it answers.
        output: String,
    },
}

/// All routes, connected to their brokers once [`Routes::run`] runs.
pub struct Routes {
    lines: Vec<Line>,
    brokers: Vec<Broker>,
    service: Service,
}

impl Routes {
    /// Opens `routes`: one session for each broker, under a name of its own beside the device's.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub fn open(routes: &[Route], device: &DeviceId, service: Service) -> Result<Self, RouteError> {
        refuse_circles(routes)?;
        let mut brokers: Vec<Broker> = Vec::new();
        for route in routes {
            if !brokers.iter().any(|broker| broker.url == route.broker) {
                brokers.push(Broker::open(&route.broker, routes, device)?);
            }
        }
        let line = |route: &Route| {
            let broker = brokers.iter().find(|broker| broker.url == route.broker)?;
            let counters = Arc::default();
            Some(Line { route: route.clone(), sender: broker.sender.clone(), counters })
        };
        Ok(Self { lines: routes.iter().filter_map(line).collect(), brokers, service })
    }

    /// What writes the routes' metrics.
    pub fn source(&self) -> Source {
        let lines = self.lines.clone();
        Arc::new(move |exposition: &mut Exposition| write_metrics(&lines, exposition))
    }

    /// Scores what comes until `stop`; then answers what is queued and disconnects.
    ///
    /// # Errors
    /// A part of it ended unasked.
    pub async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let goodbye = CancellationToken::new();
        let (mut workers, mut drivers) = (JoinSet::new(), JoinSet::new());
        for Broker { url, events, driver, .. } in self.brokers {
            drivers.spawn(driver.run(goodbye.clone()));
            let mut queues = Vec::new();
            for line in self.lines.iter().filter(|line| line.route.broker == url) {
                let (queue, waiting) = mpsc::channel(QUEUE);
                queues.push((line.clone(), queue));
                workers.spawn(line.clone().work(self.service.clone(), waiting));
            }
            workers.spawn(dispatch(events, queues, stop.clone()));
        }
        stop.cancelled().await;
        let mut outcome = Ok(());
        while let Some(ended) = workers.join_next().await {
            outcome = outcome.and(ended.map_err(|error| error.to_string()));
        }
        goodbye.cancel();
        while let Some(ended) = drivers.join_next().await {
            outcome = outcome.and(ended.map_err(|error| error.to_string()));
        }
        outcome
    }
}

/// The session with one broker.
struct Broker {
    url: BrokerUrl,
    sender: session::Sender,
    events: mpsc::Receiver<Event>,
    driver: session::Driver,
}

impl Broker {
    fn open(url: &BrokerUrl, routes: &[Route], device: &DeviceId) -> Result<Self, RouteError> {
        let here = routes.iter().filter(|route| route.broker == *url);
        let mut subscriptions: Vec<(String, Qos)> = Vec::new();
        for route in here {
            match subscriptions.iter_mut().find(|(input, _)| *input == route.input) {
                Some((_, known)) if qos(route) == Qos::AtLeastOnce => *known = Qos::AtLeastOnce,
                Some(_) => {}
                None => subscriptions.push((route.input.clone(), qos(route))),
            }
        }
        let options = session::Options {
            keep_alive: KEEP_ALIVE,
            subscriptions,
            ..session::Options::new(url.clone(), format!("{device}-routes"))
        };
        let opened = session::open(options);
        let (sender, events, driver) =
            opened.map_err(|source| RouteError::Tls { broker: url.clone(), source })?;
        Ok(Self { url: url.clone(), sender, events, driver })
    }
}

/// One route at work. Cheap to clone.
#[derive(Clone)]
struct Line {
    route: Route,
    sender: session::Sender,
    counters: Arc<Counters>,
}

/// What a route has done.
#[derive(Default)]
struct Counters {
    received: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    unsent: AtomicU64,
}

impl Line {
    /// Scores one message after the other, until nobody can send more.
    async fn work(self, service: Service, mut waiting: mpsc::Receiver<Bytes>) {
        while let Some(message) = waiting.recv().await {
            let (topic, body) = match self.score(&service, &message).await {
                Ok(body) => {
                    count(&self.counters.answered);
                    (self.route.output.clone(), body)
                }
                Err(why) => {
                    count(&self.counters.failed);
                    tracing::debug!(input = self.route.input, %why, "a message could not be scored");
                    let body = serde_json::json!({ "error": bounded_text(why) }).to_string();
                    (error_topic(&self.route), body.into_bytes())
                }
            };
            let answer = Outgoing { topic, body: body.into(), qos: qos(&self.route), retain: false };
            if self.sender.publish(answer).await.is_err() {
                count(&self.counters.unsent);
            }
        }
    }

    async fn score(&self, service: &Service, message: &[u8]) -> Result<Vec<u8>, String> {
        let live = service.scorer.find(self.route.model.as_str(), None).map_err(|error| error.to_string())?;
        // Read here and not on a blocking thread: the session bounds a message to a quarter of a megabyte.
        let body = live.counters.reading(|| self.route.format.read(message, &live.facts.signature));
        let body = body.map_err(|error| error.to_string())?;
        let span = service.tracer.message(&self.route.input, body.traceparent.as_deref());
        let answer = trace::attempt(span, service.score_on(live, body.inputs, body.id, None)).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let body = answer.live.counters.writing(|| self.route.format.write(&answer))?;
        if body.len() > MAX_MESSAGE_BYTES {
            return Err(format!(
                "the answer has {} bytes, a message may have {MAX_MESSAGE_BYTES}: score over HTTP",
                body.len()
            ));
        }
        Ok(body)
    }
}

/// Gives each message to the routes that take its topic, until `stop`.
async fn dispatch(
    mut events: mpsc::Receiver<Event>,
    queues: Vec<(Line, mpsc::Sender<Bytes>)>,
    stop: CancellationToken,
) {
    while let Some(Some(event)) = stop.run_until_cancelled(events.recv()).await {
        let Event::Message(message) = event else { continue };
        for (line, queue) in queues.iter().filter(|(line, _)| line.route.takes(&message.topic)) {
            count(&line.counters.received);
            if queue.try_send(message.body.clone()).is_err() {
                count(&line.counters.dropped);
            }
        }
    }
}

/// Refuses routes of which an answer would come back to where it was made from.
fn refuse_circles(routes: &[Route]) -> Result<(), RouteError> {
    let feeds = |from: &Route, to: &Route| {
        from.broker == to.broker && (to.takes(&from.output) || to.takes(&error_topic(from)))
    };
    for route in routes {
        let mut reached: Vec<&Route> = vec![route];
        let mut at = 0;
        while let Some(from) = reached.get(at).copied() {
            if feeds(from, route) {
                let (input, output) = (route.input.clone(), route.output.clone());
                return Err(RouteError::Circle { input, output });
            }
            let more = routes.iter().filter(|to| feeds(from, to));
            let new: Vec<&Route> = more.filter(|to| !reached.contains(to)).collect();
            reached.extend(new);
            at += 1;
        }
    }
    Ok(())
}

fn error_topic(route: &Route) -> String {
    format!("{}/error", route.output)
}

fn qos(route: &Route) -> Qos {
    if route.qos == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn write_metrics(lines: &[Line], exposition: &mut Exposition) {
    if lines.is_empty() {
        return;
    }
    let mut per_route = |name: &str, kind: Kind, help: &str, value: &dyn Fn(&Line) -> u64| {
        let mut family = exposition.family(name, kind, help);
        for line in lines {
            let Route { broker, input, model, output, .. } = &line.route;
            let broker = broker.to_string();
            let labels = [
                ("broker", broker.as_str()),
                ("input", input),
                ("model", model.as_str()),
                ("output", output),
            ];
            family.sample(&labels, value(line));
        }
    };
    let up = |line: &Line| u64::from(line.sender.is_online());
    per_route("edgewise_route_up", Kind::Gauge, "Whether the route's broker is connected.", &up);
    let mut counter = |name, help, of: fn(&Counters) -> &AtomicU64| {
        per_route(name, Kind::Counter, help, &|line| of(&line.counters).load(Ordering::Relaxed));
    };
    counter("edgewise_route_received_total", "Messages received.", |c| &c.received);
    counter("edgewise_route_answered_total", "Messages scored.", |c| &c.answered);
    counter("edgewise_route_failed_total", "Messages answered with an error.", |c| &c.failed);
    counter("edgewise_route_dropped_total", "Messages dropped because too many were waiting.", |c| {
        &c.dropped
    });
    counter("edgewise_route_unsent_total", "Answers that found no broker.", |c| &c.unsent);
}

#[cfg(test)]
mod tests;
