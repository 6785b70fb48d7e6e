//! Local MQTT routes: what is published on one topic is scored and published on another.

use cloud_sync::name::ModelName;
use cloud_sync::session::BrokerUrl;

use super::Mistake;
use super::layers::RouteSection;
use super::reader::Reader;
use super::value::{boolean, broker, encrypted, one_of, parsed};
use crate::body::Format;

/// The name of the sections.
pub(super) const SECTION: &str = "route";

/// The keys of a section.
pub(super) const KEYS: [&str; 7] = ["broker", "format", "input", "insecure_remote", "model", "output", "qos"];

/// Longest topic: AWS IoT Core refuses longer ones.
const MAX_TOPIC_BYTES: usize = 256;

/// From an input topic through a model to an output topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The local broker.
    pub broker: BrokerUrl,
    /// What to listen to: a topic filter, which may hold `+` and `#`.
    pub input: String,
    /// What scores it.
    pub model: ModelName,
    /// Where the answer goes: a topic that the input filter does not match.
    pub output: String,
    /// MQTT's quality of service of both: 0 or 1. 0 is the default: with 1, a broker without TCP_NODELAY, as
    /// Mosquitto is by default, adds 44 ms to every answer.
    pub qos: u8,
    /// The form of the messages and of the answers.
    pub format: Format,
}

impl Route {
    /// Whether a message on `topic` is one that this route scores.
    pub fn takes(&self, topic: &str) -> bool {
        matches(&self.input, topic)
    }
}

/// Reads one section; `None`: something in it is wrong, and kept in `mistakes`.
pub(super) fn read(section: &RouteSection, mistakes: &mut Vec<Mistake>) -> Option<Route> {
    let key = |last: &str| format!("{}.{last}", section.name);
    let mut reader = Reader::new(&section.entries, section.place.clone());
    let broker = reader.value(&key("broker"), broker);
    let input = reader.value(&key("input"), filter);
    let model = reader.value(&key("model"), parsed::<ModelName>);
    let output = reader.value(&key("output"), topic);
    let qos = reader.optional(&key("qos"), one_of(&[("0", 0), ("1", 1)]));
    let format = reader.optional(&key("format"), one_of(&Format::NAMES));
    let insecure = reader.optional(&key("insecure_remote"), boolean);
    if let (Some(broker), Some(insecure)) = (&broker, insecure)
        && let Err(what) = encrypted(broker, insecure.unwrap_or(false), &key("insecure_remote"))
    {
        reader.wrong(&key("broker"), what);
    }
    if let (Some(input), Some(output)) = (&input, &output)
        && matches(input, output)
    {
        let what = format!("{output:?} is matched by input {input:?}: the route would feed itself for ever");
        reader.wrong(&key("output"), what);
    }
    mistakes.extend(reader.into_mistakes());
    Some(Route {
        broker: broker?,
        input: input?,
        model: model?,
        output: output?,
        qos: qos?.unwrap_or(0),
        format: format?.unwrap_or_default(),
    })
}

fn filter(text: &str) -> Result<String, String> {
    let levels: Vec<&str> = text.split('/').collect();
    let misplaced = levels.iter().enumerate().any(|(at, level)| {
        let last = at + 1 == levels.len();
        (level.contains('#') && (*level != "#" || !last)) || (level.contains('+') && *level != "+")
    });
    if misplaced {
        return Err(format!("{text:?} is no topic filter: '+' and '#' fill a level, '#' only the last"));
    }
    plain(text)
}

fn topic(text: &str) -> Result<String, String> {
    if text.contains(['+', '#']) {
        return Err(format!("{text:?} must be one topic, without '+' and '#'"));
    }
    plain(text)
}

fn plain(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_TOPIC_BYTES || text.contains('\0') {
        return Err(format!("must be a topic of 1 to {MAX_TOPIC_BYTES} bytes without NUL"));
    }
    Ok(text.to_owned())
}

/// Whether a filter matches a topic, by the rules of MQTT 3.1.1 §4.7.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, given) if Some(level) == given => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (pattern, topic) in
            [("a/b", "a/b"), ("a/+", "a/b"), ("#", "a/b"), ("a/#", "a"), ("a/#", "a/b/c"), ("+/+", "/a")]
        {
            assert!(matches(pattern, topic), "{pattern} {topic}");
        }
        for (pattern, topic) in
            [("a/b", "a/c"), ("a/+", "a"), ("+", "a/b"), ("#", "$SYS/x"), ("a", "a/b"), ("a/b", "a")]
        {
            assert!(!matches(pattern, topic), "{pattern} {topic}");
        }
    }

    #[test]
    fn misplaced_wildcards_are_refused() {
        for bad in ["", "a/#/b", "a#", "a+/b", "a/\0"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        assert!(topic("a/+").is_err());
        assert_eq!(filter("+/a/#"), Ok("+/a/#".to_owned()));
    }
}
