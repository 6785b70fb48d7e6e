//! A request over HTTP, one connection, JSON, against the least server that could answer it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use e2e::data::MODEL;
use e2e::process::{Failure, Process};
use engine::Model;
use engine::json::{self, JsonTensor};

use crate::measure::{Unit, compare, in_turns, timed};
use crate::sample;
use crate::site::Site;

/// The word that makes this program the peer.
pub(crate) const PEER: &str = "http-peer";

/// Turns of so many requests: with 100 µs each, a few seconds.
const TURNS: usize = 40;
/// See [`TURNS`].
const REQUESTS: usize = 500;

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    let directory = directory.join("http");
    let make = std::fs::create_dir_all(&directory);
    make.map_err(|error| format!("making {}: {error}", directory.display()))?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut server = Process::start_program(&program, PEER, [PEER], &[], &directory.join("peer.log"))?;
    let peer = address(&server.wait_for_line("ready")?)?;

    let data = directory.join("alone").display().to_string();
    let bundle = sample::bundle().display().to_string();
    let arguments =
        ["run", "--data", &data, "--http", "127.0.0.1:0", "--provider", "tract", "--local", &bundle];
    let mut alone = Process::start("edgewise-agent", arguments, &[], &directory.join("alone.log"))?;
    let address = address(&alone.wait_for_line("ready")?)?;
    against("HTTP infer, without a cloud", &address, &peer)?;
    alone.terminate()?;

    let site = Site::start(&directory, &[], &["--provider", "tract"])?;
    site.bring(&sample::bundle(), MODEL, 1)?;
    let address = site.agent.http.trim_start_matches("http://");
    against("HTTP infer, rows captured and uploaded", address, &peer)
}

/// The peer: axum, serde_json and the bare engine, which scores on the network's thread. Serves until it is ended.
pub(crate) fn peer() -> Result<(), Failure> {
    let [tract, _] = sample::engines();
    let loaded = sample::load(&tract)?.map_err(|error| error.to_string())?;
    let model = Arc::new(Mutex::new(loaded.model));
    let router = Router::new().route(&path(), post(infer)).with_state(model);
    // As many threads as the agent has for its network.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let serve = async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("ready http=http://{}", listener.local_addr()?);
        axum::serve(listener, router).await
    };
    runtime.and_then(|runtime| runtime.block_on(serve)).map_err(|error| error.to_string())
}

async fn infer(
    State(model): State<Arc<Mutex<Box<dyn Model>>>>,
    body: Bytes,
) -> Result<Vec<u8>, (StatusCode, String)> {
    let wrong = |error: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, error.to_string());
    let mut request: BTreeMap<String, Vec<JsonTensor>> =
        serde_json::from_slice(&body).map_err(|error| wrong(&error))?;
    let inputs =
        json::read_all(request.remove("inputs").unwrap_or_default()).map_err(|error| wrong(&error))?;
    let outputs = model.lock().unwrap_or_else(PoisonError::into_inner).score(&inputs);
    let outputs = outputs.map_err(|error| wrong(&error))?;
    serde_json::to_vec(&BTreeMap::from([("outputs", json::write_all(&outputs))]))
        .map_err(|error| wrong(&error))
}

fn against(figure: &str, address: &str, peer: &str) -> Result<(), Failure> {
    let (mut ours, mut theirs) = (Connection::open(address)?, Connection::open(peer)?);
    let ours = || timed(REQUESTS, || ours.infer());
    let theirs = || timed(REQUESTS, || theirs.infer());
    let compared = in_turns(TURNS, ours, theirs)?;
    compare(figure, Unit::Microseconds, "axum, serde_json and tract, nothing else", compared);
    Ok(())
}

/// A client that costs next to nothing.
struct Connection {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
    line: String,
    body: Vec<u8>,
}

impl Connection {
    fn open(address: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).and_then(|stream| stream.set_nodelay(true).map(|()| stream));
        let stream = BufReader::new(stream.map_err(|error| format!("connecting to {address}: {error}"))?);
        let body = sample::request()?;
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            path(),
            body.len()
        );
        Ok(Self {
            stream,
            request: [head, body].concat().into_bytes(),
            line: String::new(),
            body: Vec::new(),
        })
    }

    fn infer(&mut self) -> Result<(), Failure> {
        let status = self.exchange().map_err(|error| format!("asking over HTTP: {error}"))?;
        if status.contains(" 200 ") {
            return Ok(());
        }
        Err(format!("{}: {}", status.trim(), String::from_utf8_lossy(&self.body)))
    }

    /// Sends the request and reads the answer to its end; gives the status line.
    fn exchange(&mut self) -> std::io::Result<String> {
        self.stream.get_mut().write_all(&self.request)?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let mut length = 0;
        loop {
            self.line.clear();
            if self.stream.read_line(&mut self.line)? <= 2 {
                break;
            }
            if let Some(value) = self.line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        self.body.resize(length, 0);
        self.stream.read_exact(&mut self.body)?;
        Ok(status)
    }
}

fn path() -> String {
    format!("/v2/models/{MODEL}/infer")
}

/// The address in a program's first line.
fn address(line: &str) -> Result<String, Failure> {
    let found = line.split_whitespace().find_map(|word| word.strip_prefix("http=http://"));
    found.map(str::to_owned).ok_or_else(|| format!("there is no address in {line:?}"))
}
