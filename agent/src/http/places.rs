//! Who may be connected: a bounded number of peers, of which the one that keeps us waiting longest makes way for a new one.
//!
//! Invariants:
//! - There are never more connections than places.
//! - A request that is here whole is answered: its connection is not given up before its answer is there. One that waits
//!   for its peer may be: for a request, for the rest of a body, or for the answer to be taken.
//! - So whoever sends a request at once is served past any number of peers that send little, or nothing.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// All places. Cheap to clone.
#[derive(Clone)]
pub(super) struct Places(Arc<Hall>);

struct Hall {
    most: usize,
    state: Mutex<State>,
    /// A place may have become free.
    changed: Notify,
}

#[derive(Default)]
struct State {
    last: u64,
    given_up: u64,
    taken: HashMap<u64, Taken>,
}

struct Taken {
    /// Since when its peer is waited for.
    waiting: Instant,
    /// Requests that are here whole and have no answer yet: we are at work for it.
    working: usize,
    leave: CancellationToken,
}

/// One connection's place. It is free again once this is dropped.
pub(super) struct Place {
    hall: Arc<Hall>,
    number: u64,
    leave: CancellationToken,
}

/// One request of a connection, which may have several at a time. It is answered once this is dropped.
pub(super) struct Visit {
    place: Arc<Place>,
    is_here: AtomicBool,
}

/// A request's body, which tells when all of it is here.
struct Watched {
    body: Body,
    visit: Arc<Visit>,
}

impl Places {
    /// So many places.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Hall { most, state: Mutex::default(), changed: Notify::new() }))
    }

    /// A place for a new connection. Where all are taken, another makes way; where we are at work for all, this waits.
    pub(super) async fn take(&self) -> Place {
        loop {
            let changed = self.0.changed.notified();
            if let Some(place) = self.try_take() {
                return place;
            }
            changed.await;
        }
    }

    /// Connections that had to make way.
    pub(super) fn given_up(&self) -> u64 {
        self.0.lock().given_up
    }

    /// Gives up the connection whose peer is waited for longest: the system has no descriptors for more.
    pub(super) fn make_way(&self) {
        let _ = self.0.lock().give_up_longest();
    }

    fn try_take(&self) -> Option<Place> {
        let mut state = self.0.lock();
        if state.taken.len() >= self.0.most {
            state.give_up_longest()?;
        }
        state.last += 1;
        let (number, leave) = (state.last, CancellationToken::new());
        state.taken.insert(number, Taken { waiting: Instant::now(), working: 0, leave: leave.clone() });
        Some(Place { hall: self.0.clone(), number, leave })
    }
}

impl State {
    /// `None` where we are at work for all.
    fn give_up_longest(&mut self) -> Option<()> {
        let waiting = self.taken.iter().filter(|(_, taken)| taken.working == 0);
        let (_, longest) = waiting.map(|(number, taken)| (taken.waiting, *number)).min()?;
        if let Some(taken) = self.taken.remove(&longest) {
            taken.leave.cancel();
            self.given_up += 1;
        }
        Some(())
    }
}

impl Hall {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Does the connection's work until its end, or until it has to make way.
    pub(super) async fn hold(&self, work: impl Future<Output = ()>) {
        self.leave.run_until_cancelled(work).await;
    }

    /// A request has come.
    pub(super) fn visit(self: &Arc<Self>) -> Arc<Visit> {
        Arc::new(Visit { place: self.clone(), is_here: AtomicBool::new(false) })
    }

    fn change(&self, change: impl FnOnce(&mut Taken)) {
        if let Some(taken) = self.hall.lock().taken.get_mut(&self.number) {
            change(taken);
        }
    }
}

impl Visit {
    /// Watches the request: we are at work for its peer once all of it is here.
    pub(super) fn watch(self: &Arc<Self>, request: Request<Body>) -> Request<Body> {
        if request.body().is_end_stream() {
            self.is_whole();
            return request;
        }
        request.map(|body| Body::new(Watched { body, visit: self.clone() }))
    }

    fn is_whole(&self) {
        if !self.is_here.swap(true, Ordering::Relaxed) {
            self.place.change(|taken| taken.working += 1);
        }
    }
}

impl Drop for Visit {
    /// From now on the peer is waited for, unless another of its requests is worked on.
    fn drop(&mut self) {
        let is_here = self.is_here.load(Ordering::Relaxed);
        self.place.change(|taken| {
            taken.working -= usize::from(is_here);
            taken.waiting = Instant::now();
        });
        self.place.hall.changed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hall.lock().taken.remove(&self.number);
        self.hall.changed.notify_waiters();
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.visit.is_whole();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_waited_for_longest_makes_way_and_nobody_whom_we_work_for() {
        let places = Places::new(2);
        let take = async || Arc::new(places.take().await);
        let (first, second) = (take().await, take().await);
        let visit = first.visit();
        visit.watch(Request::new(Body::empty()));
        let third = take().await;
        assert!(second.leave.is_cancelled() && !first.leave.is_cancelled() && !third.leave.is_cancelled());
        assert_eq!(places.given_up(), 1);

        let (one, other) = (third.visit(), third.visit());
        one.is_whole();
        other.is_whole();
        assert!(places.try_take().is_none(), "we work for both");
        drop(one);
        assert!(places.try_take().is_none(), "we still work for both");
        drop(visit);
        let fourth = take().await;
        assert!(first.leave.is_cancelled() && !third.leave.is_cancelled());
        drop((second, first, other, third));
        assert!(places.try_take().is_some());
        assert!(!fourth.leave.is_cancelled());
    }

    #[tokio::test]
    async fn a_request_is_here_when_its_body_is() {
        let places = Places::new(1);
        let visit = Arc::new(places.take().await).visit();
        let request = visit.watch(Request::new(Body::from("body")));
        assert!(places.0.lock().taken.values().all(|taken| taken.working == 0));
        let body = axum::body::to_bytes(request.into_body(), 10).await.unwrap();
        assert_eq!(&body[..], b"body");
        assert!(places.0.lock().taken.values().all(|taken| taken.working == 1));
    }
}
