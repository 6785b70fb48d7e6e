//! Inputs of the module: each message is scored by its route, answered on the route's output, and then acknowledged.
//!
//! A message is what its content type says, as [`Format`] reads it; without one it is JSON. A route answers in the same
//! form; the default route,
//! from `amlInput` to `amlOutput`, as Azure ML's `/score` does, with the property `AzureMLResponse=OK`. What can't be
//! scored is answered on the output `errors`.
//!
//! Invariants:
//! - Messages are scored and answered in the order in which they came, one at a time.
//! - A message is acknowledged once edgeHub has all its answers, so it is delivered at least once, and what is under way
//!   when the link or the agent dies comes again.
//! - Nothing that a message says ends the flow: it yields one error for each route, is acknowledged, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cloud_sync::contract::Phase;
use cloud_sync::limits::bounded_text;
use cloud_sync::name::ModelName;
use cloud_sync::session::Acknowledgement;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::desired::Route;
use super::outbox::{Item, MAX_MESSAGE_BYTES, Outbox, Then};
use super::topic::{CONTENT_TYPE, CORRELATION_ID, MESSAGE_ID, Properties, Topics};
use crate::body::{Format, Lone};
use crate::deploy::driver::Status;
use crate::log::Seldom;
use crate::scorer::{Live, NoChoice, ScoreRefused};
use crate::service::{Answer, Service};
use crate::trace;

/// Messages that may wait. edgeHub sends one at a time, so more than one wait only after a reconnect.
pub const WAITING: usize = 64;

/// How long a message may take in all: waiting for the twin's first word, for a model that is on its way or busy, and for
/// the score. Less than the 30 s after which edgeHub sends it again. Other messages wait in edgeHub meanwhile, which has
/// room and a time to live for them.
const PATIENCE: Duration = Duration::from_secs(25);

/// How long the message that is under way may take at the end, and what of its time is kept for more than waiting.
const FAREWELL: Duration = Duration::from_secs(3);

/// Pause before a busy model is asked again.
const BUSY: Duration = Duration::from_millis(100);

/// Longest id of a message that goes into its rows, in bytes; IoT Hub takes no longer one. A topic may hold 64 KiB.
const MAX_ID_BYTES: usize = 128;

/// Azure ML's names for its only input and output.
const DEFAULT_INPUT: &str = "amlInput";
const DEFAULT_OUTPUT: &str = "amlOutput";

/// Where what can't be scored is answered.
const ERRORS: &str = "errors";

/// A message for an input.
#[derive(Debug)]
pub struct Arrival {
    /// The input.
    pub input: String,
    /// What was said beside the body.
    pub properties: Properties,
    /// What is to be scored.
    pub body: Bytes,
    /// How edgeHub learns that it is done with.
    pub acknowledgement: Option<Acknowledgement>,
}

/// What scores messages.
pub struct Intake {
    /// Scores.
    pub service: Service,
    /// The model of the default route; `None` for the only one that serves.
    pub default_model: Option<ModelName>,
    /// Which model takes which input; `None` while nothing is known of the twin.
    pub routes: watch::Receiver<Option<Arc<[Route]>>>,
    /// Which models are on their way.
    pub status: watch::Receiver<Status>,
    /// Takes the answers.
    pub outbox: Outbox,
    /// The module's topics.
    pub topics: Topics,
    /// What has been done.
    pub counters: Arc<Counters>,
    /// Keeps the log short.
    pub told: Seldom,
}

/// What has been done with messages.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages that came.
    pub received: AtomicU64,
    /// Messages that were passed over, because the link was lost before their turn: they come again.
    pub passed_over: AtomicU64,
    /// Answers given.
    pub answered: AtomicU64,
    /// Errors given in place of an answer.
    pub failed: AtomicU64,
}

impl Arrival {
    fn format(&self) -> Format {
        Format::of_content_type(self.properties.get(CONTENT_TYPE))
    }
}

/// Where a message goes.
enum Way {
    Default,
    Route(Route),
    Nowhere,
}

