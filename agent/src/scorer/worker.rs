//! The threads that score what waits for a version: each request alone, or several as one.
//!
//! Invariants:
//! - A request whose caller has gone away is not scored.
//! - Where a batch fails, each of its requests is scored alone, so that only the one at fault fails. A model that does not
//!   give a row for each row is asked for one request at a time from then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use cloud_sync::name::ModelName;
use engine::{Tensors, batch};

use super::Scored;
use super::counters::Counters;
use super::instances::{Instance, Instances};
use super::queue::{Job, Queue};
use crate::settings::Batching;

/// What the workers of a version share.
pub(super) struct Workshop {
    pub(super) name: ModelName,
    pub(super) instances: Arc<Instances>,
    pub(super) queue: Queue,
    pub(super) counters: Arc<Counters>,
    pub(super) batching: Batching,
    /// It was seen that the model gives other rows than it is given.
    pub(super) does_not_batch: AtomicBool,
}

/// One worker, which scores on the instance at its place.
pub(super) struct Worker {
    pub(super) shop: Arc<Workshop>,
    pub(super) place: usize,
    pub(super) _working: SyncSender<()>,
}

impl Worker {
    /// Scores until the queue is empty and nobody can fill it any more.
    pub(super) fn run(self) {
        let shop = &*self.shop;
        let alone = Batching::default();
        let mut jobs = Vec::new();
        loop {
            let batching = if shop.does_not_batch.load(Ordering::Relaxed) { &alone } else { &shop.batching };
            if !shop.queue.take(&mut jobs, batching) {
                return;
            }
            let Some(mut instance) = shop.instances.take(self.place) else { return };
            jobs.retain(|job| !job.answer.is_closed());
            if jobs.len() > 1 {
                shop.score_as_one(&mut instance, &mut jobs);
            }
            for Job { inputs, enqueued, answer } in jobs.drain(..) {
                // Gone while others were scored.
                if answer.is_closed() {
                    continue;
                }
                let result = instance.score(&shop.name, &inputs, enqueued.elapsed());
                if let Ok(scored) = &result {
                    shop.counted(batch::rows(&inputs), scored.computed);
                }
                let _ = answer.send(result);
            }
        }
    }
}

