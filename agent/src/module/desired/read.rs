//! Reads the desired properties, section by section.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloud_sync::contract::{Collect, ModelSettings};
use cloud_sync::digest::Digest;
use cloud_sync::limits::{MAX_BUNDLE_BYTES, MAX_MODELS, MAX_PREFERRED};
use cloud_sync::name::{DeviceId, ModelName};
use cloud_sync::session::{Credentials, TlsFiles};
use cloud_sync::topic::Root;
use engine::{Optimization, Provider};
use serde_json::Value;

use super::fields::{Fields, boolean, entries, joined, mistake, several, share, small, text, whole};
use super::{Mistake, Registry, Route, WantedModel, Wishes};
use crate::config::value;
use crate::fetch::Source;
use crate::module::MAX_INTEGER;
use crate::module::merge::Object;
use crate::settings::{MAX_BATCH, MAX_DELAY, MAX_INSTANCES, MAX_QUEUE, MAX_THREADS};

/// Most routes: as many as models, and more than a device's sensors need.
const MAX_ROUTES: usize = 64;

/// Longest name of an input or output.
const MAX_ENDPOINT_BYTES: usize = 128;

/// Reads the desired properties, over what was wished before. At a start, that is what each section gave when it was last
/// without a mistake. Blocking: looks at the files that `registry` names.
pub fn read(desired: &Object, previous: &Wishes) -> (Wishes, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    let known = ["models", "routes", "collect", "registry", "logLevel"];
    let mut fields = Fields::new(desired, "", &known, &mut mistakes);
    let models = fields.nested("models", |value, path, mistakes| models(value, path, mistakes, previous));
    let routes = fields.nested("routes", routes);
    let collect = fields.nested("collect", collect);
    let registry = fields.nested("registry", registry);
    let log_level =
        fields.optional("logLevel", text(|level| crate::log::check(level).map(|()| level.to_owned())));

    let (models, unclear) = match models {
        Some(Some((models, unclear))) => (Some(models), unclear),
        Some(None) => (None, BTreeSet::new()),
        None => (previous.models.clone(), previous.unclear.clone()),
    };
    let wishes = Wishes {
        models,
        unclear,
        routes: routes.unwrap_or_else(|| previous.routes.clone()),
        collect: collect.unwrap_or(previous.collect),
        registry: registry.unwrap_or_else(|| previous.registry.clone()),
        log_level: log_level.unwrap_or_else(|| previous.log_level.clone()),
    };
    (wishes, mistakes)
}

type Models = (BTreeMap<ModelName, WantedModel>, BTreeSet<ModelName>);

fn models(value: &Value, path: &str, mistakes: &mut Vec<Mistake>, previous: &Wishes) -> Option<Models> {
    let Value::Object(object) = value else {
        mistakes.push(mistake(path, "must be an object"));
        return None;
    };
    let given = entries(object).count();
    if given > MAX_MODELS {
        mistakes.push(mistake(path, format!("there are {given} models, {MAX_MODELS} are possible")));
        return None;
    }
    let (mut wanted, mut unclear) = Models::default();
    for (name, value) in entries(object) {
        let path = joined(path, name);
        let name = match name.parse::<ModelName>() {
            Ok(name) => name,
            Err(error) => {
                mistakes.push(mistake(&path, error.to_string()));
                continue;
            }
        };
        let before = || previous.models.as_ref()?.get(&name).cloned();
        match model(value, &path, mistakes).or_else(before) {
            Some(model) => {
                wanted.insert(name, model);
            }
            None => {
                unclear.insert(name);
            }
        }
    }
    Some((wanted, unclear))
}

fn model(value: &Value, path: &str, mistakes: &mut Vec<Mistake>) -> Option<WantedModel> {
    let known = ["version", "digest", "source", "size", "attempt", "settings"];
    let mut fields = Fields::of(value, path, &known, mistakes)?;
    let version = fields.value("version", whole(1..=MAX_INTEGER));
    let digest = fields.value("digest", text(value::parsed::<Digest>));
    let source = fields.optional("source", text(value::parsed::<Source>));
    let size = fields.optional("size", whole(1..=MAX_BUNDLE_BYTES));
    let attempt = fields.optional("attempt", whole(0..=MAX_INTEGER));
    let settings = fields.nested("settings", settings);
    Some(WantedModel {
        version: version?,
        digest: digest?,
        source: source?.unwrap_or(Source::Registry),
        size: size?,
        attempt: attempt?.unwrap_or(0),
        settings: settings?.unwrap_or_default(),
    })
}

