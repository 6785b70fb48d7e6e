//! Traces: a span for each request and one for each part of it, under the trace that the caller says it belongs to.
//!
//! - [`Parent`] what the caller says, as W3C Trace Context; `export` the way to a collector; `otlp` what it is told.
//!
//! Invariants:
//! - Where tracing is off, nothing is allocated for a request.
//! - No request waits for a collector: a span that finds the queue full is dropped and counted.
//! - A span is told once, however its request ends: it leaves when it is dropped.

mod export;
mod otlp;
mod parent;

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

pub use self::export::Exporter;
pub use self::parent::{MAX_TRACEPARENT, Parent};
use crate::config::Trace;

/// Requests whose spans may wait for the exporter: as many as OpenTelemetry's own batch processor holds spans. Each takes less than
/// 1 KiB, unless its caller's paths and states are long.
const QUEUE: usize = 2048;

/// The bits of a trace's id that are random, as W3C Trace Context has it.
const RANDOM_BITS: u32 = 56;

tokio::task_local! {
    /// The span that this task works within.
    static CURRENT: RefCell<Span>;
}

/// Begins spans, where tracing is on. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    /// The share of requests without a parent that are sampled, 0 to 1.
    sample: f64,
    queue: mpsc::Sender<Record>,
    counters: Arc<Counters>,
}

/// What has become of spans.
#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    /// They found the queue full.
    queue: AtomicU64,
    /// The collector refused them.
    refused: AtomicU64,
    /// The collector was not to be reached for too long.
    unreachable: AtomicU64,
}

/// Who asks, and for what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// A caller that waits for the answer.
    #[default]
    Server,
    /// A message.
    Consumer,
}

/// A request under way.
pub struct Span {
    record: Record,
    begun: Instant,
    on: Arc<On>,
}

