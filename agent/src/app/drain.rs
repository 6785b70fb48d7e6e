//! The way out: everything in order, within one deadline, the late by name.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::service::Service;
use crate::spool::Spool;

/// From the order to stop to the end, at most: systemd and edgeAgent kill after 10 s.
const SHUTDOWN: Duration = Duration::from_secs(9);

/// The orders to stop, in the order in which they are given.
#[derive(Clone, Default)]
pub(super) struct Stops {
    /// No new work is taken.
    pub(super) intake: CancellationToken,
    /// What is under way ends.
    pub(super) work: CancellationToken,
    /// The link is closed.
    pub(super) link: CancellationToken,
}

/// What there is to drain.
pub(super) struct Drain {
    pub(super) service: Service,
    pub(super) spool: Option<Arc<Mutex<Spool>>>,
    pub(super) stops: Stops,
    pub(super) tasks: JoinSet<(&'static str, String)>,
    pub(super) link_tasks: JoinSet<()>,
}

impl Drain {
    pub(super) async fn run(self) {
        let Self { service, spool, stops, mut tasks, mut link_tasks } = self;
        let deadline = Instant::now() + SHUTDOWN;
        stops.intake.cancel();
        let scorer = service.scorer.clone();
        within(deadline, "queued scores", tokio::task::spawn_blocking(move || scorer.drain())).await;
        if let Some(spool) = spool {
            within(deadline, "captured rows", service.capture.settle()).await;
            let close = move || spool.lock().unwrap_or_else(PoisonError::into_inner).close();
            match within(deadline, "the spool", tokio::task::spawn_blocking(close)).await {
                Some(Ok(Err(error))) => tracing::error!(%error, "closing the spool"),
                Some(Err(error)) => tracing::error!(%error, "closing the spool"),
                _ => {}
            }
        }
        stops.work.cancel();
        within(deadline, "tasks", async { while tasks.join_next().await.is_some() {} }).await;
        stops.link.cancel();
        within(deadline, "the link", async { while link_tasks.join_next().await.is_some() {} }).await;
        tracing::info!("edgewise-agent has stopped");
    }
}

async fn within<T>(deadline: Instant, what: &str, work: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout_at(deadline, work).await;
    if done.is_err() {
        tracing::warn!(what, "late; leaving it behind");
    }
    done.ok()
}
