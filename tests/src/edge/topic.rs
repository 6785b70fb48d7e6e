//! Topics between a module and edgeHub: which filters there are, and what a module may publish to.

use super::{DEVICE, MODULE};
use crate::process::Failure;

/// Method calls.
pub(super) const METHODS: &str = "$iothub/methods/POST/#";
/// Changes of desired properties.
pub(super) const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
/// Answers to twin requests.
pub(super) const TWIN_ANSWERS: &str = "$iothub/twin/res/#";

/// The filter of inputs.
pub(super) fn inputs() -> String {
    format!("devices/{DEVICE}/modules/{MODULE}/inputs/#")
}

/// The filters that mean something, as they stand after a SUBSCRIBE to `filter`.
pub(super) fn canonical(filter: &str) -> Option<String> {
    let inputs = inputs();
    let is_known = [METHODS, DESIRED, TWIN_ANSWERS, &inputs].contains(&filter);
    if filter == format!("devices/{DEVICE}/modules/{MODULE}/#") {
        Some(inputs)
    } else {
        is_known.then(|| filter.to_owned())
    }
}

/// What a module publishes.
pub(super) enum ToHub<'a> {
    /// An output's message with its property bag.
    Telemetry { bag: &'a str },
    /// A wish to read the twin.
    TwinGet { rid: &'a str },
    /// Reported properties.
    TwinPatch { rid: &'a str },
    /// The answer to a method call.
    MethodAnswer { status: &'a str, rid: &'a str },
    /// Nothing that edgeHub knows.
    Unknown,
}

/// Reads a topic; an error closes the connection.
pub(super) fn parse(topic: &str) -> Result<ToHub<'_>, Failure> {
    if topic.contains(['+', '#']) {
        return Err(format!("a PUBLISH to {topic:?}, which is a filter"));
    }
    if let Some(bag) = topic.strip_prefix(&format!("devices/{DEVICE}/modules/{MODULE}/messages/events/")) {
        let bag = bag.strip_suffix('/').unwrap_or(bag);
        let bag = bag.strip_prefix('?').unwrap_or(bag);
        return Ok(if bag.contains('/') { ToHub::Unknown } else { ToHub::Telemetry { bag } });
    }
    if topic.starts_with("$iothub/twin/") {
        let get = topic.strip_prefix("$iothub/twin/GET").and_then(rid);
        let patch = topic.strip_prefix("$iothub/twin/PATCH/properties/reported").and_then(rid);
        return match (get, patch) {
            (Some(rid), _) => Ok(ToHub::TwinGet { rid }),
            (_, Some(rid)) => Ok(ToHub::TwinPatch { rid }),
            _ => Err(format!("a PUBLISH to the malformed twin topic {topic:?}")),
        };
    }
    let answer = topic.strip_prefix("$iothub/methods/res/").and_then(|rest| {
        let (status, rest) = rest.split_at_checked(rest.find('/')?)?;
        Some(ToHub::MethodAnswer { status, rid: rid(rest)? })
    });
    Ok(answer.unwrap_or(ToHub::Unknown))
}

fn rid(text: &str) -> Option<&str> {
    text.strip_prefix("/?$rid=").filter(|rid| !rid.is_empty() && !rid.contains(['/', '&', '?']))
}