impl Workshop {
    /// Scores several requests as one and answers them; leaves them where that can't be done.
    fn score_as_one(&self, instance: &mut Instance<'_>, jobs: &mut Vec<Job>) {
        let inputs: Vec<&Tensors> = jobs.iter().map(|job| &*job.inputs).collect();
        let begun = Instant::now();
        let Some(joined) = batch::join(&inputs) else { return };
        let Ok(scored) = instance.score(&self.name, &Arc::new(joined), Duration::ZERO) else { return };
        let rows: Vec<usize> = inputs.iter().filter_map(|inputs| batch::rows(inputs)).collect();
        self.counted(Some(rows.iter().sum()), scored.computed);
        let Some(outputs) = batch::split(&scored.outputs, &rows) else {
            if !self.does_not_batch.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    model = %self.name,
                    "its outputs have other rows than its inputs: requests are scored alone, whatever max_batch says"
                );
            }
            return;
        };
        for (Job { inputs, enqueued, answer }, outputs) in jobs.drain(..).zip(outputs) {
            let queued = begun.saturating_duration_since(enqueued);
            let _ = answer.send(Ok(Scored {
                inputs,
                outputs: outputs.into(),
                queued,
                computed: scored.computed,
            }));
        }
    }

    fn counted(&self, rows: Option<usize>, computed: Duration) {
        if let Some(rows) =
            rows.filter(|rows| self.batching.is_on() && *rows <= self.batching.max_rows as usize)
        {
            self.counters.batch(rows, computed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use engine::{DataType, Engine, Model, ScoreError, Signature, Tensor, TensorSpec};

    use super::super::{Facts, Live, Proven, ScoreRefused, Scorer};
    use super::*;
    use crate::settings::Settings;

    /// Far beyond any test: a batch is full, or it is waited for.
    const LONG: Duration = Duration::from_secs(60);

    /// A model of one input and one output of numbers, which are computed by this.
    struct Computes {
        signature: Signature,
        by: fn(&[f32]) -> Option<Vec<f32>>,
    }

    impl Model for Computes {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn score(&mut self, inputs: &Tensors) -> Result<Tensors, ScoreError> {
            let outputs = (self.by)(inputs.get("x").unwrap().as_slice().unwrap());
            let outputs =
                outputs.ok_or(ScoreError::Engine { engine: Engine::Tract, why: "odd".to_owned() })?;
            Ok([("y", Tensor::from_vec(vec![outputs.len()], outputs).unwrap())].into_iter().collect())
        }
    }

    fn live(most: u32, by: fn(&[f32]) -> Option<Vec<f32>>) -> Arc<Live> {
        let spec =
            |name: &str| TensorSpec { name: name.to_owned(), data_type: DataType::F32, shape: vec![None] };
        let signature = Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] };
        let batching = Batching { max_rows: most, max_delay: LONG, preferred: Vec::new() };
        let provider = engine::Provider::Tract;
        let facts = Facts {
            name: "numbers".parse().unwrap(),
            version: 1,
            digest: cloud_sync::digest::Digest::of(b""),
            signature: signature.clone().into(),
            labels: Vec::new(),
            engine: String::new(),
            provider: String::new(),
            why: None,
            memory_bytes: 0,
            settings: Settings {
                provider,
                threads: 1,
                instances: 1,
                queue: 16,
                batching,
                tuning: Default::default(),
                collect: None,
            },
        };
        let scorer = Scorer::default();
        scorer.swap(Proven { facts, instances: vec![Box::new(Computes { signature, by })] }).unwrap();
        scorer.get("numbers").unwrap()
    }

    async fn score(live: &Live, numbers: &[f32]) -> Result<Vec<f32>, ScoreRefused> {
        let inputs = [("x", Tensor::from_vec(vec![numbers.len()], numbers.to_vec()).unwrap())];
        let scored = live.score(inputs.into_iter().collect(), LONG).await?;
        Ok(scored.outputs.get("y").unwrap().as_slice().unwrap().to_vec())
    }

    fn count(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_full_batch_is_one_run_and_each_has_its_own_rows() {
        let live = live(6, |x| Some(x.iter().map(|x| x * 2.0).collect()));
        let answers =
            tokio::join!(score(&live, &[1.0]), score(&live, &[2.0, 3.0, 4.0]), score(&live, &[5.0, 6.0]));
        assert_eq!(answers, (Ok(vec![2.0]), Ok(vec![4.0, 6.0, 8.0]), Ok(vec![10.0, 12.0])));
        let counters = &live.counters;
        assert_eq!((count(&counters.runs), count(&counters.success), count(&counters.rows)), (1, 3, 6));
        assert_eq!(
            counters.batches().into_iter().map(|(rows, (runs, _))| (rows, runs)).collect::<Vec<_>>(),
            [(6, 1)]
        );
    }

    #[tokio::test]
    async fn only_the_request_at_fault_fails() {
        let odd = |x: &[f32]| x.iter().all(|x| x % 2.0 == 0.0).then(|| x.to_vec());
        let panics = |x: &[f32]| x.iter().all(|x| x % 2.0 == 0.0 || panic!("{x}")).then(|| x.to_vec());
        for by in [odd, panics] {
            let live = live(3, by);
            let (first, second, third) =
                tokio::join!(score(&live, &[2.0]), score(&live, &[3.0]), score(&live, &[4.0]));
            assert_eq!((first, third), (Ok(vec![2.0]), Ok(vec![4.0])));
            assert!(matches!(second, Err(ScoreRefused::Score(_) | ScoreRefused::Crashed(_))), "{second:?}");
            assert_eq!((count(&live.counters.runs), count(&live.counters.failed)), (2, 1));
        }
    }

    #[tokio::test]
    async fn a_model_without_a_row_for_each_row_is_asked_alone_from_then_on() {
        let live = live(2, |x| Some(vec![x.iter().sum()]));
        let both = tokio::join!(score(&live, &[1.0]), score(&live, &[2.0]));
        assert_eq!(both, (Ok(vec![1.0]), Ok(vec![2.0])));
        assert_eq!(score(&live, &[3.0]).await, Ok(vec![3.0]), "which nobody is waited for");
        assert_eq!(count(&live.counters.runs), 4);
    }

    #[tokio::test]
    async fn who_goes_while_a_batch_is_gathered_is_not_scored() {
        let live = live(4, |x| Some(x.to_vec()));
        let gone = tokio::time::timeout(Duration::ZERO, score(&live, &[1.0]));
        assert!(gone.await.is_err());
        let both = tokio::join!(score(&live, &[2.0]), score(&live, &[3.0, 4.0]));
        assert_eq!(both, (Ok(vec![2.0]), Ok(vec![3.0, 4.0])));
        assert_eq!(count(&live.counters.rows), 3);
    }
}
