//! The agent's configuration: every value typed and checked, and where each comes from.
//!
//! Invariants:
//! - `defaults.toml` names every key that there is; a later source wins: defaults < file < environment < flags.
//! - All mistakes are reported at once (of a file, the first hundred), each with its key and place; a [`Config`] exists only if there is none.
//! - Environment, host name and the machine are handed in, so that a configuration depends on nothing but its [`Sources`] and
//!   the files that they name.
//! - No secret is in an [`Entry`] or in a [`Mistake`]: passwords stand in files of their own.

mod board;
mod cloud;
mod layers;
mod mistake;
mod reader;
mod route;
mod trace;
pub(crate) mod value;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_sync::contract::Collect;
use cloud_sync::limits;
use cloud_sync::name::{DeviceId, ModelName};
use engine::{LoadOptions, Optimization, Provider, Tuning};

pub use cloud::Cloud;
pub(crate) use mistake::nearest;
pub use mistake::{ConfigError, Mistake, Place};
pub use route::Route;
pub use trace::Trace;
pub(crate) use value::in_units;

use crate::board::Board;
use crate::capture::Waiting;
use crate::log::Format;
use crate::settings::{Batching, MAX_BATCH, MAX_DELAY, MAX_INSTANCES, MAX_QUEUE, MAX_THREADS, Settings};
use layers::Layers;
use reader::Reader;

/// The defaults and the manual of every key, as TOML.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// The file that is read where none is named.
pub const STANDARD_FILE: &str = "/etc/edgewise/agent.toml";

/// All that a configuration is made of, beside the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if there is one; it must be readable then.
    pub file: Option<PathBuf>,
    /// Environment variables; those that don't begin with `EDGEWISE_` are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags that were given.
    pub flags: Vec<Flag>,
    /// The machine's host name.
    pub host_name: Option<String>,
    /// Describes the machine whose data directory is this one; without it nothing is known of it.
    pub board: Option<fn(&Path) -> Board>,
}

/// A flag that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag, with its dashes.
    pub name: &'static str,
    /// The key.
    pub key: &'static str,
    /// The value that was given.
    pub value: String,
}

/// A key, its effective value as text, and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, such as `http.listen` or `route[1].input`.
    pub key: String,
    /// The value; empty where it is not set.
    pub value: String,
    /// Where it comes from.
    pub place: Place,
}

/// What [`load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// Every key, also where its value is wrong.
    pub entries: Vec<Entry>,
    /// The configuration, or all that is wrong with it.
    pub config: Result<Config, ConfigError>,
    /// The machine, as far as it is known.
    pub board: Board,
}

/// The configuration of an agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name under which the cloud knows this device.
    pub device: DeviceId,
    /// The directory in which the agent keeps everything.
    pub data: PathBuf,
    /// The link to the cloud.
    pub cloud: Cloud,
    /// The scoring API.
    pub http: Http,
    /// How models are run.
    pub engine: Engine,
    /// What is captured where the cloud says nothing else.
    pub collect: Collect,
    /// How captured requests may wait for the disk.
    pub capture: Waiting,
    /// Most disk that captured rows may take, in bytes.
    pub spool_max_bytes: u64,
    /// Most disk that models may take, in bytes.
    pub vault_max_bytes: u64,
    /// Longest time that a captured row waits for others on a good link.
    pub upload_interval: Duration,
    /// Where traces go.
    pub trace: Trace,
    /// What is logged, and how.
    pub log: Log,
    /// How it signs in with edgeHub, as a module of Azure IoT Edge.
    pub module: Module,
    /// Local MQTT routes.
    pub routes: Vec<Route>,
    /// Bundles to serve without a cloud.
    pub local: Vec<PathBuf>,
}

/// The scoring API.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where it listens: on loopback, or anywhere if that was asked for explicitly.
    pub listen: SocketAddr,
    /// Where it listens besides, for those who look for gRPC there.
    pub grpc: Grpc,
    /// The socket in the file system at which it listens, too.
    pub socket: Option<PathBuf>,
    /// The file of keys, of which a caller needs one; `None` where nobody is asked.
    pub keys: Option<PathBuf>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// The model that answers at `/score`; `None` for the only one that serves.
    pub score_model: Option<ModelName>,
    /// Web origins whose pages may call `/score`; `*` for all.
    pub cors_origins: Vec<String>,
}

/// Where gRPC is taken, besides where HTTP is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grpc {
    /// Nowhere.
    Nowhere,
    /// There, if nobody else is.
    IfFree(SocketAddr),
    /// There.
    At(SocketAddr),
}

