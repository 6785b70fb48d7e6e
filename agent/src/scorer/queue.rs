//! The requests that wait for a version's workers, and which of them are scored together.
//!
//! Invariants:
//! - Requests are taken in the order in which they came. One that can't be joined with those before it ends their batch and
//!   begins the next; nothing else is put aside.
//! - A request waits for others until its own [`Batching::max_delay`] is over, and not at all where batching is off.
//! - While one worker gathers, the others wait for it: what came to them would have joined the batch, or ends it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use engine::{Tensors, batch};
use tokio::sync::oneshot;

use super::{ScoreRefused, Scored};
use crate::settings::Batching;

/// A request and where its answer goes.
pub(super) struct Job {
    pub(super) inputs: Arc<Tensors>,
    pub(super) enqueued: Instant,
    pub(super) answer: oneshot::Sender<Result<Scored, ScoreRefused>>,
}

/// The workers' end of the queue.
pub(super) struct Queue(Mutex<Jobs>);

struct Jobs {
    waiting: Receiver<Job>,
    /// Comes before those that wait.
    next: Option<Job>,
}

impl Queue {
    /// A queue for so many requests, and where they are put.
    pub(super) fn new(length: u32) -> (SyncSender<Job>, Self) {
        let (sender, waiting) = sync_channel(length.max(1) as usize);
        (sender, Self(Mutex::new(Jobs { waiting, next: None })))
    }

    /// Waits for a request, and for those that can be scored with it, and puts them into `batch`, which is empty. False once
    /// the queue is empty and nobody can fill it any more.
    pub(super) fn take(&self, batch: &mut Vec<Job>, batching: &Batching) -> bool {
        // Held while waiting: one idle worker waits for the next job, the others for their turn to wait.
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = jobs.next.take().or_else(|| jobs.waiting.recv().ok()) else { return false };
        if batching.is_on() {
            jobs.gather(first, batch, batching);
        } else {
            batch.push(first);
        }
        true
    }
}

impl Jobs {
    fn gather(&mut self, first: Job, batch: &mut Vec<Job>, batching: &Batching) {
        let rows_of_first = batch::rows(&first.inputs);
        let (inputs, until) = (first.inputs.clone(), first.enqueued + batching.max_delay);
        batch.push(first);
        let Some(mut rows) = rows_of_first else { return };
        let most = batching.max_rows as usize;
        let mut enough = false;
        while rows < most {
            enough |= batching.preferred.iter().any(|preferred| *preferred as usize == rows);
            let Some(job) = self.next_until(if enough { None } else { Some(until) }) else { return };
            if job.answer.is_closed() {
                continue;
            }
            match batch::rows(&job.inputs).and_then(|more| rows.checked_add(more)) {
                Some(sum) if sum <= most && batch::alike(&inputs, &job.inputs) => {
                    rows = sum;
                    batch.push(job);
                }
                _ => {
                    self.next = Some(job);
                    return;
                }
            }
        }
    }

    /// What waits already, else what comes in time.
    fn next_until(&self, until: Option<Instant>) -> Option<Job> {
        let waiting = self.waiting.try_recv().ok();
        waiting.or_else(|| self.waiting.recv_timeout(until?.saturating_duration_since(Instant::now())).ok())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use engine::Tensor;

    use super::*;

    type Answer = oneshot::Receiver<Result<Scored, ScoreRefused>>;

    fn batching(max_rows: u32, max_delay: Duration, preferred: &[u32]) -> Batching {
        Batching { max_rows, max_delay, preferred: preferred.to_vec() }
    }

    fn put(queue: &SyncSender<Job>, shape: &[usize]) -> Answer {
        let tensor = Tensor::from_vec(shape.to_vec(), vec![0f32; shape.iter().product()]).unwrap();
        let inputs = Arc::new([("x", tensor)].into_iter().collect());
        let (answer, answers) = oneshot::channel();
        assert!(queue.try_send(Job { inputs, enqueued: Instant::now(), answer }).is_ok());
        answers
    }

    /// The shapes of the next batch.
    fn taken(queue: &Queue, batching: &Batching) -> Vec<Vec<usize>> {
        let mut batch = Vec::new();
        assert!(queue.take(&mut batch, batching));
        let shape = |job: &Job| job.inputs.iter().next().unwrap().1.shape().to_vec();
        batch.iter().map(shape).collect()
    }

    #[test]
    fn what_waits_is_joined_up_to_the_most_and_in_order() {
        let (sender, queue) = Queue::new(16);
        let now = batching(8, Duration::ZERO, &[]);
        let shapes = [&[3, 2][..], &[4, 2], &[2, 2], &[6, 2], &[1, 5], &[9, 2], &[], &[1, 2]];
        let _answers: Vec<Answer> = shapes.iter().map(|shape| put(&sender, shape)).collect();
        for expected in
            [&shapes[0..2], &shapes[2..4], &shapes[4..5], &shapes[5..6], &shapes[6..7], &shapes[7..]]
        {
            assert_eq!(taken(&queue, &now), expected);
        }
        drop(sender);
        assert!(!queue.take(&mut Vec::new(), &now), "empty, and nobody can fill it");
    }

    #[test]
    fn one_that_was_put_aside_is_not_lost_when_the_last_caller_goes() {
        let (sender, queue) = Queue::new(4);
        let _answers = [put(&sender, &[1, 2]), put(&sender, &[1, 3])];
        drop(sender);
        let patient = batching(8, Duration::from_secs(1), &[]);
        assert_eq!(taken(&queue, &patient), [[1, 2]]);
        assert_eq!(taken(&queue, &patient), [[1, 3]]);
        assert!(!queue.take(&mut Vec::new(), &patient));
    }

    #[test]
    fn without_batching_each_is_alone() {
        let (sender, queue) = Queue::new(4);
        let _answers = [put(&sender, &[1, 2]), put(&sender, &[1, 2])];
        for off in [0, 1] {
            assert_eq!(taken(&queue, &batching(off, Duration::from_secs(1), &[])).len(), 1);
        }
    }

    #[test]
    fn who_has_gone_takes_no_place() {
        let (sender, queue) = Queue::new(4);
        let _first = put(&sender, &[1, 2]);
        drop(put(&sender, &[7, 2]));
        let _third = put(&sender, &[3, 2]);
        assert_eq!(taken(&queue, &batching(4, Duration::from_secs(60), &[])), [[1, 2], [3, 2]]);
    }

    #[test]
    fn a_preferred_size_waits_for_nobody() {
        let (sender, queue) = Queue::new(4);
        let _answers = [put(&sender, &[1, 2]), put(&sender, &[3, 2])];
        let begun = Instant::now();
        assert_eq!(taken(&queue, &batching(64, Duration::from_secs(60), &[4])).len(), 2);
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_request_waits_for_others_as_long_as_it_may() {
        let (sender, queue) = Queue::new(4);
        let delay = Duration::from_millis(20);
        let begun = Instant::now();
        let _answer = put(&sender, &[1, 2]);
        assert_eq!(taken(&queue, &batching(64, delay, &[])).len(), 1);
        assert!(begun.elapsed() >= delay);

        let _first = put(&sender, &[1, 2]);
        let late = std::thread::spawn(move || put(&sender, &[63, 2]));
        assert_eq!(
            taken(&queue, &batching(64, Duration::from_secs(60), &[])).len(),
            2,
            "one that comes later"
        );
        late.join().unwrap();
    }
}
