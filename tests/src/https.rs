//! An HTTPS server of files that knows ranges, and can break off or miss a file.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::process::Failure;

/// A server on a port of its own; it runs until the process ends.
pub struct Https {
    /// Its URL, without a slash at its end.
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// How many bytes of the next answers that have more go out before the connection breaks.
    cuts: VecDeque<usize>,
    asked: Vec<(String, u64)>,
}

impl Https {
    /// Starts a server at `host` with this certificate.
    pub fn start(host: IpAddr, tls: ServerConfig) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| format!("an HTTPS server on {host}: {error}");
        let listener = TcpListener::bind((host, 0)).map_err(failed)?;
        let url = format!("https://{}", listener.local_addr().map_err(failed)?);
        let (tls, state) = (Arc::new(tls), Arc::<Mutex<State>>::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (tls, state) = (tls.clone(), shared.clone());
                // A connection that the client gives up is no matter of the server's.
                std::thread::spawn(move || serve(stream, tls, &state).ok());
            }
        });
        Ok(Self { url, state })
    }

    /// Has a file from now on; `path` begins with a slash.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        lock(&self.state).files.insert(path.to_owned(), bytes);
    }

    /// Breaks the connections of the next answers that are longer after so many bytes of the file.
    pub fn cut(&self, after: &[usize]) {
        lock(&self.state).cuts.extend(after);
    }

    /// Which paths were asked for, each from which byte on.
    pub fn asked(&self) -> Vec<(String, u64)> {
        lock(&self.state).asked.clone()
    }
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, state: &Mutex<State>) -> std::io::Result<()> {
    let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let (head, body, is_cut) = answer(&mut lock(state), &head);
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().write_all(&body)?;
        stream.get_mut().flush()?;
        if is_cut {
            return Ok(());
        }
    }
}

/// The head and the body of an answer, and whether the connection breaks behind it.
fn answer(state: &mut State, request: &str) -> (String, Vec<u8>, bool) {
    let path = request.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let range =
        request.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let range = range.as_deref().and_then(|range| range.split_once('-'));
    let (first, last) = range.unwrap_or(("0", ""));
    let (first, last) = (first.parse().unwrap_or(0), last.parse().unwrap_or(u64::MAX));
    state.asked.push((path.clone(), first));
    let Some(file) = state.files.get(&path) else {
        return ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(), Vec::new(), false);
    };
    let all = file.len();
    let begin = usize::try_from(first).unwrap_or(all).min(all);
    let end = usize::try_from(last).map_or(all, |last| all.min(last.saturating_add(1))).max(begin);
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {begin}-{}/{all}\r\ncontent-length: {}\r\n\r\n",
        end.saturating_sub(1),
        end - begin
    );
    let cut = state.cuts.pop_front_if(|cut| *cut < end - begin);
    let given = file.get(begin..cut.map_or(end, |cut| end.min(begin + cut))).unwrap_or_default().to_vec();
    (head, given, cut.is_some())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