fn settings(value: &Value, path: &str, mistakes: &mut Vec<Mistake>) -> Option<ModelSettings> {
    let known = [
        "provider",
        "threads",
        "instances",
        "queue",
        "maxBatch",
        "maxDelay",
        "preferredBatch",
        "optimization",
        "arena",
        "collect",
    ];
    let mut fields = Fields::of(value, path, &known, mistakes)?;
    let provider = |name: &str| value::parsed::<Provider>(name).map(|_| name.to_owned());
    let provider = fields.optional("provider", text(provider));
    let threads = fields.optional("threads", small(0..=MAX_THREADS));
    let instances = fields.optional("instances", small(1..=MAX_INSTANCES));
    let queue = fields.optional("queue", small(1..=MAX_QUEUE));
    let max_batch = fields.optional("maxBatch", small(0..=MAX_BATCH));
    let max_delay = fields.optional("maxDelay", text(value::duration(Duration::ZERO..=MAX_DELAY)));
    let optimization = |name: &str| value::parsed::<Optimization>(name).map(|_| name.to_owned());
    let optimization = fields.optional("optimization", text(optimization));
    let arena = fields.optional("arena", boolean);
    let preferred = fields.optional("preferredBatch", several(MAX_PREFERRED, small(1..=MAX_BATCH)));
    let collect = fields.nested("collect", collect);
    Some(ModelSettings {
        provider: provider?,
        threads: threads?,
        instances: instances?,
        queue: queue?,
        max_batch: max_batch?,
        max_delay_us: max_delay?.map(|delay| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)),
        preferred_batch: preferred?,
        optimization: optimization?,
        arena: arena?,
        collect: collect?,
    })
}

/// What is left open is on, and all of it.
fn collect(value: &Value, path: &str, mistakes: &mut Vec<Mistake>) -> Option<Collect> {
    let mut fields = Fields::of(value, path, &["enabled", "rate"], mistakes)?;
    let (enabled, rate) = (fields.optional("enabled", boolean), fields.optional("rate", share));
    let all = Collect::default();
    Some(Collect { enabled: enabled?.unwrap_or(all.enabled), rate: rate?.unwrap_or(all.rate) })
}

fn routes(value: &Value, path: &str, mistakes: &mut Vec<Mistake>) -> Option<Vec<Route>> {
    let Value::Array(values) = value else {
        mistakes.push(mistake(path, "must be an array"));
        return None;
    };
    if values.len() > MAX_ROUTES {
        mistakes.push(mistake(path, format!("there are {} routes, {MAX_ROUTES} are possible", values.len())));
        return None;
    }
    let mut routes: Vec<Option<Route>> = Vec::new();
    for (at, value) in values.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let mut read = route(value, &path, mistakes);
        if read.is_some() && routes.contains(&read) {
            mistakes.push(mistake(&path, "stands there twice, and would answer twice"));
            read = None;
        }
        routes.push(read);
    }
    routes.into_iter().collect()
}

fn route(value: &Value, path: &str, mistakes: &mut Vec<Mistake>) -> Option<Route> {
    let mut fields = Fields::of(value, path, &["input", "model", "output"], mistakes)?;
    let input = fields.value("input", text(endpoint));
    let model = fields.value("model", text(value::parsed::<ModelName>));
    let output = fields.value("output", text(endpoint));
    Some(Route { input: input?, model: model?, output: output? })
}

fn endpoint(name: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=MAX_ENDPOINT_BYTES).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(name.to_owned());
    }
    Err(format!("{name:?} must be 1 to {MAX_ENDPOINT_BYTES} of A-Z, a-z, 0-9, '.', '_' and '-'"))
}

fn registry(value: &Value, path: &str, mistakes: &mut Vec<Mistake>) -> Option<Registry> {
    let known = [
        "broker",
        "root",
        "device",
        "username",
        "passwordFile",
        "authorities",
        "certificate",
        "key",
        "keepAlive",
        "insecureRemote",
    ];
    let mut fields = Fields::of(value, path, &known, mistakes)?;
    let broker = fields.value("broker", text(value::broker));
    let root = fields.optional("root", text(value::parsed::<Root>));
    let device = fields.optional("device", text(value::parsed::<DeviceId>));
    let username = fields.optional("username", text(|name| Ok(name.to_owned())));
    let password = fields.optional("passwordFile", text(value::password));
    let authorities = fields.optional("authorities", text(value::file));
    let certificate = fields.optional("certificate", text(value::file));
    let key = fields.optional("key", text(value::file));
    let keep_alive = fields.optional("keepAlive", text(value::duration(value::KEEP_ALIVE)));
    let insecure_remote = fields.optional("insecureRemote", boolean);

    let mut sound = fields.together("username", "passwordFile");
    sound &= fields.together("certificate", "key");
    if let (Some(broker), Some(insecure)) = (&broker, insecure_remote)
        && let Err(error) =
            value::encrypted(broker, insecure.unwrap_or(false), &joined(path, "insecureRemote"))
    {
        fields.wrong("broker", error);
        sound = false;
    }
    let credentials = username?.zip(password?).map(|(username, password)| Credentials { username, password });
    let tls = TlsFiles { authorities: authorities?, certificate: certificate?, key: key? };
    let (root, device, keep_alive) = (root?, device?, keep_alive?);
    insecure_remote?;
    sound.then_some(Registry { broker: broker?, root, device, credentials, tls, keep_alive })
}
