//! Asks the server from within whether it still answers: a request that takes the way of any caller's, through the
//! server's loop, a task of the runtime, the router and a handler. It needs no port and none of the places for
//! connections, so neither a firewall nor a crowd of callers can make a server that works look dead.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

const REQUEST: &[u8] = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// Bytes on their way in each direction, and most of the answer that is read: it takes a tenth of them.
const BUFFER: usize = 4096;

/// Asks one server. Cheap to clone.
#[derive(Clone)]
pub struct Probe(mpsc::Sender<DuplexStream>);

impl Probe {
    pub(super) fn new() -> (Self, mpsc::Receiver<DuplexStream>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Whether the server says that the agent lives. Waits for as long as it says nothing: the caller knows how long
    /// that may be.
    pub async fn is_alive(&self) -> bool {
        let (mut here, there) = tokio::io::duplex(BUFFER);
        if self.0.send(there).await.is_err() || here.write_all(REQUEST).await.is_err() {
            return false;
        }
        let mut answer = Vec::new();
        let read = here.take(BUFFER as u64).read_to_end(&mut answer).await;
        read.is_ok() && answer.starts_with(b"HTTP/1.1 200 ")
    }
}
