//! `bench`: how fast a server answers over the Open Inference Protocol, by the number of callers at once.
//!
//! Any server that speaks it over HTTP will do. Each caller has a connection of its own and asks again as soon as it has
//! its answer; a part of the time before the first answer counts warms both ends up.

mod endpoint;
mod load;
mod report;
mod server;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{json, print};
use crate::error::Error;
use endpoint::Endpoint;
use report::Report;
use server::Server;

/// Most callers at once: each is a connection, and servers have bounds on those.
const MAX_CALLERS: usize = 10_000;

/// The part of a level's time that warms up.
const WARM_UP: f64 = 0.1;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The model's name
    model: String,
    /// Its version [default: the one that the server chooses]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// The server: http://HOST[:PORT]
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// How many callers at once; one level after the other
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8")]
    concurrency: Vec<NonZeroUsize>,
    /// How long each level takes
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    duration: Duration,
    /// Rows of each request: the length of free first dimensions. Other free dimensions are 1
    #[arg(long, value_name = "N", default_value = "1")]
    rows: NonZeroUsize,
    /// Sends and asks for tensors as bytes, not as JSON
    #[arg(long)]
    binary: bool,
    /// The body of each request, from a file; made up by what the server says of the model where none is given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["binary", "rows"])]
    input: Option<PathBuf>,
    /// A file with the key that callers need there, as `http.keys` has it: its first line
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The server's process, whose processor time and memory are shown [default: who listens there, on this machine]
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn bench(arguments: &Arguments) -> Result<(), Error> {
    let wrong = |why: String| Error::Bench { url: arguments.url.clone(), why };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let key = arguments.key_file.as_deref().map(super::read_input).transpose()?;
    let key =
        key.map(|text| String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned());
    let version = arguments.version.as_deref();
    let endpoint = Endpoint::of(&arguments.url, &arguments.model, version, key).map_err(wrong)?;
    let call = match &arguments.input {
        Some(path) => endpoint.call_with(super::read_input(path)?.into(), None),
        None => runtime.block_on(endpoint.call(arguments.rows.get(), arguments.binary)).map_err(wrong)?,
    };
    let server = Server::find(arguments.pid, endpoint.port());
    let mut report = Report::new(&arguments.model, &arguments.url, call.bytes());
    for callers in &arguments.concurrency {
        let callers = callers.get();
        if callers > MAX_CALLERS {
            return Err(wrong(format!("{callers} callers are more than {MAX_CALLERS}")));
        }
        let warm_up = arguments.duration.mul_f64(WARM_UP);
        let measured =
            runtime.block_on(load::run(&call, callers, warm_up, arguments.duration, server.as_ref()));
        report.add(callers, measured.map_err(wrong)?);
    }
    print(&if arguments.json { json(&report)? } else { report.to_string() })
}

fn duration(text: &str) -> Result<Duration, String> {
    let given = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if given.is_zero() { Err("nothing can be measured in no time".to_owned()) } else { Ok(given) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_there_is_one_line() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let arguments = Arguments {
            model: "load".to_owned(),
            version: None,
            url: url.clone(),
            concurrency: vec![NonZeroUsize::MIN],
            duration: Duration::from_millis(10),
            rows: NonZeroUsize::MIN,
            binary: false,
            input: None,
            key_file: None,
            pid: None,
            json: false,
        };
        let error = bench(&arguments).unwrap_err().to_string();
        assert!(error.contains(&url) && error.contains("connecting") && !error.contains('\n'), "{error}");
    }
}
