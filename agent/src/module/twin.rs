//! The module's twin: when it is read, what a change means, and when what is reported is written.
//!
//! A pure state machine: times and messages go in, [`Act`]s come out, and [`Twin::due`] says when to
//! [`Twin::tick`] it. Writing is in `writer`.
//!
//! Invariants:
//! - What is desired is what the last read said, with every later change in order over it; a change that does not
//!   follow on what is known is never applied, and the twin is read again instead. (edgeHub sends one patch for several
//!   versions after it was offline, and keeps none for a module that is away.)
//! - A read that fails, says nothing for [`ANSWER_TIMEOUT`] or holds no version changes nothing and is repeated.
//! - Only the answer to the request that is outstanding is believed.
//! - What is kept is bounded by [`MAX_DESIRED_BYTES`], however many patches come.

mod writer;

use std::time::{Duration, Instant};

use cloud_sync::limits::bounded_text;
use serde_json::Value;

use super::merge::{self, Object};
use writer::Writer;

/// Largest desired properties, as JSON. IoT Hub's 32 KiB count neither names nor structure.
pub const MAX_DESIRED_BYTES: usize = 64 * 1024;

/// Deepest desired properties. IoT Hub takes 10; what is taken here must be read again from the disk and from an answer.
pub const MAX_DEPTH: u32 = 32;

/// Largest twin: desired and reported properties.
pub const MAX_TWIN_BYTES: usize = 2 * MAX_DESIRED_BYTES;

/// Longest wait for an answer of edgeHub, which may ask IoT Hub; its own callers wait as long.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the twin is read although nothing seems to have changed, as edgeAgent does: versions begin anew when a
/// module's identity is made anew.
pub const REFRESH: Duration = Duration::from_secs(3600);

/// When a twin is read again that edgeHub has never seen yet: it has to be online once.
pub const EMPTY_REFRESH: Duration = Duration::from_secs(300);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Ask for the twin, with this request id.
    Get {
        /// The request id.
        rid: String,
    },
    /// Patch the reported properties.
    Patch {
        /// The request id.
        rid: String,
        /// JSON.
        body: Vec<u8>,
    },
    /// What is desired, or its version, has changed: see [`Twin::desired`].
    Apply,
}

/// What went wrong or was passed over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads without an answer that can be used.
    pub failed_reads: u64,
    /// Changes of the desired properties that can't be believed.
    pub refused_changes: u64,
    /// Answers to nothing that was asked.
    pub unasked_answers: u64,
    /// Patches of the reported properties that edgeHub refused for what they say.
    pub refused_reports: u64,
    /// Patches of the reported properties that failed otherwise.
    pub failed_reports: u64,
}

/// The twin of this module, as far as it is known here.
#[derive(Debug)]
pub struct Twin {
    online: bool,
    desired: Object,
    version: Option<u64>,
    ids: RequestIds,
    outstanding: Option<Request>,
    /// The newest change that was announced while a read was outstanding.
    announced: Option<u64>,
    /// When to read, unless a read is outstanding.
    next_read: Option<Instant>,
    failures: u32,
    writer: Writer,
    counts: Counts,
}

impl Twin {
    /// A twin of which nothing is known. Request ids begin with the boot id, so that none is ever used twice.
    pub fn new(boot_id: &str) -> Self {
        Self {
            online: false,
            desired: Object::new(),
            version: None,
            ids: RequestIds::new(format!("{boot_id}-read")),
            outstanding: None,
            announced: None,
            next_read: None,
            failures: 0,
            writer: Writer::new(RequestIds::new(format!("{boot_id}-write"))),
            counts: Counts::default(),
        }
    }

    /// What was known before a restart.
    pub fn restore(&mut self, desired: Object, version: Option<u64>) {
        self.desired = without_system(desired);
        self.version = version;
    }

    /// What is desired, without the hub's own keys.
    pub fn desired(&self) -> &Object {
        &self.desired
    }

    /// The version of what is desired; `None` before the first.
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// What went wrong so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// edgeHub is there, and everything is subscribed.
    pub fn connected(&mut self, now: Instant) -> Vec<Act> {
        self.disconnected();
        self.online = true;
        self.failures = 0;
        vec![self.read(now)]
    }

