//! An HTTPS server of one file, on a port of its own, that can be told to misbehave.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use ureq::tls::Certificate;

use crate::fetch::https::Https;
use crate::fetch::reader::Origin;

pub(super) struct Server {
    port: u16,
    certificate: CertificateDer<'static>,
    pub(super) state: Arc<Mutex<State>>,
}

/// What the server does, and what it has done.
#[derive(Default)]
pub(super) struct State {
    pub(super) file: Vec<u8>,
    pub(super) ignores_ranges: bool,
    /// What it answers instead, as the lines of a head.
    pub(super) instead: Option<String>,
    /// How many bytes of each of the next answers go out before the connection breaks.
    pub(super) cuts: VecDeque<Option<usize>>,
    /// The heads of the requests.
    pub(super) requests: Vec<String>,
    /// Bytes of the file that went out.
    pub(super) sent: usize,
}

impl Server {
    pub(super) fn start(file: Vec<u8>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = certificate(directory.path());
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { file, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, state) = (config.clone(), shared.clone());
                // A connection that the client gives up is no matter of the server's.
                std::thread::spawn(move || serve(stream.unwrap(), config, &state).ok());
            }
        });
        Self { port, certificate, state }
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}/models/x.bundle", self.port)
    }

    pub(super) fn origin(&self, url: &str) -> Origin {
        let authority = Certificate::from_der(&self.certificate).to_owned();
        Origin::Https(Https::trusting(&[authority], None, url))
    }

    /// The first bytes of the ranges that were asked for.
    pub(super) fn asked(&self) -> Vec<u64> {
        let begin = |head: &String| {
            let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap();
            range.split('-').next().unwrap().parse().unwrap()
        };
        self.state.lock().unwrap().requests.iter().map(begin).collect()
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &Mutex<State>) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let (answer, body, is_cut) = answer(&mut state.lock().unwrap(), head);
        stream.get_mut().write_all(answer.as_bytes())?;
        stream.get_mut().write_all(&body)?;
        stream.get_mut().flush()?;
        if is_cut {
            return Ok(());
        }
    }
}

/// The head and the body of an answer, and whether the connection breaks after it.
fn answer(state: &mut State, head: String) -> (String, Vec<u8>, bool) {
    let asked = head.lines().find_map(|line| line.strip_prefix("range: bytes=")).map(str::to_owned);
    let is_moved = head.starts_with("GET /moved ");
    state.requests.push(head);
    if let Some(instead) = state.instead.as_ref().filter(|_| !is_moved) {
        return (format!("HTTP/1.1 {instead}\r\ncontent-length: 0\r\n\r\n"), Vec::new(), false);
    }
    let all = state.file.len();
    let (line, begin, end) = match asked.filter(|_| !state.ignores_ranges) {
        None => ("200 OK".to_owned(), 0, all),
        Some(range) => {
            let (first, last) = range.split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            if first >= all {
                return ("HTTP/1.1 416 No\r\ncontent-length: 0\r\n\r\n".to_owned(), Vec::new(), false);
            }
            let end = all.min(last + 1);
            (format!("206 Partial\r\ncontent-range: bytes {first}-{}/{all}", end - 1), first, end)
        }
    };
    let head = format!("HTTP/1.1 {line}\r\ncontent-length: {}\r\n\r\n", end - begin);
    let cut = state.cuts.pop_front().flatten();
    let body = state.file[begin..cut.map_or(end, |cut| end.min(begin + cut))].to_vec();
    state.sent += body.len();
    (head, body, cut.is_some())
}

/// A certificate for this machine that is its own authority, and its key.
fn certificate(directory: &Path) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let (certificate, key) = (directory.join("server.pem"), directory.join("server.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-subj", "/CN=server", "-days", "2", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-out"])
        .args([certificate.as_os_str(), "-keyout".as_ref(), key.as_os_str()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (CertificateDer::from_pem_file(certificate).unwrap(), PrivateKeyDer::from_pem_file(key).unwrap())
}
