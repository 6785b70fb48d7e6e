//! The way out: everything in order, within one deadline, the late by name.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::tasks::Tasks;
use crate::service::Service;
use crate::spool::Spool;

/// From the order to stop to the end, at most: systemd and edgeAgent kill after 10 s.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// The part of it that requests under way may take; the rest is for the disk and the farewell to the cloud.
const REQUESTS: Duration = Duration::from_secs(5);

/// What of it is kept for the farewell to the cloud, whoever is late before.
const FAREWELL: Duration = Duration::from_millis(1500);

/// Everything that runs, by the order in which it is stopped.
#[derive(Default)]
pub(super) struct Running {
    /// Brings new work in, and carries its answers out.
    pub(super) intake: Stage,
    /// Does what is under way.
    pub(super) work: Stage,
    /// Holds the link.
    pub(super) link: Stage,
}

/// Tasks, and the order to stop that they wait for.
#[derive(Default)]
pub(super) struct Stage {
    pub(super) stop: CancellationToken,
    pub(super) tasks: Tasks,
}

impl Running {
    /// Waits for any task to end: its name, and why.
    pub(super) async fn first_to_end(&mut self) -> (&'static str, String) {
        tokio::select! {
            Some(ended) = self.intake.tasks.next() => ended,
            Some(ended) = self.work.tasks.next() => ended,
            Some(ended) = self.link.tasks.next() => ended,
            else => ("everything", "nothing runs any more".to_owned()),
        }
    }

    /// Stops everything.
    pub(super) async fn drain(self, service: Service, spool: Option<Arc<Mutex<Spool>>>) {
        let Self { intake, work, link } = self;
        let begun = Instant::now();
        let (requests, deadline) = (begun + REQUESTS, begun + SHUTDOWN);
        // The models serve until whoever brings requests in has the last answer.
        intake.finish(requests).await;
        let scorer = service.scorer.clone();
        within(requests, "queued scores", tokio::task::spawn_blocking(move || scorer.drain())).await;
        if let Some(spool) = spool {
            within(deadline, "captured rows", service.capture.settle()).await;
            let close = move || spool.lock().unwrap_or_else(PoisonError::into_inner).close();
            match within(deadline, "the spool", tokio::task::spawn_blocking(close)).await {
                Some(Ok(Err(error))) => tracing::error!(%error, "closing the spool"),
                Some(Err(error)) => tracing::error!(%error, "closing the spool"),
                _ => {}
            }
        }
        work.finish(deadline.checked_sub(FAREWELL).unwrap_or(deadline)).await;
        link.finish(deadline).await;
        tracing::info!("edgewise-agent has stopped");
    }
}

impl Stage {
    async fn finish(self, deadline: Instant) {
        self.stop.cancel();
        self.tasks.finish(deadline).await;
    }
}

async fn within<T>(deadline: Instant, what: &str, work: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout_at(deadline, work).await;
    if done.is_err() {
        tracing::warn!(what, "late; leaving it behind");
    }
    done.ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::{Tensor, Tensors};

    use super::*;
    use crate::capture::Capture;
    use crate::deploy::prove::prove;
    use crate::scorer::Scorer;
    use crate::service::Request;
    use crate::settings::Settings;
    use crate::vault::Verified;

    fn service() -> Service {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/samples/power-demand/2");
        let settings = Settings {
            provider: engine::Provider::Tract,
            threads: 1,
            instances: 1,
            queue: 4,
            batching: Default::default(),
            tuning: Default::default(),
            collect: None,
        };
        let bundle = Verified::local(&sample).unwrap();
        let proven = prove(&bundle, &"power-demand".parse().unwrap(), 2, &settings, None).unwrap();
        let scorer = Scorer::default();
        scorer.swap(proven).unwrap();
        Service {
            scorer,
            capture: Capture::nowhere(),
            timeout: Duration::from_secs(5),
            tracer: Default::default(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_taken_before_the_stop_is_still_scored() {
        let service = service();
        let mut running = Running::default();
        let (stop, work_stop) = (running.intake.stop.clone(), running.work.stop.clone());
        let (asking, asked) = (service.clone(), Arc::new(Mutex::new(None)));
        let answer = asked.clone();
        running.intake.tasks.spawn_endless("asks", async move {
            stop.cancelled().await;
            // Time for whatever would take the models away too early.
            for _ in 0..10_000 {
                tokio::task::yield_now().await;
            }
            let load = Tensor::from_vec(vec![1, 24], vec![0.5f32; 24]).unwrap();
            let request = Request {
                model: "power-demand",
                version: None,
                inputs: [("load", load)].into_iter().collect::<Tensors>(),
                request_id: None,
                correlation_id: None,
            };
            let scored = asking.score(request).await.map(|_| ()).map_err(|error| error.to_string());
            *answer.lock().unwrap() = Some((scored, work_stop.is_cancelled()));
        });
        let scorer = service.scorer.clone();
        running.drain(service, None).await;
        assert_eq!(*asked.lock().unwrap(), Some((Ok(()), false)));
        assert!(scorer.all().is_empty(), "and then nothing serves");
    }
}