    /// edgeHub is gone, and with it every answer.
    pub fn disconnected(&mut self) {
        self.online = false;
        self.outstanding = None;
        self.announced = None;
        self.next_read = None;
        self.writer.forget();
    }

    /// An answer of edgeHub to a read or a write.
    pub fn answer(&mut self, status: u16, rid: &str, body: &[u8], now: Instant) -> Vec<Act> {
        if self.outstanding.take_if(|request| request.id == rid).is_some() {
            return self.read_answered(status, body, now);
        }
        if self.writer.answered(status, rid, body, now, &mut self.counts) {
            return self.writer.step(now).into_iter().collect();
        }
        self.counts.unasked_answers += 1;
        tracing::debug!(rid = %bounded_text(rid), status, "an answer of the twin to nothing that was asked");
        Vec::new()
    }

    /// A change of the desired properties; `version` is that of its topic.
    pub fn patch(&mut self, version: Option<u64>, body: &[u8], now: Instant) -> Vec<Act> {
        if !self.online {
            return Vec::new();
        }
        let patch = parse(body, MAX_DESIRED_BYTES).and_then(|patch| {
            let version = system_version(&patch)?.or(version).ok_or("it has no version")?;
            Ok((without_system(patch), version))
        });
        match patch {
            Ok((_, version)) if self.version.is_some_and(|known| version <= known) => Vec::new(),
            // The answer may hold it or not; what it says decides.
            Ok((_, version)) if self.outstanding.is_some() => {
                self.announced = self.announced.max(Some(version));
                Vec::new()
            }
            Ok((patch, version)) if self.follows(version) => {
                let mut desired = self.desired.clone();
                merge::apply(&mut desired, &patch);
                match bounded(&desired) {
                    Ok(()) => {
                        self.desired = desired;
                        self.version = Some(version);
                        vec![Act::Apply]
                    }
                    Err(why) => self.refuse(&why, now),
                }
            }
            Ok((_, version)) => {
                if self.failures == 0 {
                    tracing::info!(version, known = ?self.version, "changes of the twin are missing: reading it again");
                }
                self.read_soon(now)
            }
            Err(why) => self.refuse(&why, now),
        }
    }

    /// What shall be reported, as a whole: objects and what is in them, without null.
    pub fn report(&mut self, wanted: Object, now: Instant) -> Vec<Act> {
        self.writer.want(wanted);
        self.writer.step(now).into_iter().collect()
    }

    /// Whether edgeHub has acknowledged all that is to be reported, or is not there to be told.
    pub fn has_reported(&self) -> bool {
        self.writer.is_done()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.outstanding.take_if(|request| request.until <= now).is_some() {
            self.read_failed("no answer", now);
        }
        if self.online && self.outstanding.is_none() && self.next_read.is_some_and(|at| at <= now) {
            acts.push(self.read(now));
        }
        self.writer.tick(now, &mut self.counts);
        acts.extend(self.writer.step(now));
        acts
    }

    /// When to [`Twin::tick`] next; `None`: not before something else happens.
    pub fn due(&self) -> Option<Instant> {
        let read = self.outstanding.as_ref().map(|request| request.until).or(self.next_read);
        [read, self.writer.due()].into_iter().flatten().min()
    }

    fn read(&mut self, now: Instant) -> Act {
        let request = self.ids.request(now);
        let rid = request.id.clone();
        self.outstanding = Some(request);
        self.next_read = None;
        Act::Get { rid }
    }

    fn follows(&self, version: u64) -> bool {
        self.version.is_some_and(|known| known.checked_add(1) == Some(version))
    }

    /// Reads now, unless reading is failing: then it is tried again soon, and not at the pace of whoever sends changes.
    fn read_soon(&mut self, now: Instant) -> Vec<Act> {
        if self.failures > 0 { Vec::new() } else { vec![self.read(now)] }
    }

    fn read_answered(&mut self, status: u16, body: &[u8], now: Instant) -> Vec<Act> {
        let announced = self.announced.take();
        let twin = match status {
            200 => parse(body, MAX_TWIN_BYTES).and_then(Document::read),
            status => Err(format!("status {status}: {}", reason(body))),
        };
        let Document { desired, version, reported } = match twin {
            Ok(twin) => twin,
            Err(why) => {
                self.read_failed(&why, now);
                return Vec::new();
            }
        };
        let mut acts = Vec::new();
        if version.is_some() && (self.version != version || self.desired != desired) {
            self.desired = desired;
            self.version = version;
            acts.push(Act::Apply);
        }
        if announced > version {
            self.read_failed("older than a change that was announced", now);
        } else {
            self.failures = 0;
            self.next_read = now.checked_add(if version.is_some() { REFRESH } else { EMPTY_REFRESH });
        }
        self.writer.learn(reported);
        acts.extend(self.writer.step(now));
        acts
    }

