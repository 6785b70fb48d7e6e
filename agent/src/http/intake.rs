//! The bodies of requests and answers: bounded in size, in time, and in memory over all of them.
//!
//! An answer's time is kept here, not at the socket alone: over HTTP/2 a peer can take nothing of one answer while the socket
//! never blocks.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::failure::Failure;

/// Largest body that is worked on where it arrived; a larger one goes to a blocking thread. At the tens of
/// megabytes a second that JSON is read with, this is a millisecond.
const INLINE_BYTES: usize = 32 * 1024;

/// The bounds of bodies, and what of them is used. Cheap to clone.
#[derive(Clone)]
pub(super) struct Intake {
    max_body: usize,
    timeout: Duration,
    /// One permit for each byte that may be held, beyond the first [`INLINE_BYTES`] of each body: for those there is always
    /// room, for connections are bounded, and the calls of each (one, or over HTTP/2 [`super::MAX_STREAMS`]). So peers that stall
    /// with large bodies keep no small one out.
    memory: Arc<Semaphore>,
}

/// A body, and its share of the memory for bodies for as long as this lives.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl Intake {
    pub(super) fn new(max_body: usize, max_held: usize, timeout: Duration) -> Self {
        let memory = Arc::new(Semaphore::new(max_held.min(Semaphore::MAX_PERMITS)));
        Self { max_body, timeout, memory }
    }

    /// Reads a body whole. To be called before anything is refused: what is not read can't be followed by another
    /// request on its connection.
    pub(super) async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<Received, Failure> {
        self.bounded(headers, body).await.map_err(Failure::closing)
    }

    async fn bounded(&self, headers: &HeaderMap, body: Body) -> Result<Received, Failure> {
        let encoding = headers.get(header::CONTENT_ENCODING).map(|encoding| encoding.as_bytes());
        if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
            let line = "compressed bodies are not taken: send it without content-encoding";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, line));
        }
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let announced = announced.and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
        if announced > self.max_body {
            return Err(self.too_large());
        }
        let read = tokio::time::timeout(self.timeout, self.read(body, announced)).await;
        read.unwrap_or_else(|_| Err(self.too_slow()))
    }

    async fn read(&self, body: Body, announced: usize) -> Result<Received, Failure> {
        // Only what has arrived counts: a peer that announces much and sends nothing takes nothing from the others.
        let mut share = self.hold(0)?;
        let mut bytes = Vec::with_capacity(announced.min(INLINE_BYTES));
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece =
                piece.map_err(|error| Failure::bad_request(format!("the body broke off: {error}")))?;
            if bytes.len() + piece.len() > self.max_body {
                return Err(self.too_large());
            }
            let beyond = |length: usize| length.saturating_sub(INLINE_BYTES);
            share.merge(self.hold(beyond(bytes.len() + piece.len()) - beyond(bytes.len()))?);
            // At most four times what has come: a large body is moved seldom, and one that is only announced takes little.
            let ahead = announced.min(4 * bytes.capacity()).saturating_sub(bytes.len());
            if bytes.capacity() - bytes.len() < piece.len() {
                bytes.reserve(ahead.max(piece.len()));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Received { bytes: bytes.into(), _share: share })
    }

    /// Has an answer hold its share of the memory until its peer has taken it, or takes none of it for too long.
    pub(super) fn charge(&self, answer: Response) -> Result<Response, Failure> {
        let bytes = answer.body().size_hint().lower();
        let beyond = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(INLINE_BYTES);
        if beyond == 0 {
            return Ok(answer);
        }
        let share = self.hold(beyond)?;
        Ok(answer.map(|body| Body::new(Charged::new(Held::new(body, share), self.timeout))))
    }

    fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let permits = u32::try_from(bytes).map_err(|_| self.too_large())?;
        self.memory.clone().try_acquire_many_owned(permits).map_err(|_| {
            let line = "busy: the memory for requests is used up; try again, or send smaller ones";
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, line)
        })
    }

    fn too_slow(&self) -> Failure {
        let line = format!("the body did not arrive within {:?}", self.timeout);
        Failure::new(StatusCode::REQUEST_TIMEOUT, line)
    }

    fn too_large(&self) -> Failure {
        let line = format!("the body is larger than the limit of {} bytes", self.max_body);
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, line)
    }
}

