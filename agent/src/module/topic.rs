//! edgeHub's topics, both ways: what a topic says, and the topic that says something.
//!
//! Invariants:
//! - A topic that is built here is one that edgeHub takes: properties are percent-encoded and stand once, and a topic
//!   fits into MQTT.
//! - Any topic that comes in either means something here or is `None`; nothing in it is an error.

mod properties;

use cloud_sync::topic::Qos;
use percent_encoding::percent_decode_str;

pub use properties::{CONTENT_TYPE, CORRELATION_ID, MESSAGE_ID, Properties};

/// Longest topic that MQTT has, in bytes.
pub const MAX_TOPIC_BYTES: usize = 65_535;

/// The topics of one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// `devices/DEVICE/modules/MODULE/`.
    own: String,
}

/// What a topic that came in says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// A message for an input; it is to be acknowledged.
    Input {
        /// The input.
        name: String,
        /// What was said beside the body.
        properties: Properties,
    },
    /// A direct method is called.
    Method {
        /// The method.
        name: String,
        /// To be given back with the answer, as it is.
        request_id: String,
    },
    /// The answer to a read or a write of the twin.
    TwinAnswer {
        /// As in HTTP.
        status: u16,
        /// The request's.
        request_id: String,
    },
    /// The desired properties have changed.
    DesiredPatch {
        /// Their new version.
        version: Option<u64>,
    },
}

/// A topic that MQTT can't carry: the properties are too many or too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the properties of a message make a topic of {0} bytes, {MAX_TOPIC_BYTES} are possible")]
pub struct TopicTooLong(pub usize);

impl Topics {
    /// The topics of a module, by the ids of its device and its own.
    pub fn new(device: &str, module: &str) -> Self {
        Self { own: format!("devices/{device}/modules/{module}/") }
    }

    /// What a module listens to. edgeHub and IoT Hub know exactly these filters.
    pub fn subscriptions(&self) -> Vec<(String, Qos)> {
        let filters = [
            format!("{}inputs/#", self.own),
            format!("{METHODS}#"),
            format!("{DESIRED}#"),
            format!("{TWIN_ANSWERS}#"),
        ];
        filters.into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect()
    }

    /// What a topic says; `None` for one that is not ours.
    pub fn parse(&self, topic: &str) -> Option<Inbound> {
        if let Some(input) = topic.strip_prefix(&self.own).and_then(|rest| rest.strip_prefix("inputs/")) {
            let (name, bag) = input.split_once('/').unwrap_or((input, ""));
            let properties = Properties::decode(bag.trim_end_matches('/'));
            return (!name.is_empty()).then(|| Inbound::Input { name: name.to_owned(), properties });
        }
        if let Some(method) = topic.strip_prefix(METHODS) {
            let (name, query) = method.split_once('/')?;
            let name = percent_decode_str(name).decode_utf8().ok()?.into_owned();
            return Some(Inbound::Method { name, request_id: request_id(query)? });
        }
        if let Some(answer) = topic.strip_prefix(TWIN_ANSWERS) {
            let (status, query) = answer.split_once('/')?;
            let (status, request_id) = (status.parse().ok()?, request_id(query)?);
            return Some(Inbound::TwinAnswer { status, request_id });
        }
        let query = topic.strip_prefix(DESIRED)?;
        Some(Inbound::DesiredPatch { version: version(query) })
    }

    /// Where a message goes out; the output is one of its properties.
    ///
    /// # Errors
    /// The properties are too long for a topic.
    pub fn event(&self, properties: &Properties) -> Result<String, TopicTooLong> {
        let topic = format!("{}messages/events/{}", self.own, properties.encode());
        if topic.len() > MAX_TOPIC_BYTES { Err(TopicTooLong(topic.len())) } else { Ok(topic) }
    }
}

/// Where a direct method is answered.
pub fn method_answer(status: u16, request_id: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={request_id}")
}

/// Where the twin is asked for.
pub fn twin_read(request_id: &str) -> String {
    format!("$iothub/twin/GET/?$rid={request_id}")
}

/// Where a patch of the reported properties goes.
pub fn twin_write(request_id: &str) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={request_id}")
}

const METHODS: &str = "$iothub/methods/POST/";
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/";
const TWIN_ANSWERS: &str = "$iothub/twin/res/";

/// The request id in `?$rid=…`, as it stands there: it is given back as it is.
fn request_id(query: &str) -> Option<String> {
    // No topic that is published may hold a wildcard, so neither may an id that comes back in one.
    let usable = |id: &&str| !id.is_empty() && !id.contains(['+', '#', '\0']);
    argument(query, "$rid").filter(usable).map(str::to_owned)
}

fn version(query: &str) -> Option<u64> {
    argument(query, "$version")?.parse().ok()
}