impl Intake {
    /// Scores what comes until `stop`.
    pub async fn run(self, mut arrivals: mpsc::Receiver<Arrival>, stop: CancellationToken) {
        while let Some(Some(arrival)) = stop.run_until_cancelled(arrivals.recv()).await {
            count(&self.counters.received);
            if arrival.acknowledgement.as_ref().is_some_and(|waiting| !waiting.is_awaited()) {
                count(&self.counters.passed_over);
                continue;
            }
            tokio::select! {
                taken = self.take(arrival) => if !taken { return },
                () = cut_short(&stop) => return,
            }
        }
    }

    /// False where the answers can't leave any more.
    async fn take(&self, arrival: Arrival) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut ways = self.ways(&arrival.input, deadline).await.into_iter().peekable();
        while let Some(way) = ways.next() {
            let answer = tokio::time::timeout_at(deadline, self.answer(&way, &arrival, deadline)).await;
            let late = |_| Err(format!("it was not scored within {PATIENCE:?}"));
            let (topic, body) = match answer.unwrap_or_else(late) {
                Ok(message) => {
                    count(&self.counters.answered);
                    message
                }
                Err(why) => {
                    count(&self.counters.failed);
                    if let Some(more) = self.told.again() {
                        let (input, why) = (bounded_text(&arrival.input), bounded_text(&why));
                        tracing::warn!(input, why, more, "a message could not be scored");
                    }
                    self.error(&arrival, &why)
                }
            };
            // They leave in order, so when edgeHub has the last one it has them all.
            let then = match (ways.peek(), &arrival.acknowledgement) {
                (None, Some(input)) => Then::Acknowledge(input.clone()),
                _ => Then::Nothing,
            };
            if !self.outbox.put(Item { topic, body: body.into(), then }).await {
                return false;
            }
        }
        true
    }

    /// Where a message goes. One that comes before the first word of the twin waits for that, unless there is a model
    /// for it all the same.
    async fn ways(&self, input: &str, deadline: Instant) -> Vec<Way> {
        let mut routes = self.routes.clone();
        let is_default = input == DEFAULT_INPUT;
        if !is_default || self.service.scorer.choose(self.default_model.as_ref()).is_err() {
            let _ = tokio::time::timeout_at(deadline, routes.wait_for(Option::is_some)).await;
        }
        let routes = routes.borrow().clone().unwrap_or_default();
        let routed: Vec<Way> =
            routes.iter().filter(|route| route.input == input).cloned().map(Way::Route).collect();
        if !routed.is_empty() {
            return routed;
        }
        vec![if is_default { Way::Default } else { Way::Nowhere }]
    }

    async fn answer(
        &self,
        way: &Way,
        arrival: &Arrival,
        deadline: Instant,
    ) -> Result<(String, Vec<u8>), String> {
        let (output, answer, body) = match way {
            Way::Nowhere => return Err(format!("no route takes the input {:?}", arrival.input)),
            Way::Route(route) => {
                let find = || self.service.scorer.find(route.model.as_str(), None).map_err(NoChoice::from);
                let answer = self.score(arrival, deadline, Some(&route.model), find).await?;
                fits(2 * elements(&answer))?;
                let body = answer.live.counters.writing(|| arrival.format().write(&answer));
                (route.output.as_str(), answer, body)
            }
            Way::Default => {
                let preferred = self.default_model.as_ref();
                let find = || self.service.scorer.choose(preferred);
                let answer = self.score(arrival, deadline, preferred, find).await?;
                fits(2 * elements(&answer))?;
                let body = answer.live.counters.writing(|| serde_json::to_vec(&Lone(&answer.scored.outputs)));
                let body = body.map_err(|error| error.to_string());
                (DEFAULT_OUTPUT, answer, body)
            }
        };
        let mut properties = carried_over(arrival, output);
        properties.set(MESSAGE_ID, answer.request_id.as_str());
        match (way, arrival.format()) {
            (Way::Default, _) => properties.set("AzureMLResponse", "OK"),
            (_, Format::Json) => {}
            (_, format) => properties.set_content(format.content_type(), None),
        }
        let topic = self.topics.event(&properties).map_err(|error| error.to_string())?;
        let body = body?;
        fits(topic.len() + body.len())?;
        Ok((topic, body))
    }

    /// Scores a message on what `find` gives, waiting for it where it is on its way.
    async fn score(
        &self,
        arrival: &Arrival,
        deadline: Instant,
        model: Option<&ModelName>,
        find: impl Fn() -> Result<Arc<Live>, NoChoice>,
    ) -> Result<Answer, String> {
        let mut status = self.status.clone();
        loop {
            let live = match find() {
                Ok(live) => live,
                Err(error) => {
                    let settled = status.wait_for(|status| !is_on_its_way(status, model));
                    // Early enough for the score, or for the word of what is missing.
                    let _ = tokio::time::timeout_at(deadline - FAREWELL, settled).await;
                    find().map_err(|_| error.to_string())?
                }
            };
            // Read here and not on a blocking thread: edgeHub bounds a message to a quarter of a megabyte.
            let read = || arrival.format().read(&arrival.body, &live.facts.signature);
            let body = live.counters.reading(read);
            let body = body.map_err(|error| error.to_string())?;
            let request = body.id.or_else(|| row_id(arrival.properties.message_id()));
            let correlation = row_id(arrival.properties.correlation_id());
            let parent = arrival.properties.get("traceparent").or(body.traceparent.as_deref());
            let span = self.service.tracer.message(&arrival.input, parent);
            let scored = self.service.score_on(live, body.inputs, request, correlation);
            match trace::attempt(span, scored).await {
                Ok(answer) => return Ok(answer),
                Err(ScoreRefused::Busy(..) | ScoreRefused::Stopping(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(BUSY).await;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn error(&self, arrival: &Arrival, why: &str) -> (String, Vec<u8>) {
        let error = json!({ "error": bounded_text(why), "input": bounded_text(&arrival.input) });
        let topic = self.topics.event(&carried_over(arrival, ERRORS)).or_else(|_| {
            // What was said beside the body is what is too long.
            self.topics.event(&Properties::of_output(ERRORS))
        });
        (topic.unwrap_or_default(), error.to_string().into_bytes())
    }
}

/// The properties of an answer: the application's own go with it, and what ties it to its question.
fn carried_over(arrival: &Arrival, output: &str) -> Properties {
    let mut properties = Properties::of_output(output);
    for (key, value) in arrival.properties.user() {
        properties.set(key, value);
    }
    let correlation = arrival.properties.correlation_id().or_else(|| arrival.properties.message_id());
    if let Some(id) = correlation {
        properties.set(CORRELATION_ID, id);
    }
    properties.set_content(Format::Json.content_type(), Some("utf-8"));
    properties
}

/// An id for captured rows.
fn row_id(id: Option<&str>) -> Option<String> {
    id.filter(|id| id.len() <= MAX_ID_BYTES).map(str::to_owned)
}

/// Whether an answer of at least so many bytes can go out.
fn fits(size: usize) -> Result<(), String> {
    if size <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    Err(format!("the answer has {size} bytes or more, edgeHub takes {MAX_MESSAGE_BYTES}: score over HTTP"))
}

/// The elements of an answer; as JSON each takes two bytes at least.
fn elements(answer: &Answer) -> usize {
    answer.scored.outputs.iter().map(|(_, tensor)| tensor.len()).sum()
}

/// Waits until a message that is under way at the end must be left: it comes again.
async fn cut_short(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(FAREWELL).await;
}

/// Whether a model, or where none is named any, will serve soon.
fn is_on_its_way(status: &Status, model: Option<&ModelName>) -> bool {
    let coming = |phase| matches!(phase, Phase::Fetching | Phase::Verifying | Phase::Proving);
    let mut asked = status.models.iter().filter(|known| model.is_none_or(|model| known.name == *model));
    !status.restored || asked.any(|known| known.active.is_none() && coming(known.phase))
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
