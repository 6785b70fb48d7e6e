//! The service side: what an operator does with the module through IoT Hub, and what comes out of the module.

use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

use super::hub::{Connected, Hub};
use super::packet::MAX_PACKET_BYTES;
use super::telemetry::Output;
use super::{Edge, methods, topic};
use crate::process::Failure;
use crate::site::PATIENCE;

impl Edge {
    /// Replaces the desired properties, as a manifest does; the module gets a patch with nulls. Gives the new version.
    pub fn set_desired(&self, desired: &Value) -> u64 {
        self.desire(|hub| hub.twin.replace_desired(desired))
    }

    /// Merges a patch into the desired properties; gives the new version.
    pub fn patch_desired(&self, patch: &Value) -> u64 {
        self.desire(|hub| hub.twin.patch_desired(patch))
    }

    /// Makes the module's identity anew: nothing is reported, and the versions begin again.
    pub fn recreate_twin(&self, desired: Value) {
        self.shared.with(|hub| hub.twin.recreate(desired));
    }

    /// The reported properties.
    pub fn reported(&self) -> Value {
        self.shared.with(|hub| hub.twin.reported().clone())
    }

    /// Waits until the reported properties are as they should be; gives them.
    pub fn wait_for_reported(&self, is_right: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let right = |hub: &mut Hub| Some(hub.twin.reported().clone()).filter(&is_right);
        self.wait(PATIENCE, right).ok_or_else(|| self.failure(&format!("reported is {}", self.reported())))
    }

    /// Calls a direct method; gives the status and the answer, as the caller gets them: 404 if the module does not listen,
    /// 504 if it doesn't answer in time.
    pub fn invoke(&self, method: &str, payload: &Value, timeout: Duration) -> Result<(i64, Value), Failure> {
        self.invoke_with(
            method,
            &if payload.is_null() { vec![] } else { payload.to_string().into_bytes() },
            timeout,
        )
    }

