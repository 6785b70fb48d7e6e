//! A real SeaweedFS of our own, for its S3: an object store that many machines may share, here all of it in one process.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::mosquitto::free_port;
use crate::process::{Failure, Process, wait_until};

/// How long it may take until it answers and the bucket is there.
const READY: Duration = Duration::from_secs(60);

/// Who may use it, and with which secret.
const USER: (&str, &str) = ("edgewise", "only-for-tests");

/// A running object store with one bucket.
pub struct SeaweedFs {
    /// For `--storage`.
    pub url: String,
    /// The variables that a client needs.
    pub environment: Vec<(&'static str, String)>,
    _process: Process,
}

impl SeaweedFs {
    /// Starts one whose files lie in `directory`.
    pub fn start(directory: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| format!("making {}: {error}", directory.display());
        std::fs::create_dir_all(directory.join("files")).map_err(failed)?;
        let config = serde_json::json!({"identities": [{
            "name": USER.0, "credentials": [{"accessKey": USER.0, "secretKey": USER.1}], "actions": ["Admin"],
        }]});
        let users = directory.join("s3.json");
        std::fs::write(&users, config.to_string()).map_err(failed)?;
        let mut arguments: Vec<String> =
            ["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"].map(str::to_owned).into();
        arguments.extend([
            format!("-dir={}", directory.join("files").display()),
            format!("-s3.config={}", users.display()),
            // Small volumes, so that a test takes little of the disk.
            "-master.volumeSizeLimitMB=64".to_owned(),
            "-volume.max=20".to_owned(),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
        ]);
        for part in ["master.port", "volume.port", "filer.port"] {
            arguments.push(format!("-{part}={}", free_port()?));
            arguments.push(format!("-{part}.grpc={}", free_port()?));
        }
        let port = free_port()?;
        arguments.extend([format!("-s3.port={port}"), format!("-s3.port.grpc={}", free_port()?)]);
        let log = directory.join("seaweedfs.log");
        let mut process = Process::start_program(&program(), "weed", &arguments, &[], &log)
            .map_err(|error| format!("{error}; run tests/fetch-models"))?;
        wait_until(READY, || {
            if let Some(code) = process.wait(Duration::ZERO) {
                return Err(format!("weed ended with code {code}: {}", process.log_tail()));
            }
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| format!("port {port}: {error}"))
        })?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let environment = vec![
            ("AWS_ENDPOINT", endpoint.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", USER.0.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", USER.1.to_owned()),
        ];
        wait_until(READY, || make_bucket(&endpoint))?;
        Ok(Self { url: "s3://fleet/edgewise".to_owned(), environment, _process: process })
    }
}

/// Where `tests/fetch-models` puts it.
fn program() -> PathBuf {
    let fetched = crate::target_root().join("venv/bin/weed");
    if fetched.exists() { fetched } else { PathBuf::from("weed") }
}

/// The product uses buckets and makes none.
fn make_bucket(endpoint: &str) -> Result<(), Failure> {
    let user = format!("{}:{}", USER.0, USER.1);
    let url = format!("{endpoint}/fleet");
    let arguments = ["-sSf", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user, "-X", "PUT", &url];
    let output = std::process::Command::new("curl").args(arguments).output();
    let output = output.map_err(|error| format!("running curl: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