/// All that is told of a request.
#[derive(Debug, Default)]
struct Record {
    trace_id: u128,
    span_id: u64,
    parent: Option<u64>,
    state: String,
    name: String,
    kind: Kind,
    start: Option<SystemTime>,
    took: Duration,
    attributes: Vec<(&'static str, Value)>,
    error: Option<String>,
    /// Named parts of it, by their time since its start.
    parts: Vec<(&'static str, Range<Duration>)>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
}

/// Opens tracing as it is configured: what begins spans, and what sends them, where it is on.
///
/// # Errors
/// The system has no authorities by which to know the collector.
pub fn open(config: &Trace, device: &str) -> Result<(Tracer, Option<Exporter>), String> {
    let Some(endpoint) = &config.endpoint else { return Ok((Tracer::default(), None)) };
    let (queue, waiting) = mpsc::channel(QUEUE);
    let counters: Arc<Counters> = Arc::default();
    let exporter = Exporter::new(endpoint, device, waiting, counters.clone())?;
    Ok((Tracer(Some(Arc::new(On { sample: config.sample, queue, counters }))), Some(exporter)))
}

impl Tracer {
    /// Begins a span, if the request is sampled: as its parent is, else by chance. `parent` is not asked for where tracing is
    /// off.
    pub fn begin(&self, kind: Kind, parent: impl FnOnce() -> Option<Parent>) -> Option<Span> {
        let on = self.0.as_ref()?;
        let parent = parent();
        let id = uuid::Uuid::new_v4();
        let trace_id = parent.as_ref().map_or(id.as_u128(), |parent| parent.trace_id);
        let sampled = parent.as_ref().map_or_else(|| chosen(trace_id, on.sample), |parent| parent.sampled);
        sampled.then(|| {
            let (span_id, _) = uuid::Uuid::new_v4().as_u64_pair();
            let (parent, state) = parent.map(|parent| (parent.span_id, parent.state)).unzip();
            let (state, start) = (state.unwrap_or_default(), Some(SystemTime::now()));
            // Until it ends: what is dropped before has lost its caller.
            let error = Some("canceled".to_owned());
            let record = Record { trace_id, span_id, parent, state, kind, start, error, ..Record::default() };
            Span { record, begun: Instant::now(), on: on.clone() }
        })
    }

    /// Begins the span of a message that came on `topic`; `parent` is its `traceparent`, where it has one.
    pub fn message(&self, topic: &str, parent: Option<&str>) -> Option<Span> {
        let mut span = self.begin(Kind::Consumer, || Parent::read(parent?, ""))?;
        span.name(format!("process {topic}"));
        span.set("messaging.system", Value::Text("mqtt".to_owned()));
        span.set("messaging.operation.type", Value::Text("process".to_owned()));
        span.set("messaging.destination.name", Value::Text(topic.to_owned()));
        Some(span)
    }
}

impl Span {
    /// Says what it is of.
    pub fn name(&mut self, name: String) {
        self.record.name = name;
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: Value) {
        self.record.attributes.push((name, value));
    }

    /// Adds a part of it, by the time since its start.
    pub fn part(&mut self, name: &'static str, time: Range<Duration>) {
        self.record.parts.push((name, time));
    }

    /// Says how it ended: `None` for well.
    pub fn end(&mut self, error: Option<String>) {
        self.record.error = error;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let mut record = std::mem::take(&mut self.record);
        record.took = self.begun.elapsed();
        let spans = record.spans();
        if self.on.queue.try_send(record).is_err() {
            self.on.counters.queue.fetch_add(spans, Ordering::Relaxed);
        }
    }
}

impl Record {
    fn spans(&self) -> u64 {
        1 + self.parts.len() as u64
    }
}

/// Does `work` within a span, if there is one; [`current`] finds it there.
pub async fn within<T>(span: Option<Span>, work: impl Future<Output = T>) -> T {
    match span {
        Some(span) => CURRENT.scope(RefCell::new(span), work).await,
        None => work.await,
    }
}

/// As [`within`], for work whose error is the span's.
pub async fn attempt<T, E: Display>(
    span: Option<Span>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let told = async {
        let result = work.await;
        current(|span| span.end(result.as_ref().err().map(ToString::to_string)));
        result
    };
    within(span, told).await
}

/// Tells the span that this task works within; where there is none, `tell` is not called.
pub fn current<T>(tell: impl FnOnce(&mut Span) -> T) -> Option<T> {
    CURRENT.try_with(|span| tell(&mut span.borrow_mut())).ok()
}

/// Time since the start of the span that this task works within; nothing where there is none.
pub fn elapsed() -> Duration {
    current(|span| span.begun.elapsed()).unwrap_or_default()
}

/// Whether a trace is among so large a share of all. Everyone who asks so of the same trace hears the same.
fn chosen(trace_id: u128, share: f64) -> bool {
    let all = 1u64 << RANDOM_BITS;
    ((trace_id as u64 & (all - 1)) as f64) < share * all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(sample: f64) -> (Tracer, mpsc::Receiver<Record>) {
        let (queue, waiting) = mpsc::channel(2);
        (Tracer(Some(Arc::new(On { sample, queue, counters: Arc::default() }))), waiting)
    }

    fn parent(sampled: bool) -> Parent {
        Parent { trace_id: 7, span_id: 9, sampled, state: "a=b".to_owned() }
    }

    #[test]
    fn who_is_sampled_is_up_to_the_parent_else_to_chance() {
        let (never, _never_told) = tracer(0.0);
        assert!(never.begin(Kind::Server, || None).is_none());
        assert!(never.begin(Kind::Server, || Some(parent(true))).is_some());
        let (always, _always_told) = tracer(1.0);
        assert!(always.begin(Kind::Server, || None).is_some());
        assert!(always.begin(Kind::Server, || Some(parent(false))).is_none());
        assert!(Tracer::default().begin(Kind::Server, || unreachable!("nobody asks")).is_none());
        let sampled = (0..4000).filter(|_| chosen(uuid::Uuid::new_v4().as_u128(), 0.25)).count();
        assert!((800..1200).contains(&sampled), "{sampled} of 4000");
    }

    #[tokio::test]
    async fn a_span_is_told_once_with_its_parts_however_it_ends() {
        let (tracer, mut told) = tracer(1.0);
        let work = async {
            current(|span| span.part("compute", Duration::from_millis(1)..Duration::from_millis(2)));
            Err::<(), &str>("no such model")
        };
        let span = tracer.begin(Kind::Server, || Some(parent(true)));
        assert_eq!(attempt(span, work).await, Err("no such model"));
        let record = told.try_recv().unwrap();
        assert_eq!((record.trace_id, record.parent, record.state.as_str()), (7, Some(9), "a=b"));
        assert_eq!((record.error.as_deref(), record.spans()), (Some("no such model"), 2));
        assert!(told.try_recv().is_err());

        let given_up = within(tracer.begin(Kind::Server, || None), std::future::pending::<()>());
        assert!(futures_util::FutureExt::now_or_never(given_up).is_none());
        let record = told.try_recv().unwrap();
        assert_eq!((record.error.as_deref(), record.parent), (Some("canceled"), None));

        for _ in 0..3 {
            drop(tracer.begin(Kind::Server, || None));
        }
        let counters = &tracer.0.as_ref().unwrap().counters;
        assert_eq!(counters.queue.load(Ordering::Relaxed), 1, "the third found no room");
        assert_eq!(current(|_| ()), None);
    }
}