/// An answer that is handed over in pieces; `None` once it was given up.
struct Charged {
    held: Arc<Mutex<Option<Held>>>,
    _watch: AbortOnDropHandle<()>,
}

/// What is left of an answer, and its share of the memory until the last piece.
struct Held {
    body: Body,
    /// What is left of the data that was taken from it.
    data: Bytes,
    /// When a piece was last asked for.
    asked: Instant,
    _share: OwnedSemaphorePermit,
}

impl Charged {
    fn new(held: Held, patience: Duration) -> Self {
        let held = Arc::new(Mutex::new(Some(held)));
        let watched = Arc::downgrade(&held);
        // Who is not asked can't end by itself.
        let left = move || {
            let watched = watched.upgrade()?;
            let mut held = lock(&watched);
            let until = held.as_ref()?.asked + patience;
            if until <= Instant::now() {
                *held = None;
            }
            held.as_ref().map(|_| until)
        };
        let watch = async move {
            while let Some(until) = left() {
                tokio::time::sleep_until(until).await;
            }
        };
        Self { held, _watch: AbortOnDropHandle::new(tokio::spawn(watch)) }
    }
}

impl Held {
    fn new(body: Body, share: OwnedSemaphorePermit) -> Self {
        Self { body, data: Bytes::new(), asked: Instant::now(), _share: share }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.asked = Instant::now();
        if self.data.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context))
                .map(|frame| frame.map(Frame::into_data))
            {
                Some(Ok(Ok(data))) => self.data = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.data.len().min(INLINE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.data.split_to(piece)))))
    }
}

impl HttpBody for Charged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let late = || Poll::Ready(Some(Err(axum::Error::new("the answer was not taken in time"))));
        lock(&self.held).as_mut().map_or_else(late, |held| held.poll(context))
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.held).as_ref().is_some_and(|held| held.data.is_empty() && held.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.held).as_ref().map_or_else(SizeHint::default, |held| {
            let (body, left) = (held.body.size_hint(), held.data.len() as u64);
            body.exact().map_or(body, |exact| SizeHint::with_exact(exact + left))
        })
    }
}

fn lock(held: &Mutex<Option<Held>>) -> MutexGuard<'_, Option<Held>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does work whose time grows with `bytes`: here where they are few, on a blocking thread where they are many.
pub(super) async fn sized<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(Failure::internal)?
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use futures_util::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_holds_its_share_until_its_peer_has_taken_it() {
        const LARGE: usize = 10 * INLINE_BYTES;
        let intake = Intake::new(LARGE, 10 * INLINE_BYTES, Duration::from_secs(1));
        let answer = |bytes: usize| intake.charge(vec![7u8; bytes].into_response());
        let large = answer(LARGE).unwrap();
        assert_eq!(large.body().size_hint().exact(), Some(LARGE as u64));
        assert_eq!(answer(LARGE).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer(INLINE_BYTES).is_ok(), "small ones always find room");
        let pieces: Vec<Bytes> = large.into_body().into_data_stream().try_collect().await.unwrap();
        assert!(pieces.iter().all(|piece| piece.len() <= INLINE_BYTES));
        assert_eq!(pieces.concat(), vec![7; LARGE]);
        assert!(answer(LARGE).is_ok());
    }

    #[tokio::test]
    async fn an_answer_that_nobody_asks_for_is_given_up() {
        const LARGE: usize = 10 * INLINE_BYTES;
        let intake = Intake::new(LARGE, 9 * INLINE_BYTES, Duration::from_millis(20));
        let held = intake.charge(vec![7u8; LARGE].into_response()).unwrap();
        let all = intake.memory.clone().acquire_many_owned(9 * INLINE_BYTES as u32);
        let freed = tokio::time::timeout(Duration::from_secs(20), all).await;
        assert!(freed.is_ok(), "it holds its share for ever");
        assert!(held.into_body().into_data_stream().try_collect::<Vec<_>>().await.is_err());
    }
}
