//! The log: to standard error, as text or JSON, with a level that can be changed while the agent runs.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::Log;

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// `<SEVERITY> DATE TIME ZONE text`, which IoT Edge's own log collection filters by time and level.
    IotEdge,
}

/// The level of the running log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

/// Lets a line that many messages could cause be logged now and then only.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

/// Time between two such lines.
const SELDOM: Duration = Duration::from_secs(10);

/// Why the log or its level is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The text is no level.
    #[error("{0}")]
    Level(String),
    /// This process logs already.
    #[error("starting the log: {0}")]
    Started(#[from] tracing_subscriber::util::TryInitError),
    /// The log has ended.
    #[error("changing the level of the log: {0}")]
    Ended(#[from] reload::Error),
}

/// Starts the log of this process.
///
/// # Errors
/// The level is none, or the process logs already.
pub fn start(log: &Log) -> Result<LogLevel, LogError> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match log.format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
        Format::IotEdge => lines.event_format(IotEdge).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(LogLevel(handle))
}

/// Whether a text is a level, or says why not.
pub(crate) fn check(level: &str) -> Result<(), String> {
    filter(level).map(|_| ()).map_err(|error| error.to_string())
}

impl Seldom {
    /// Whether it is to be logged again now: then how often it was not since the last time.
    pub fn again(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| last.elapsed() < SELDOM) {
            state.1 = state.1.saturating_add(1);
            return None;
        }
        state.0 = Some(Instant::now());
        Some(std::mem::take(&mut state.1))
    }
}

impl LogLevel {
    /// Logs at another level from now on, as `debug` or `info,edgewise_agent=trace`.
    ///
    /// # Errors
    /// The text is no level.
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        Ok(self.0.reload(filter(level)?)?)
    }
}

/// See [`Format::IotEdge`]; the numbers are syslog's.
struct IotEdge;

impl<S, N> FormatEvent<S, N> for IotEdge
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let time = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S%.3f +00:00");
        write!(writer, "<{severity}> {time} {}: ", metadata.target())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

fn filter(level: &str) -> Result<Targets, LogError> {
    let wrong = |why: String| {
        let level = cloud_sync::limits::bounded_text(level);
        LogError::Level(format!(
            "{level:?} is no level ({why}): use off, error, warn, info, debug or trace, also by part as \
             \"info,edgewise_agent=debug\""
        ))
    };
    // A lone word that is no level would be taken for the name of a part, and log nothing else.
    let lone_word = |part: &str| {
        let word = part.trim();
        // To the library, no word at all is a level too.
        let level = !word.is_empty() && word.parse::<LevelFilter>().is_ok();
        !level && !word.contains('=')
    };
    if let Some(word) = level.split(',').find(|part| lone_word(part)) {
        return Err(wrong(format!("unknown level {word:?}")));
    }
    // It writes whole URLs, and with them what may be a secret; what fails is told by whoever asked for it.
    let quiet = [level, "ureq=off", "ureq_proto=off"].join(",");
    quiet.parse::<Targets>().map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_is_refused() {
        for good in ["info", "WARN", "off", "info,edgewise_agent=debug", "warn,engine::load=trace"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "loud", "info,", "info,edgewise_agent", "edgewise_agent=loud"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn iot_edge_finds_severity_and_time_in_a_line() {
        let lines = tempfile::NamedTempFile::new().unwrap();
        let layer = fmt::layer().with_ansi(false).event_format(IotEdge).with_writer(lines.reopen().unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(model = "m", "busy");
        });
        let text = std::fs::read_to_string(lines.path()).unwrap();
        let (head, rest) = text.split_once(" +00:00 ").unwrap();
        assert!(head.starts_with("<4> 20") && head.len() == "<4> 2026-11-22 14:21:01.000".len(), "{text}");
        assert_eq!(rest, "edgewise_agent::log::tests: busy model=\"m\"\n");
    }

    #[test]
    fn the_level_changes_while_it_logs() {
        let (layer, handle) = reload::Layer::new(filter("warn").unwrap());
        let level = LogLevel(handle);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            level.set("debug").unwrap();
            assert!(tracing::enabled!(tracing::Level::DEBUG));
            assert!(level.set("loud").is_err());
            assert!(tracing::enabled!(tracing::Level::DEBUG));
        });
    }
}
