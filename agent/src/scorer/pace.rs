//! How long a version takes, learnt from what it has scored.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::Tensors;

/// What is over sooner than this is scored where the request came in, on a thread of the network, of which there are two.
/// A keep-alive can wait ten thousand times as long.
pub const QUICK: Duration = Duration::from_micros(250);

/// Of a new time so much counts, one part in eight: one that was interrupted by something else changes little.
const WEIGHT: u64 = 8;

/// The time that scores took of late and the elements of their inputs. Both are averages of which the newest count most;
/// updates that meet may lose one of them, which does no harm.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// 0 before the first.
    nanos: AtomicU64,
    elements: AtomicU64,
}

impl Pace {
    /// How long a request will take, a larger one than usual in proportion; `None` before anything was scored.
    pub(super) fn expected(&self, inputs: &Tensors) -> Option<Duration> {
        let usual = self.elements.load(Ordering::Relaxed).max(1);
        let larger = elements(inputs).div_ceil(usual).max(1);
        let nanos = self.nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos.saturating_mul(larger)))
    }

    /// A request was scored in this time.
    pub(super) fn learn(&self, inputs: &Tensors, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        towards(&self.nanos, nanos);
        towards(&self.elements, elements(inputs));
    }
}

fn elements(inputs: &Tensors) -> u64 {
    inputs.iter().map(|(_, tensor)| tensor.len() as u64).sum()
}

fn towards(average: &AtomicU64, new: u64) {
    let before = average.load(Ordering::Relaxed);
    let after = if before == 0 { new } else { before - before / WEIGHT + new / WEIGHT };
    average.store(after.max(1), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use engine::Tensor;

    use super::*;

    fn inputs(elements: usize) -> Tensors {
        [("x", Tensor::from_vec(vec![elements], vec![0f32; elements]).unwrap())].into_iter().collect()
    }

    #[test]
    fn nothing_is_known_before_the_first_score() {
        let pace = Pace::default();
        assert_eq!(pace.expected(&inputs(1)), None);
        pace.learn(&inputs(10), Duration::from_micros(20));
        assert_eq!(pace.expected(&inputs(10)), Some(Duration::from_micros(20)));
        assert_eq!(
            pace.expected(&inputs(1)),
            Some(Duration::from_micros(20)),
            "a smaller one may take as long"
        );
        assert_eq!(pace.expected(&inputs(1000)), Some(Duration::from_micros(2000)));
    }

    #[test]
    fn one_that_was_interrupted_changes_little_and_a_slower_machine_all() {
        let pace = Pace::default();
        pace.learn(&inputs(1), Duration::from_micros(20));
        pace.learn(&inputs(1), Duration::from_micros(1000));
        assert!(pace.expected(&inputs(1)).unwrap() < QUICK);
        for _ in 0..40 {
            pace.learn(&inputs(1), Duration::from_micros(1000));
        }
        assert!(pace.expected(&inputs(1)).unwrap() > QUICK);
    }
}
