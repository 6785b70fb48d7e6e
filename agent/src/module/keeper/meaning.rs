//! What the twin's wishes mean for the parts: which models, which registry, which routes. Pure.
//!
//! Invariant: what makes no sense is never taken for "nothing": who cannot say what is to run, or where rows go, changes
//! neither.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::deploy::Target;
use crate::deploy::driver::Models;
use crate::link::{Registry, Uplink};
use crate::module::desired::{Mistake, Route, WantedModel, Wishes};
use crate::module::merge::Object;

/// What holds where the twin says nothing.
pub(super) struct Configured {
    /// The registry; it has no broker where there is none.
    pub(super) registry: Registry,
    /// What is logged.
    pub(super) log_level: String,
}

impl Configured {
    /// The registry that is wanted.
    pub(super) fn uplink(&self, wishes: &Wishes, desired: &Object) -> Uplink {
        let configured = &self.registry;
        match wishes.registry.clone() {
            Some(wanted) => {
                let mut cloud = configured.cloud.clone();
                cloud.broker = Some(wanted.broker);
                cloud.credentials = wanted.credentials;
                cloud.tls = wanted.tls;
                cloud.root = wanted.root.unwrap_or(cloud.root);
                cloud.keep_alive = wanted.keep_alive.unwrap_or(cloud.keep_alive);
                let device = wanted.device.unwrap_or_else(|| configured.device.clone());
                Uplink::Registry(Box::new(Registry { device, cloud }))
            }
            // The file of a password that is not there yet, say.
            None if desired.contains_key("registry") => Uplink::Unclear,
            None if configured.cloud.broker.is_some() => Uplink::Registry(Box::new(configured.clone())),
            None => Uplink::None,
        }
    }
}

/// The models that are wanted, or who says so.
pub(super) fn models(wishes: &Wishes, desired: &Object, uplink: &Uplink) -> Models {
    let target = |wanted: &WantedModel| Target {
        version: wanted.version,
        digest: wanted.digest,
        size: wanted.size,
        source: wanted.source.clone(),
        settings: wanted.settings.clone(),
        deployment: wanted.attempt,
    };
    match (&wishes.models, uplink) {
        (Some(models), _) => {
            Models::These(models.iter().map(|(name, wanted)| (name.clone(), target(wanted))).collect())
        }
        (None, _) if desired.contains_key("models") => Models::AsBefore,
        (None, Uplink::Registry(_)) => Models::OfRegistry,
        (None, Uplink::Unclear) => Models::AsBefore,
        // Where nobody can say what is to run, nothing is.
        (None, Uplink::None) => Models::These(BTreeMap::new()),
    }
}

/// The routes that are wanted.
pub(super) fn routes(wishes: &Wishes) -> Arc<[Route]> {
    wishes.routes.clone().unwrap_or_default().into()
}

/// Takes over the sections of `desired` in which nothing is wrong.
pub(super) fn keep_sound(sound: &mut Object, desired: &Object, mistakes: &[Mistake]) {
    let is_wrong = |key: &str| {
        mistakes.iter().any(|mistake| {
            mistake.path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    };
    sound.retain(|key, _| desired.contains_key(key) || is_wrong(key));
    for (key, section) in desired.iter().filter(|(key, _)| !is_wrong(key)) {
        sound.insert(key.clone(), section.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::module::desired;

    fn object(value: serde_json::Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn configured() -> Configured {
        let sources = crate::config::Sources { host_name: Some("d".to_owned()), ..Default::default() };
        let config = crate::config::load(&sources).config.unwrap();
        let registry = Registry { device: config.device, cloud: config.cloud };
        Configured { registry, log_level: config.log.level }
    }

    /// What a start makes of a document, of which `sound` is known to have been right.
    fn at_start(sound: &Object, desired: &Object) -> (Uplink, Models) {
        let (before, _) = desired::read(sound, &Wishes::default());
        let (wishes, _) = desired::read(desired, &before);
        let uplink = configured().uplink(&wishes, desired);
        let models = models(&wishes, desired, &uplink);
        (uplink, models)
    }

    #[test]
    fn what_can_not_be_read_at_a_start_unloads_nothing_and_sends_no_row_elsewhere() {
        let registry =
            json!({"broker": "mqtts://broker", "username": "u", "passwordFile": "/nowhere/password"});
        let desired = object(json!({ "registry": registry }));
        assert_eq!(at_start(&desired, &desired), (Uplink::Unclear, Models::AsBefore));
        let desired = object(json!({"models": 7}));
        assert_eq!(at_start(&Object::new(), &desired), (Uplink::None, Models::AsBefore));
        let nothing = Models::These(BTreeMap::new());
        assert_eq!(at_start(&Object::new(), &Object::new()), (Uplink::None, nothing));
        let desired = object(json!({"registry": {"broker": "mqtts://broker"}}));
        assert!(matches!(at_start(&Object::new(), &desired), (Uplink::Registry(_), Models::OfRegistry)));
    }

    #[test]
    fn a_mistake_holds_back_its_own_section_alone() {
        let mut sound = object(json!({"collect": {"rate": 1.0}, "models": {"a": 1}, "gone": 1}));
        let desired = object(json!({"collect": {"rate": 7}, "models": {"b": 2}, "collector": 1}));
        let mistake = Mistake { path: "collect.rate".to_owned(), error: String::new() };
        keep_sound(&mut sound, &desired, &[mistake]);
        assert_eq!(sound, object(json!({"collect": {"rate": 1.0}, "models": {"b": 2}, "collector": 1})));
    }
}