/// How models are run, where the cloud says nothing else.
#[derive(Debug, Clone)]
pub struct Engine {
    /// What shall run them.
    pub provider: Provider,
    /// Threads within one score; 0 is one for each core that the agent may use.
    pub threads: u32,
    /// Workers of each model, each with the model loaded.
    pub instances: u32,
    /// Requests of one model that may wait.
    pub queue: u32,
    /// Which requests of one model are scored as one.
    pub batching: Batching,
    /// How ONNX Runtime prepares and runs them.
    pub tuning: Tuning,
    /// The ONNX Runtime library; `None` to look for it.
    pub onnxruntime: Option<PathBuf>,
    /// Longest time from request to answer.
    pub timeout: Duration,
}

/// How the agent signs in with edgeHub, as a module of Azure IoT Edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// The port of edgeHub's MQTT head.
    pub port: u16,
    /// How long one token is good.
    pub token_lifetime: Duration,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Level and directives, as `info,edgewise_agent=debug`.
    pub level: String,
    /// Text or JSON.
    pub format: Format,
}

/// Lays the sources over each other and reads the result.
pub fn load(sources: &Sources) -> Loaded {
    let Layers { mut entries, routes, mut mistakes } = Layers::read(sources);
    name_after_host(&mut entries, sources.host_name.as_deref());
    let data = entries.iter().find(|entry| entry.key == "data").map(|entry| PathBuf::from(&entry.value));
    let board = sources.board.zip(data).map(|(describe, data)| describe(&data)).unwrap_or_default();
    board::fill(&mut entries, &board);

    let mut reader = Reader::new(&entries, Place::Default);
    let config = read(&mut reader);
    mistakes.extend(reader.into_mistakes());
    let read_routes: Vec<Route> =
        routes.iter().filter_map(|section| route::read(section, &mut mistakes)).collect();

    entries.extend(routes.into_iter().flat_map(|section| section.entries));
    for entry in &mut entries {
        entry.value = mistake::without_credentials(&entry.value);
    }
    let config = match config {
        Some(config) if mistakes.is_empty() => Ok(Config { routes: read_routes, ..config }),
        _ => Err(ConfigError(mistakes)),
    };
    Loaded { entries, config, board }
}

impl Config {
    /// How a model is run of which the cloud says nothing.
    pub fn settings(&self) -> Settings {
        Settings {
            provider: self.engine.provider,
            threads: self.engine.threads,
            instances: self.engine.instances,
            queue: self.engine.queue,
            batching: self.engine.batching.clone(),
            tuning: self.engine.tuning,
            collect: None,
        }
    }

    /// How a model with these settings is loaded here.
    pub fn load_options(&self, settings: &Settings) -> LoadOptions {
        LoadOptions {
            provider: settings.provider,
            threads: settings.threads as usize,
            onnxruntime: self.engine.onnxruntime.clone(),
            tuning: settings.tuning,
        }
    }