    fn read_failed(&mut self, why: &str, now: Instant) {
        self.counts.failed_reads += 1;
        let pause = back_off(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.next_read = now.checked_add(pause);
        tracing::warn!(why, again_in = ?pause, "the twin could not be read");
    }

    fn refuse(&mut self, why: &str, now: Instant) -> Vec<Act> {
        self.counts.refused_changes += 1;
        if self.outstanding.is_none() && self.failures == 0 {
            tracing::warn!(why, "a change of the twin was refused: reading it again");
        }
        if self.outstanding.is_some() {
            // It was newer than what is known, but not by how much.
            self.announced = Some(u64::MAX);
            return Vec::new();
        }
        self.read_soon(now)
    }
}

/// A request that is waiting for its answer.
#[derive(Debug)]
struct Request {
    id: String,
    until: Instant,
}

#[derive(Debug)]
struct RequestIds {
    prefix: String,
    last: u64,
}

impl RequestIds {
    fn new(prefix: String) -> Self {
        Self { prefix, last: 0 }
    }

    fn request(&mut self, now: Instant) -> Request {
        self.last += 1;
        Request { id: format!("{}-{}", self.prefix, self.last), until: now + ANSWER_TIMEOUT }
    }
}

/// The answer to a read.
struct Document {
    desired: Object,
    /// `None`: edgeHub is offline and has never seen this twin.
    version: Option<u64>,
    reported: Object,
}

impl Document {
    fn read(mut twin: Object) -> Result<Self, String> {
        let mut section = |key: &str| match twin.remove(key) {
            Some(Value::Object(object)) => Ok(object),
            _ => Err(format!("it has no object {key:?}")),
        };
        let desired = section("desired")?;
        let reported = section("reported").unwrap_or_default();
        let version = system_version(&desired)?;
        let desired = without_system(desired);
        bounded(&desired)?;
        Ok(Self { desired, version, reported: without_system(reported) })
    }
}

/// 1 s, 2 s, 4 s, … 60 s after the first, second, third, … failure.
fn back_off(failures: u32) -> Duration {
    Duration::from_secs(1u64.checked_shl(failures).unwrap_or(u64::MAX).min(60))
}

fn parse(body: &[u8], limit: usize) -> Result<Object, String> {
    if body.len() > limit {
        return Err(format!("it has {} bytes, {limit} are possible", body.len()));
    }
    serde_json::from_slice(body).map_err(|error| format!("it is no JSON object: {error}"))
}

fn bounded(desired: &Object) -> Result<(), String> {
    let bytes = serde_json::to_vec(desired).map_err(|error| error.to_string())?.len();
    if bytes > MAX_DESIRED_BYTES {
        return Err(format!("the desired properties have {bytes} bytes, {MAX_DESIRED_BYTES} are possible"));
    }
    if desired.values().any(|value| is_deeper(value, MAX_DEPTH)) {
        return Err(format!("the desired properties are nested more than {MAX_DEPTH} deep"));
    }
    Ok(())
}

fn is_deeper(value: &Value, levels: u32) -> bool {
    let within = |value: &Value| levels == 0 || is_deeper(value, levels - 1);
    match value {
        Value::Object(object) => object.values().any(within),
        Value::Array(list) => list.iter().any(within),
        _ => false,
    }
}

fn system_version(object: &Object) -> Result<Option<u64>, String> {
    match object.get("$version") {
        None | Some(Value::Null) => Ok(None),
        Some(version) => {
            version.as_u64().map(Some).ok_or_else(|| "its version is no whole number".to_owned())
        }
    }
}

/// Without the hub's own keys.
fn without_system(object: Object) -> Object {
    object.into_iter().filter(|(key, _)| !key.starts_with('$')).collect()
}

/// What edgeHub says beside a status.
fn reason(body: &[u8]) -> String {
    bounded_text(String::from_utf8_lossy(body))
}

#[cfg(test)]
mod tests;