    /// As [`Edge::invoke`], with a payload that need not be JSON.
    pub fn invoke_with(
        &self,
        method: &str,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(i64, Value), Failure> {
        if payload.len() > methods::MAX_BYTES {
            return Err(format!("IoT Hub takes no payload of {} bytes", payload.len()));
        }
        let rid = request_id()?;
        let called = Instant::now();
        let send = |hub: &mut Hub| {
            // Who begins to listen while a call waits gets it a little later.
            let since = hub.hears_methods?;
            if since > called && since.elapsed() < hub.times.method_delay {
                return None;
            }
            hub.methods.begin(&rid);
            let topic = format!("$iothub/methods/POST/{method}/?$rid={rid}");
            hub.deliver(topic::METHODS, topic, payload.to_vec()).then_some(())
        };
        let connect_timeout = self.shared.with(|hub| hub.times.method_connect);
        if self.wait(connect_timeout, send).is_none() {
            return Ok((
                404,
                json!({"message": "the module is not connected or has no subscription to methods"}),
            ));
        }
        let answer = self.wait(timeout, |hub| hub.methods.answer(&rid));
        Ok(answer.unwrap_or_else(|| {
            self.shared.with(|hub| hub.methods.give_up(&rid));
            (504, Value::Null)
        }))
    }

    /// The answers that came when nobody waited any more: request id and status.
    pub fn late_answers(&self) -> Vec<(String, i64)> {
        self.shared.with(|hub| hub.methods.late.clone())
    }

    /// Routes a message of another module to an input.
    pub fn send_input(&self, input: &str, properties: &[(&str, &str)], body: &[u8]) -> Result<(), Failure> {
        self.send_to(Hub::input_topic(input, properties), body)
    }

    /// As [`Edge::send_input`], with a property bag as it is to stand in the topic; none with `None`.
    pub fn send_input_as(&self, input: &str, bag: Option<&str>, body: &[u8]) -> Result<(), Failure> {
        let bag = bag.map(|bag| format!("/{bag}")).unwrap_or_default();
        self.send_to(format!("{}{input}{bag}", topic::inputs().trim_end_matches('#')), body)
    }

    /// Inputs that the module has not acknowledged yet.
    pub fn waiting_inputs(&self) -> usize {
        self.shared.with(|hub| hub.waiting_inputs())
    }

    /// Waits until the module has acknowledged all inputs.
    pub fn wait_for_inputs(&self) -> Result<(), Failure> {
        let done = self.wait(PATIENCE, |hub| (hub.waiting_inputs() == 0).then_some(()));
        done.ok_or_else(|| self.failure(&format!("{} inputs are not acknowledged", self.waiting_inputs())))
    }

    /// All messages that came so far.
    pub fn outputs(&self) -> Vec<Output> {
        self.shared.with(|hub| hub.outputs.clone())
    }

    /// Waits until there are `count` messages of an output; gives all of them.
    pub fn wait_for_output(&self, name: &str, count: usize) -> Result<Vec<Output>, Failure> {
        let of = |hub: &Hub| -> Vec<Output> {
            hub.outputs.iter().filter(|output| output.name == name).cloned().collect()
        };
        let outputs = self.wait(PATIENCE, |hub| Some(of(hub)).filter(|outputs| outputs.len() >= count));
        outputs.ok_or_else(|| {
            let there = self.shared.with(|hub| of(hub).len());
            self.failure(&format!("{there} messages came from output {name:?}, not {count}"))
        })
    }

    /// Every CONNECT so far, and what became of it.
    pub fn connects(&self) -> Vec<Connected> {
        self.shared.with(|hub| hub.connects.clone())
    }

    /// Waits until there was a `count`th CONNECT that was let in and it has subscribed to all four filters.
    pub fn wait_for_connects(&self, count: usize) -> Result<Connected, Failure> {
        let connected = self.wait(PATIENCE, |hub| {
            let admitted: Vec<&Connected> = hub.connects.iter().filter(|connect| connect.code == 0).collect();
            let is_there = admitted.len() >= count && hub.is_connected() && hub.subscriptions().len() == 4;
            admitted.last().filter(|_| is_there).copied().cloned()
        });
        connected.ok_or_else(|| self.failure(&format!("not connected {count} times: {:?}", self.connects())))
    }

    /// Waits until something holds of the CONNECTs; gives them.
    pub fn wait_for(&self, is_right: impl Fn(&[Connected]) -> bool) -> Result<Vec<Connected>, Failure> {
        let right = |hub: &mut Hub| is_right(&hub.connects).then(|| hub.connects.clone());
        self.wait(PATIENCE, right).ok_or_else(|| self.failure(&format!("connections: {:?}", self.connects())))
    }

    /// The rules that were broken so far.
    pub fn violations(&self) -> Vec<String> {
        self.shared.with(|hub| hub.violations.clone())
    }

    /// Waits until a rule was broken whose text contains `text`, and forgets all that were broken.
    pub fn wait_for_violation(&self, text: &str) -> Result<String, Failure> {
        let found = self.wait(PATIENCE, |hub| {
            let found = hub.violations.iter().find(|violation| violation.contains(text)).cloned();
            found.inspect(|_| hub.violations.clear())
        });
        found.ok_or_else(|| self.failure(&format!("no rule was broken with {text:?}")))
    }

    fn desire(&self, change: impl FnOnce(&mut Hub) -> Value) -> u64 {
        self.shared.with(|hub| {
            let patch = change(hub);
            let version = hub.twin.desired_version();
            if !hub.faults.desired_is_silent {
                let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
                hub.deliver(topic::DESIRED, topic, patch.to_string().into_bytes());
            }
            version
        })
    }

    fn send_to(&self, topic: String, body: &[u8]) -> Result<(), Failure> {
        let bytes = topic.len() + body.len();
        if bytes > MAX_PACKET_BYTES {
            return Err(format!("edgeHub takes no message of {bytes} bytes"));
        }
        self.shared.with(|hub| hub.input(topic, body.to_vec()));
        Ok(())
    }

    fn failure(&self, what: &str) -> Failure {
        format!("after {PATIENCE:?}: {what}; broken rules: {:#?}", self.violations())
    }
}

/// A new id in the form of a GUID.
fn request_id() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "no randomness".to_owned())?;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default().to_owned());
    Ok(parts.join("-"))
}
