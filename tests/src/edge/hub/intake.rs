//! What the module publishes, and what edgeHub makes of it.

use std::time::Instant;

use serde_json::json;

use super::Hub;
use crate::edge::connect::End;
use crate::edge::packet::Publish;
use crate::edge::telemetry;
use crate::edge::topic::{self, ToHub};
use crate::edge::twin::Refused;
use crate::process::Failure;

impl Hub {
    /// Takes a message from the module; an error closes the connection.
    pub(super) fn publish(&mut self, number: u64, publish: Publish) -> Result<(), Failure> {
        let to = topic::parse(&publish.topic)?;
        let (qos, id) = (publish.qos, publish.id);
        match qos {
            0 => self.violate(format!("PUBLISH to {} with QoS 0", publish.topic)),
            1 => {}
            _ => return Err(format!("PUBLISH to {} with QoS {qos}", publish.topic)),
        }
        if publish.retain {
            self.violate(format!("PUBLISH to {} with RETAIN", publish.topic));
        }
        match to {
            ToHub::Telemetry { .. } => {
                if take(&mut self.faults.cut_before_storing) {
                    self.end(number, End::Cut);
                    return Ok(());
                }
                self.store(publish, None);
                if take(&mut self.faults.cut_before_puback) {
                    self.end(number, End::Cut);
                    return Ok(());
                }
            }
            ToHub::TwinGet { rid } => self.twin_request(number, rid, None),
            ToHub::TwinPatch { rid } => self.twin_request(number, rid, Some(&publish.body)),
            ToHub::MethodAnswer { status, rid } => {
                let answered = self.methods.answered(number, rid, status, &publish.body, publish.duplicate);
                self.violate_if(answered);
            }
            ToHub::Unknown => self.violate(format!("PUBLISH to {}, which is dropped", publish.topic)),
        }
        // Behind the answer to a twin request: edgeHub sends that first.
        if let Some(connection) = self.open.get_mut(&number).filter(|_| qos > 0) {
            let acknowledged = connection.acknowledge(id, self.faults.hold_pubacks);
            self.violate_if(acknowledged);
        }
        Ok(())
    }

    /// Stores an output's message; `kind` is what edgeHub says of one that it sends itself.
    pub(super) fn store(&mut self, publish: Publish, kind: Option<&str>) {
        let topic = publish.topic.clone();
        let Ok(ToHub::Telemetry { bag }) = topic::parse(&topic) else { return };
        match telemetry::read(bag, publish) {
            Ok((mut output, wrong)) => {
                wrong.iter().for_each(|wrong| self.violate(format!("PUBLISH to {topic}: {wrong}")));
                output.properties.extend(kind.map(|kind| ("iothub-MessageType".to_owned(), kind.to_owned())));
                self.outputs.push(output);
            }
            Err(why) => self.violate(format!("PUBLISH to {topic} is dropped: {why}")),
        }
    }

    /// Answers a read of the twin, or a change of the reported properties.
    fn twin_request(&mut self, number: u64, rid: &str, patch: Option<&[u8]>) {
        let Some(connection) = self.open.get_mut(&number) else { return };
        if !connection.delayed.is_empty() {
            self.violate(format!("the twin request {rid} while another waits for its answer"));
        }
        if self.faults.twin_is_silent {
            return;
        }
        let (mut body, mut version) = (String::new(), String::new());
        let status = match (self.faults.twin_status, patch) {
            (Some(status), _) => status,
            (None, None) => {
                let empty = json!({"desired": {}, "reported": {}});
                let twin = if self.faults.twin_is_empty { empty } else { self.twin.document() };
                body = twin.to_string();
                200
            }
            (None, Some(patch)) => match self.twin.report(patch) {
                Ok(()) => {
                    version = format!("&$version={}", self.twin.reported_version());
                    204
                }
                Err(Refused(status, why)) => {
                    self.violate(why);
                    status
                }
            },
        };
        if !self.faults.twin_answers_have_versions {
            version.clear();
        }
        let topic = format!("$iothub/twin/res/{status}/?$rid={rid}{version}");
        if self.faults.twin_delay.is_zero() {
            if !self.deliver(topic::TWIN_ANSWERS, topic, body.into_bytes()) {
                let filter = topic::TWIN_ANSWERS;
                self.violate(format!("the twin request {rid} without a subscription to {filter}"));
            }
        } else if let Some(connection) = self.open.get_mut(&number) {
            let due = Instant::now() + self.faults.twin_delay;
            connection.delayed.push_back((due, topic, body.into_bytes()));
        }
    }
}

/// Counts one down; whether there was one.
fn take(left: &mut u32) -> bool {
    let is_left = *left > 0;
    *left = left.saturating_sub(1);
    is_left
}
