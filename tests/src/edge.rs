//! A scripted Azure IoT Edge device: aziot-edged's workload API, edgeHub, and the service behind them.
//!
//! It keeps to what is known of the real ones, is strict about every rule that a module has to keep, and remembers each
//! one that was broken. It can be told to fail in the ways in which the real ones do.

mod authority;
mod bag;
mod connect;
mod connection;
mod hub;
mod listener;
mod methods;
mod packet;
mod service;
mod telemetry;
mod token;
mod topic;
mod twin;
mod workload;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::https::Https;
use crate::process::{Failure, wait_until};
use hub::Hub;

pub use connect::{Connected, End};
pub use telemetry::Output;

/// The IoT hub.
pub const HUB_HOST: &str = "contoso-test.azure-devices.net";
/// The device's id.
pub const DEVICE: &str = "edge-dev-01";
/// The module's name.
pub const MODULE: &str = "inferAgent";
/// The generation of the module's identity.
pub const GENERATION: &str = "638412345678901234";
/// The version of the workload API.
pub const API_VERSION: &str = "2022-08-03";

/// edgeHub's port: Microsoft's SDK dials no other.
const PORT: u16 = 8883;
/// How often addresses are tried until one is free.
const TRIES: usize = 20;
/// How long an address may be taken by a listener of our own that is gone.
const REBIND: Duration = Duration::from_secs(10);
/// How exactly the peer keeps time.
const TICK: Duration = Duration::from_millis(20);

/// An edge device with one module.
pub struct Edge {
    shared: Arc<Shared>,
    runtime: Runtime,
    directory: PathBuf,
    address: SocketAddr,
    workload_uri: String,
    /// The module's key in base64.
    secret: String,
    /// What listens now, and how to stop it.
    hub: Mutex<Option<Running>>,
    workload: Mutex<Option<Running>>,
}

type Running = (CancellationToken, JoinHandle<()>);

/// How long edgeHub waits for what; as in the real one if not told otherwise.
#[derive(Debug, Clone)]
pub struct Times {
    /// For which a token is good after its end.
    pub clock_skew: Duration,
    /// Between two looks at the tokens of who is connected.
    pub reauthentication: Duration,
    /// For the PUBACK of an input, which is then sent again.
    pub input: Duration,
    /// For CONNECT.
    pub connect: Duration,
    /// For a module that does not listen for methods when one is called.
    pub method_connect: Duration,
    /// From the subscription to the delivery of a call that waited for it.
    pub method_delay: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            clock_skew: Duration::from_secs(300),
            reauthentication: Duration::from_secs(300),
            input: Duration::from_secs(30),
            connect: Duration::from_secs(60),
            method_connect: Duration::ZERO,
            method_delay: Duration::from_secs(3),
        }
    }
}

/// What goes wrong until it is told otherwise.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The workload API answers each call with this status.
    pub workload_status: Option<u16>,
    /// The workload API answers nothing.
    pub workload_hangs: bool,
    /// CONNACK has this code though all is right.
    pub connack: Option<u8>,
    /// The module's messages are stored, but not acknowledged until this ends.
    pub hold_pubacks: bool,
    /// So many messages to outputs are lost with their connection.
    pub cut_before_storing: u32,
    /// So many messages to outputs are stored, and then the connection is lost before the PUBACK.
    pub cut_before_puback: u32,
    /// Twin requests are answered with this status.
    pub twin_status: Option<u16>,
    /// Twin requests are not answered.
    pub twin_is_silent: bool,
    /// Twin requests are answered so much later.
    pub twin_delay: Duration,
    /// edgeHub never saw the twin.
    pub twin_is_empty: bool,
    /// Answers to reported properties have a version, as IoT Hub gives it and edgeHub does not.
    pub twin_answers_have_versions: bool,
    /// Changes of desired properties are not sent: the next that is sent comes after a gap.
    pub desired_is_silent: bool,
}

/// edgeHub's state, and whoever waits for it to change.
struct Shared {
    hub: Mutex<Hub>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the state, and wakes who waits.
    fn with<T>(&self, work: impl FnOnce(&mut Hub) -> T) -> T {
        let done = work(&mut self.lock());
        self.changed.notify_all();
        done
    }
}