fn argument<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    let arguments = query.strip_prefix('?').unwrap_or(query).split('&');
    arguments.filter_map(|argument| argument.split_once('=')).find(|(name, _)| *name == key).map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("edge-dev-01", "inferAgent")
    }

    #[test]
    fn the_subscriptions_are_those_that_edge_hub_knows() {
        let filters: Vec<String> = topics().subscriptions().into_iter().map(|(filter, _)| filter).collect();
        assert_eq!(
            filters,
            [
                "devices/edge-dev-01/modules/inferAgent/inputs/#",
                "$iothub/methods/POST/#",
                "$iothub/twin/PATCH/properties/desired/#",
                "$iothub/twin/res/#",
            ]
        );
        assert!(topics().subscriptions().iter().all(|(_, qos)| *qos == Qos::AtLeastOnce));
    }

    #[test]
    fn an_input_carries_its_properties() {
        let topic = "devices/edge-dev-01/modules/inferAgent/inputs/readings/\
                     %24.cdid=edge-dev-01&%24.cmid=sensor&%24.cid=corr%231&%24.ct=application%2Fjson&a%26b%3Dc=1+1&null";
        let Some(Inbound::Input { name, properties }) = topics().parse(topic) else { panic!() };
        assert_eq!(name, "readings");
        assert_eq!(properties.correlation_id(), Some("corr#1"));
        assert_eq!(properties.get("$.ct"), Some("application/json"));
        assert_eq!(properties.message_id(), None);
        let user: Vec<_> = properties.user().collect();
        assert_eq!(user, [("a&b=c", Some("1+1")), ("null", None)]);
    }

    #[test]
    fn an_input_needs_no_properties() {
        for tail in ["readings", "readings/", "readings//"] {
            let topic = format!("devices/edge-dev-01/modules/inferAgent/inputs/{tail}");
            let (name, properties) = ("readings".to_owned(), Properties::default());
            assert_eq!(topics().parse(&topic), Some(Inbound::Input { name, properties }), "{tail}");
        }
    }

    #[test]
    fn methods_and_the_twin_are_told_apart() {
        let method = Inbound::Method { name: "log-level".to_owned(), request_id: "4%2F-a".to_owned() };
        assert_eq!(topics().parse("$iothub/methods/POST/log-level/?$rid=4%2F-a"), Some(method));
        assert_eq!(method_answer(200, "4%2F-a"), "$iothub/methods/res/200/?$rid=4%2F-a");

        let answer = |status| Some(Inbound::TwinAnswer { status, request_id: "b-1".to_owned() });
        assert_eq!(topics().parse("$iothub/twin/res/204/?$rid=b-1&$version=7"), answer(204));
        assert_eq!(topics().parse("$iothub/twin/res/200/?$rid=b-1"), answer(200));

        let patch = |version| Some(Inbound::DesiredPatch { version });
        assert_eq!(topics().parse("$iothub/twin/PATCH/properties/desired/?$version=12"), patch(Some(12)));
        assert_eq!(topics().parse("$iothub/twin/PATCH/properties/desired/"), patch(None));
        assert_eq!(twin_read("b-2"), "$iothub/twin/GET/?$rid=b-2");
        assert_eq!(twin_write("b-3"), "$iothub/twin/PATCH/properties/reported/?$rid=b-3");
    }

    #[test]
    fn what_is_not_ours_or_makes_no_sense_says_nothing() {
        for topic in [
            "",
            "devices/edge-dev-01/modules/inferAgent/inputs/",
            "devices/edge-dev-01/modules/other/inputs/readings",
            "devices/edge-dev-01/modules/inferAgentx/inputs/readings",
            "devices/edge-dev-01/modules/inferAgent/messages/events/",
            "$iothub/methods/POST/ping",
            "$iothub/methods/POST/ping/?$rid=",
            "$iothub/methods/POST/ping/?$rid=a+b",
            "$iothub/methods/POST/%ff/?$rid=1",
            "$iothub/twin/res/ok/?$rid=1",
            "$iothub/twin/res/99999/?$rid=1",
            "$iothub/twin/res/200/?$version=1",
            "$iothub/twin/GET/?$rid=1",
        ] {
            assert_eq!(topics().parse(topic), None, "{topic}");
        }
    }

    #[test]
    fn a_message_says_its_output_and_properties() {
        let mut properties = Properties::of_output("detections");
        for (key, value) in [("model", "yolo v8 ä/€"), ("empty", ""), ("a&b=c", "50%+#?")] {
            properties.set(key, value);
        }
        properties.set_content("application/json", Some("utf-8"));
        properties.set(MESSAGE_ID, "id 1/+&=");
        properties.set(CORRELATION_ID, "corr#1");
        assert_eq!(
            topics().event(&properties).unwrap(),
            "devices/edge-dev-01/modules/inferAgent/messages/events/\
             %24.on=detections&%24.mid=id%201%2F%2B%26%3D&%24.cid=corr%231&%24.ct=application%2Fjson&%24.ce=utf-8\
             &a%26b%3Dc=50%25%2B%23%3F&empty=&model=yolo%20v8%20%C3%A4%2F%E2%82%AC"
        );
    }

    #[test]
    fn a_topic_that_mqtt_cannot_carry_is_refused() {
        let mut properties = Properties::default();
        properties.set("blanks", " ".repeat(MAX_TOPIC_BYTES / 3).as_str());
        assert!(topics().event(&properties).is_err());
    }
}
