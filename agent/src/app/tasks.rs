//! Tasks with their names: who ended, and who is late.

use tokio::sync::oneshot;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Some tasks that end together.
#[derive(Default)]
pub(super) struct Tasks {
    set: JoinSet<Result<(), String>>,
    running: Vec<(Id, &'static str)>,
}

impl Tasks {
    /// Starts a task.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        let id = self.set.spawn(work).id();
        self.running.push((id, name));
    }

    /// Starts a task that can't fail.
    pub(super) fn spawn_endless(
        &mut self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name, async move {
            work.await;
            Ok(())
        });
    }

    /// Waits for a task to end, however it does: its name, and why. `None` where none runs.
    pub(super) async fn next(&mut self) -> Option<(&'static str, String)> {
        let (id, why) = match self.set.join_next_with_id().await? {
            Ok((id, Ok(()))) => (id, "it had nothing left to do".to_owned()),
            Ok((id, Err(why))) => (id, why),
            Err(error) => (error.id(), error.to_string()),
        };
        let at = self.running.iter().position(|(running, _)| *running == id);
        let name = at.map_or("a task", |at| self.running.swap_remove(at).1);
        Some((name, why))
    }

    /// Waits for all to end; names those that have not by `deadline`, and drops them.
    pub(super) async fn finish(mut self, deadline: Instant) {
        let all = async { while self.next().await.is_some() {} };
        if tokio::time::timeout_at(deadline, all).await.is_err() {
            let late: Vec<&str> = self.running.iter().map(|(_, name)| *name).collect();
            tracing::warn!(late = late.join(", "), "late; leaving it behind");
        }
    }
}

/// Starts a thread. The task ends with the thread, also in a panic, or at `stop`.
pub(super) fn run_thread(
    name: &'static str,
    stop: CancellationToken,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<impl Future<Output = Result<(), String>> + Send> {
    let (alive, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let _alive = alive;
        work();
    })?;
    Ok(async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            _ = ended => Err("its thread ended".to_owned()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_ends_is_named_also_in_a_panic() {
        let mut tasks = Tasks::default();
        tasks.spawn_endless("waits", std::future::pending());
        tasks.spawn("fails", async { Err("no disk".to_owned()) });
        assert_eq!(tasks.next().await, Some(("fails", "no disk".to_owned())));
        tasks.spawn_endless("panics", async { panic!("on purpose") });
        let (name, why) = tasks.next().await.unwrap();
        assert!(name == "panics" && why.contains("on purpose"), "{name}: {why}");
        assert_eq!(tasks.running.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["waits"]);
        tasks.finish(Instant::now()).await;
    }
}