impl Edge {
    /// Starts an edge device whose files lie in `directory`, with the workload API on a unix socket.
    pub fn start(directory: &Path, times: Times) -> Result<Self, Failure> {
        let socket = directory.join("workload.sock");
        Self::start_with(directory, times, format!("unix://{}", socket.display()))
    }

    /// As [`Edge::start`], with the workload API on a port.
    pub fn start_over_http(directory: &Path, times: Times) -> Result<Self, Failure> {
        let port = crate::mosquitto::free_port()?;
        Self::start_with(directory, times, format!("http://127.0.0.1:{port}"))
    }

    fn start_with(directory: &Path, times: Times, workload_uri: String) -> Result<Self, Failure> {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("making {}: {error}", directory.display()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| format!("a runtime for the edge: {error}"))?;
        let random = SystemRandom::new();
        let mut secret = [0; 32];
        random.fill(&mut secret).map_err(|_| "no randomness".to_owned())?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let (address, listener) = runtime.block_on(free_address(&random))?;
        let gateway = address.ip().to_string();
        authority::make(directory, &gateway)?;
        let log = directory.join("edge.log");
        let log = File::create(&log).map_err(|error| format!("making {}: {error}", log.display()))?;
        let hub = Hub::new(times, key, gateway, log);
        let shared = Arc::new(Shared { hub: Mutex::new(hub), changed: Condvar::new() });
        let edge = Self {
            shared,
            runtime,
            directory: directory.to_owned(),
            address,
            workload_uri,
            secret: STANDARD.encode(secret),
            hub: Mutex::new(None),
            workload: Mutex::new(None),
        };
        edge.listen(listener, authority::HUB)?;
        edge.start_workload()?;
        Ok(edge)
    }