    /// An agent without a cloud and without a bundle has nothing to do.
    ///
    /// # Errors
    /// Neither is there; says how to give one.
    pub fn has_something_to_serve(&self) -> Result<(), ConfigError> {
        if self.cloud.broker.is_some() || !self.local.is_empty() {
            return Ok(());
        }
        let what =
            "nothing to serve: name the cloud's broker (--cloud mqtt://HOST), or a bundle (--local PATH)";
        Err(ConfigError(vec![Mistake::new("cloud.broker", &Place::Default, what)]))
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Reads every key; the routes have sections of their own. `None`: something is wrong, and kept in `reader`.
fn read(reader: &mut Reader<'_>) -> Option<Config> {
    let device = reader.value("device", value::parsed::<DeviceId>);
    let data = reader.value("data", |text| match text {
        "" => Err("must name a directory".to_owned()),
        text => Ok(PathBuf::from(text)),
    });
    let local = reader.optional("local", |text| {
        let paths: Vec<PathBuf> = text.split(',').map(|path| PathBuf::from(path.trim())).collect();
        match paths.iter().any(|path| path.as_os_str().is_empty()) {
            true => Err(format!("{text:?} names nothing before or after a comma: take that comma out")),
            false => Ok(paths),
        }
    });
    let cloud = cloud::read(reader);
    let http = read_http(reader);
    let engine = read_engine(reader);
    let enabled = reader.value("collect.enabled", value::boolean);
    let rate = reader.value("collect.rate", value::number(0.0..=1.0));
    let write_interval = reader.value("collect.write_interval", value::duration(SECOND / 100..=SECOND * 60));
    let queue_bytes = reader.value("collect.queue_bytes", value::in_memory(1 << 20..=1 << 30));
    let spool_max_bytes = reader.value("spool.max_bytes", value::bytes(8 << 20..=1 << 40));
    let vault_max_bytes = reader.value("vault.max_bytes", value::bytes(16 << 20..=1 << 40));
    let upload_interval =
        reader.value("upload.interval", value::duration(SECOND / 10..=SECOND.saturating_mul(3600)));
    let port = reader.value("module.port", value::number(1..=u16::MAX));
    let token_lifetime =
        reader.value("module.token_lifetime", value::duration(SECOND * 10..=SECOND * 86_400));
    let trace = trace::read(reader);
    let level = reader.value("log.level", |text| crate::log::check(text).map(|()| text.to_owned()));
    let formats = [("text", Format::Text), ("json", Format::Json), ("iotedge", Format::IotEdge)];
    let format = reader.value("log.format", value::one_of(&formats));
    Some(Config {
        device: device?,
        data: data?,
        cloud: cloud?,
        http: http?,
        engine: engine?,
        collect: Collect { enabled: enabled?, rate: rate? },
        capture: Waiting { bytes: queue_bytes?, time: write_interval? },
        spool_max_bytes: spool_max_bytes?,
        vault_max_bytes: vault_max_bytes?,
        upload_interval: upload_interval?,
        log: Log { level: level?, format: format? },
        module: Module { port: port?, token_lifetime: token_lifetime? },
        trace: trace?,
        routes: Vec::new(),
        local: local?.unwrap_or_default(),
    })
}

fn read_http(reader: &mut Reader<'_>) -> Option<Http> {
    let address = |text: &str| {
        text.parse::<SocketAddr>()
            .map_err(|_| format!("{text:?} must be an address and a port, such as 127.0.0.1:8000"))
    };
    let listen = reader.value("http.listen", address);
    let grpc = reader.optional("http.grpc", address);
    let socket = reader.optional("http.socket", |text| match Path::new(text).is_absolute() {
        true => Ok(PathBuf::from(text)),
        false => Err(format!("{text:?} must be an absolute path, such as /run/edgewise/agent.sock")),
    });
    let keys = reader.optional("http.keys", value::file);
    let insecure_remote = reader.value("http.insecure_remote", value::boolean);
    let max_body_bytes = reader.value("http.max_body_bytes", value::in_memory(1 << 10..=1 << 30));
    let score_model = reader.optional("http.score_model", value::parsed::<ModelName>);
    let cors_origins = reader.optional("http.cors_origins", |text| {
        Ok(text.split(',').map(|origin| origin.trim().to_owned()).collect::<Vec<_>>())
    });
    for (key, listen) in [("http.listen", listen), ("http.grpc", grpc.flatten())] {
        let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) else { continue };
        if insecure_remote == Some(false) && keys == Some(None) {
            let what = format!(
                "{listen} can be reached from elsewhere and the API asks nobody for a key: listen on 127.0.0.1, set \
                 http.keys, or http.insecure_remote = true where something else guards the port"
            );
            reader.wrong(key, what);
        }
    }
    let beside = listen.map(|listen| match listen.port() {
        0 | u16::MAX => Grpc::Nowhere,
        port => Grpc::IfFree(SocketAddr::new(listen.ip(), port + 1)),
    });
    Some(Http {
        listen: listen?,
        grpc: grpc?.map_or(beside?, Grpc::At),
        socket: socket?,
        keys: keys?,
        max_body_bytes: max_body_bytes?,
        score_model: score_model?,
        cors_origins: cors_origins?.unwrap_or_default(),
    })
}

fn read_engine(reader: &mut Reader<'_>) -> Option<Engine> {
    let provider = reader.value("engine.provider", value::parsed::<Provider>);
    let threads = reader.value("engine.threads", value::number(0..=MAX_THREADS));
    let instances = reader.value("engine.instances", value::number(1..=MAX_INSTANCES));
    let queue = reader.value("engine.queue", value::number(1..=MAX_QUEUE));
    let max_rows = reader.value("engine.max_batch", value::number(0..=MAX_BATCH));
    let max_delay = reader.value("engine.max_delay", value::duration(Duration::ZERO..=MAX_DELAY));
    let preferred =
        reader.optional("engine.preferred_batch", value::numbers(1..=MAX_BATCH, limits::MAX_PREFERRED));
    let optimization = reader.value("engine.optimization", value::parsed::<Optimization>);
    let arena = reader.value("engine.arena", value::boolean);
    let onnxruntime = reader.optional("engine.onnxruntime", value::file);
    let timeout = reader.value("engine.timeout", value::duration(SECOND / 1000..=SECOND * 3600));
    Some(Engine {
        provider: provider?,
        threads: threads?,
        instances: instances?,
        queue: queue?,
        batching: Batching {
            max_rows: max_rows?,
            max_delay: max_delay?,
            preferred: preferred?.unwrap_or_default(),
        },
        tuning: Tuning { optimization: optimization?, arena: arena? },
        onnxruntime: onnxruntime?,
        timeout: timeout?,
    })
}

/// The host name as a device id, where no id is configured. What a topic can't hold becomes a dash.
fn name_after_host(entries: &mut [Entry], host_name: Option<&str>) {
    let Some(device) = entries.iter_mut().find(|entry| entry.key == "device" && entry.value.is_empty())
    else {
        return;
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let host_name = host_name.unwrap_or_default().trim().chars().take(128);
    device.value = host_name.map(|c| if allowed(c) { c } else { '-' }).collect();
    device.place = Place::HostName;
}

#[cfg(test)]
mod tests;
