//! Who asks a server: one connection that costs next to nothing, over HTTP/1.1 or gRPC, and many of them at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::Request;
use bytes::{BufMut, Bytes, BytesMut};
use e2e::process::Failure;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;

/// What is asked, again and again. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Question {
    /// A whole request, head and body.
    Http(Arc<[u8]>),
    /// The message of a `ModelInfer`.
    Grpc(Bytes),
}

/// A connection to a server, over HTTP made anew where the server ends it with its answer.
pub(crate) enum Caller {
    Http { address: String, stream: Option<BufReader<TcpStream>>, request: Arc<[u8]>, body: Vec<u8> },
    Grpc { runtime: Runtime, sender: SendRequest<Full<Bytes>>, uri: String, message: Bytes },
}

impl Caller {
    /// Connects to `HOST:PORT`.
    pub(crate) fn open(address: &str, question: &Question) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| format!("connecting to {address}: {error}");
        match question {
            Question::Http(request) => {
                let (address, stream) = (address.to_owned(), Some(connect(address)?));
                Ok(Self::Http { address, stream, request: request.clone(), body: Vec::new() })
            }
            Question::Grpc(message) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| wrong(&error))?;
                let sender = runtime.block_on(async {
                    let stream =
                        tokio::net::TcpStream::connect(address).await.map_err(|error| wrong(&error))?;
                    stream.set_nodelay(true).map_err(|error| wrong(&error))?;
                    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                        .initial_stream_window_size(1 << 20)
                        .initial_connection_window_size(1 << 20)
                        .handshake(TokioIo::new(stream))
                        .await
                        .map_err(|error| wrong(&error))?;
                    tokio::spawn(connection);
                    Ok::<_, Failure>(sender)
                })?;
                let mut framed = BytesMut::with_capacity(message.len() + 5);
                framed.put_u8(0);
                framed.put_u32(u32::try_from(message.len()).map_err(|error| wrong(&error))?);
                framed.put_slice(message);
                let uri = format!("http://{address}/inference.GRPCInferenceService/ModelInfer");
                Ok(Self::Grpc { runtime, sender, uri, message: framed.freeze() })
            }
        }
    }

    /// Asks once and reads the answer to its end.
    pub(crate) fn ask(&mut self) -> Result<(), Failure> {
        match self {
            Self::Http { address, stream, request, body } => {
                let mut open = stream.take().map_or_else(|| connect(address), Ok)?;
                let asked = open.get_mut().write_all(request).and_then(|()| answer(&mut open, body));
                let (status, ends) = asked.map_err(|error| format!("asking over HTTP: {error}"))?;
                if !ends {
                    *stream = Some(open);
                }
                let refused = || format!("{}: {}", status.trim(), String::from_utf8_lossy(body));
                if status.contains(" 200 ") { Ok(()) } else { Err(refused()) }
            }
            Self::Grpc { runtime, sender, uri, message } => {
                let request = Request::post(uri.as_str())
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(Full::new(message.clone()))
                    .map_err(|error| error.to_string())?;
                runtime.block_on(async {
                    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
                    let answer = answer.into_body().collect().await.map_err(|error| error.to_string())?;
                    let trailers = answer.trailers();
                    let is_ok = trailers
                        .and_then(|trailers| trailers.get("grpc-status"))
                        .is_some_and(|code| code == "0");
                    if is_ok { Ok(()) } else { Err(format!("asking over gRPC: {trailers:?}")) }
                })
            }
        }
    }
}

/// Answers per second, asked by so many callers for so long.
pub(crate) fn throughput(
    address: &str,
    question: &Question,
    callers: usize,
    duration: Duration,
) -> Result<f64, Failure> {
    let stop = AtomicBool::new(false);
    let callers: Vec<Caller> =
        (0..callers).map(|_| Caller::open(address, question)).collect::<Result<_, Failure>>()?;
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let ask = |mut caller: Caller| {
            let stop = &stop;
            scope.spawn(move || {
                let mut answered = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    caller.ask()?;
                    answered += 1;
                }
                Ok::<_, Failure>(answered)
            })
        };
        let threads: Vec<_> = callers.into_iter().map(ask).collect();
        std::thread::sleep(duration);
        stop.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for thread in threads {
            answered += thread.join().map_err(|_| "a caller panicked".to_owned())??;
        }
        Ok(answered as f64 / begun.elapsed().as_secs_f64())
    })
}

fn connect(address: &str) -> Result<BufReader<TcpStream>, Failure> {
    let stream = TcpStream::connect(address).and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    stream.map(BufReader::new).map_err(|error| format!("connecting to {address}: {error}"))
}

/// Reads an answer to its end; gives the status line, and whether the server ends the connection.
fn answer(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> std::io::Result<(String, bool)> {
    let (mut status, mut line) = (String::new(), String::new());
    stream.read_line(&mut status)?;
    let (mut length, mut ends) = (0, false);
    loop {
        line.clear();
        if stream.read_line(&mut line)? <= 2 {
            break;
        }
        line.make_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        ends |= line.trim_end() == "connection: close";
    }
    body.resize(length, 0);
    stream.read_exact(body)?;
    Ok((status, ends))
}
