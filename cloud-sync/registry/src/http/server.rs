//! The connections of the HTTP API: a bounded number of them, of which the one that is waited for longest makes way.
//!
//! Invariants:
//! - There are never more connections than [`MAX_CONNECTIONS`]: what else the registry does has its descriptors.
//! - A peer that says nothing, or only a part of a head, is waited for until [`HEAD_TIMEOUT`], and not even that where
//!   others want in; whoever sends a request at once is served past any number of those.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time: a few operators, their tools and a probe, and a quarter of the descriptors that a process has
/// where nobody raised their number.
const MAX_CONNECTIONS: usize = 256;

/// Longest time that a head may take, and that a connection may idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest head. Browsers and proxies send a tenth of it.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Pause after the system refused a connection, for want of descriptors for instance, and between two looks for one that
/// can make way: some will be free by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers until `stop`, and then what is under way.
pub async fn run(listener: TcpListener, router: Router, stop: CancellationToken) {
    let (crowd, places) = (Crowd::default(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let place = crowd.place(&places).await;
                    connections.spawn(serve(stream, place, crowd.clone(), router.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    crowd.make_way();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accept).await;
    connections.close();
    connections.wait().await;
}

async fn serve(
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
    crowd: Crowd,
    router: Router,
    stop: CancellationToken,
) {
    // Without it an answer in two writes waits for the client's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY is refused");
    }
    let seat = Arc::new(Seat::new(crowd));
    let leave = seat.leave.clone();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        seat.works();
        let (answer, seat) = (router.call(request), seat.clone());
        async move {
            let answer = answer.await;
            seat.waits();
            answer
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = leave.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// Those whose peer is waited for, the longest first.
#[derive(Debug, Clone, Default)]
struct Crowd(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    seats: BTreeMap<u64, CancellationToken>,
}

impl Crowd {
    /// A place for one more; where there is none, whoever is waited for longest makes way.
    async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Some(place);
        }
        // Where all are at work, one of them is soon waited for, and may then keep its connection for long.
        loop {
            self.make_way();
            let free = places.clone().acquire_owned();
            if let Ok(place) = tokio::time::timeout(ACCEPT_PAUSE, free).await {
                return place.ok();
            }
        }
    }

    fn make_way(&self) {
        if let Some((_, leave)) = self.lock().seats.pop_first() {
            leave.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection in the crowd.
struct Seat {
    crowd: Crowd,
    number: Mutex<Option<u64>>,
    leave: CancellationToken,
}

impl Seat {
    fn new(crowd: Crowd) -> Self {
        let seat = Self { crowd, number: Mutex::new(None), leave: CancellationToken::new() };
        seat.waits();
        seat
    }

    /// Its peer is waited for from now on.
    fn waits(&self) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        let mut crowd = self.crowd.lock();
        crowd.last += 1;
        let last = crowd.last;
        crowd.seats.insert(last, self.leave.clone());
        if let Some(before) = number.replace(last) {
            crowd.seats.remove(&before);
        }
    }

    /// A request of it is worked on.
    fn works(&self) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = number.take() {
            self.crowd.lock().seats.remove(&number);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.works();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn others_are_answered_beside_more_silent_peers_than_there_are_places() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(async || "here"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(listener, router, stop.clone()));
        let ask = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("here"), "{answer}");
        };
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 50 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HT").await.unwrap();
            silent.push(stream);
        }
        tokio::time::timeout(HEAD_TIMEOUT / 2, async {
            for _ in 0..10 {
                ask().await;
            }
        })
        .await
        .unwrap();
        stop.cancel();
        drop(silent);
        tokio::time::timeout(HEAD_TIMEOUT, running).await.unwrap().unwrap();
    }
}