    /// The variables that edgeAgent gives to the module.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let fixed = [
            ("IOTEDGE_AUTHSCHEME", "sasToken"),
            ("IOTEDGE_MODULEGENERATIONID", GENERATION),
            ("IOTEDGE_IOTHUBHOSTNAME", HUB_HOST),
            ("IOTEDGE_DEVICEID", DEVICE),
            ("IOTEDGE_MODULEID", MODULE),
            ("IOTEDGE_APIVERSION", API_VERSION),
            ("RuntimeLogLevel", "Information"),
        ];
        let mut environment: Vec<_> = fixed.map(|(name, value)| (name, value.to_owned())).into();
        environment.push(("IOTEDGE_WORKLOADURI", self.workload_uri.clone()));
        environment.push(("IOTEDGE_GATEWAYHOSTNAME", self.address.ip().to_string()));
        environment
    }

    /// The variables that a developer sets for a module outside of a container.
    pub fn development_environment(&self) -> Vec<(&'static str, String)> {
        let (gateway, secret) = (self.address.ip(), &self.secret);
        let connection = format!(
            "HostName={HUB_HOST};GatewayHostName={gateway};DeviceId={DEVICE};ModuleId={MODULE};SharedAccessKey={secret}"
        );
        let bundle = self.trust_bundle().display().to_string();
        vec![("EdgeHubConnectionString", connection), ("EdgeModuleCACertificateFile", bundle)]
    }

    /// Where edgeHub listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The trust bundle's file.
    pub fn trust_bundle(&self) -> PathBuf {
        self.directory.join("bundle.pem")
    }

    /// Starts an HTTPS server on this machine whose certificate the trust bundle vouches for.
    pub fn https(&self) -> Result<Https, Failure> {
        Https::start(self.address.ip(), authority::server(&self.directory, authority::HUB)?)
    }

    /// Changes what goes wrong.
    pub fn disturb(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.with(|hub| {
            change(&mut hub.faults);
            hub.settle();
        });
    }

    /// Breaks all connections to edgeHub without a word.
    pub fn cut(&self) {
        self.shared.with(Hub::cut);
    }

    /// Forgets the subscriptions, as an edgeHub does that is made again without its storage, and breaks all connections.
    pub fn forget_sessions(&self) {
        self.shared.with(|hub| {
            hub.cut();
            hub.forget_session();
        });
    }

    /// Takes edgeHub away: its connections break and nobody listens.
    pub fn stop(&self) {
        self.end(&self.hub);
        self.cut();
    }

    /// Brings edgeHub back, with all that it had stored.
    pub fn start_again(&self) -> Result<(), Failure> {
        self.listen_as(authority::HUB)
    }

    /// Lets somebody else listen where edgeHub did, with a certificate that is none of the trust bundle's.
    pub fn start_imposter(&self) -> Result<(), Failure> {
        self.listen_as(authority::IMPOSTER)
    }

    /// Takes the workload API away.
    pub fn stop_workload(&self) {
        self.end(&self.workload);
    }

    /// Brings the workload API back.
    pub fn start_workload(&self) -> Result<(), Failure> {
        let uri = &self.workload_uri;
        let failed = |error: std::io::Error| format!("the workload API on {uri}: {error}");
        let listener = if let Some(path) = uri.strip_prefix("unix://") {
            // One of a former run would be in the way.
            let _ = std::fs::remove_file(path);
            let _runtime = self.runtime.enter();
            workload::Listener::Unix(UnixListener::bind(path).map_err(failed)?)
        } else {
            let address = uri.trim_start_matches("http://");
            workload::Listener::Tcp(self.bind(address)?)
        };
        let bundle = authority::read(&self.directory, "bundle.pem")?;
        let shared = self.shared.clone();
        self.run(&self.workload, |stop| workload::listen(listener, bundle, shared, stop));
        Ok(())
    }

    /// How often the workload API was called, by the last part of the path.
    pub fn workload_calls(&self, name: &str) -> u64 {
        self.shared.with(|hub| hub.calls.get(name).copied().unwrap_or_default())
    }

    /// The texts that were signed.
    pub fn signed(&self) -> Vec<String> {
        self.shared.with(|hub| hub.signed.clone())
    }

    /// TLS handshakes that came to nothing.
    pub fn failed_handshakes(&self) -> u64 {
        self.shared.with(|hub| hub.failed_handshakes)
    }

    fn listen_as(&self, certificate: &str) -> Result<(), Failure> {
        self.listen(self.bind(&self.address.to_string())?, certificate)
    }

    /// Listens where there may have been another listener just now: a program that is being started by another test
    /// holds a copy of that one until it runs.
    fn bind(&self, address: &str) -> Result<TcpListener, Failure> {
        wait_until(REBIND, || {
            let listener = self.runtime.block_on(TcpListener::bind(address));
            listener.map_err(|error| format!("listening on {address}: {error}"))
        })
    }

    fn listen(&self, listener: TcpListener, certificate: &str) -> Result<(), Failure> {
        let tls = TlsAcceptor::from(Arc::new(authority::server(&self.directory, certificate)?));
        let shared = self.shared.clone();
        self.run(&self.hub, |stop| listener::listen(listener, tls, shared, stop));
        Ok(())
    }

    /// Waits until the state gives what is wanted.
    fn wait<T>(&self, longest: Duration, mut look: impl FnMut(&mut Hub) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + longest;
        let mut hub = self.shared.lock();
        loop {
            if let Some(found) = look(&mut hub) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            // Some of what is waited for comes with time alone.
            let waited = self.shared.changed.wait_timeout(hub, left.min(TICK));
            hub = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn run<F>(&self, place: &Mutex<Option<Running>>, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let running = self.runtime.spawn(task(stop.clone()));
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, running));
    }

    fn end(&self, place: &Mutex<Option<Running>>) {
        let running = place.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, running)) = running {
            stop.cancel();
            // A task that panicked has ended, too.
            let _ = self.runtime.block_on(running);
        }
    }
}

/// A loopback address of our own, so that several edges can listen on the one port at the same time.
async fn free_address(random: &SystemRandom) -> Result<(SocketAddr, TcpListener), Failure> {
    let mut failure = Failure::new();
    for _ in 0..TRIES {
        let mut bytes = [0; 3];
        random.fill(&mut bytes).map_err(|_| "no randomness".to_owned())?;
        let [a, b, c] = bytes;
        let address = SocketAddr::from((Ipv4Addr::new(127, a, b, c.clamp(1, 254)), PORT));
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok((address, listener)),
            Err(error) => failure = format!("listening on {address}: {error}"),
        }
    }
    Err(failure)
}
