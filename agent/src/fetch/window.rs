//! Which pieces are asked for, and how many at a time. Pure: time is an argument.
//!
//! On a real link the rate is pieces × size / round trip, so the window grows with every piece that comes in
//! good time, from one piece on a link of 100 kbit/s to [`LARGEST`] on a LAN, and halves when pieces are lost. A piece that
//! is only late is as good as one in time: on a very slow link all of them are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use cloud_sync::contract::Want;

/// Most pieces on their way: 64 of at most 64 KiB bound the memory to 4 MiB, and fill 1 Gbit/s at 10 ms.
pub(super) const LARGEST: usize = 64;

/// Pieces on their way at first.
const FIRST: usize = 4;

/// A round trip beyond which the window no longer grows: more would only queue in the broker.
const LONG_ROUND_TRIP: Duration = Duration::from_secs(2);

/// Least and most time that a piece is waited for. The least bears a link that stalls for some seconds; the most
/// is what one largest piece takes at 5 kbit/s.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// The pieces of one pull.
pub(super) struct Window {
    waiting: VecDeque<Want>,
    asked: HashMap<Want, Instant>,
    /// Of those that wait, the ones that were asked for before and given up.
    late: HashSet<Want>,
    size: usize,
    round_trip: Duration,
}

impl Window {
    pub(super) fn new(wants: impl IntoIterator<Item = Want>) -> Self {
        let waiting = wants.into_iter().collect();
        Self { waiting, asked: HashMap::new(), late: HashSet::new(), size: FIRST, round_trip: Duration::ZERO }
    }

    /// Whether every piece is here.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_empty()
    }

    /// Whether this piece was asked for and is not here. One that has been given up may still come.
    pub(super) fn is_wanted(&self, want: &Want) -> bool {
        self.asked.contains_key(want) || self.late.contains(want)
    }

    /// What to ask for now. Waits until half of the window is free, so that one message asks for many.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Want> {
        self.expire(now);
        let free = self.size.saturating_sub(self.asked.len());
        if free < self.size.div_ceil(2) {
            return Vec::new();
        }
        let wants: Vec<Want> = self.waiting.drain(..free.min(self.waiting.len())).collect();
        for want in &wants {
            self.late.remove(want);
        }
        self.asked.extend(wants.iter().map(|want| (*want, now)));
        wants
    }

    /// A piece is here and stored.
    pub(super) fn done(&mut self, want: &Want, now: Instant) {
        let Some(asked) = self.asked.remove(want) else {
            if self.late.remove(want) {
                self.waiting.retain(|waiting| waiting != want);
            }
            return;
        };
        let round_trip = now.saturating_duration_since(asked);
        // The usual smoothing, one eighth of the news.
        self.round_trip = if self.round_trip.is_zero() {
            round_trip
        } else {
            self.round_trip.saturating_mul(7).saturating_add(round_trip) / 8
        };
        if round_trip < LONG_ROUND_TRIP {
            self.size = (self.size + 1).min(LARGEST);
        }
    }

    /// One more piece.
    pub(super) fn add(&mut self, want: Want) {
        self.waiting.push_front(want);
    }

    /// A piece came and was of no use.
    pub(super) fn again(&mut self, want: &Want) {
        if self.asked.remove(want).is_some() {
            self.waiting.push_back(*want);
        }
        self.late.remove(want);
    }

    /// Nothing that was asked for will come.
    pub(super) fn forget_asked(&mut self) {
        self.waiting.extend(self.asked.drain().map(|(want, _)| want));
        self.late.clear();
        self.size = FIRST;
    }

    fn expire(&mut self, now: Instant) {
        let patience = self.round_trip.saturating_mul(4).clamp(PATIENCE.0, PATIENCE.1);
        let late = |asked: &Instant| now.saturating_duration_since(*asked) >= patience;
        let lost: Vec<Want> =
            self.asked.iter().filter(|(_, asked)| late(asked)).map(|(want, _)| *want).collect();
        if !lost.is_empty() {
            self.size = (self.size / 2).max(1);
            // What seems lost may be on its way, and asking again and again would fill a slow link with the same pieces: the
            // next are waited for twice as long, until some come.
            self.round_trip = self.round_trip.max(patience / 2);
        }
        for want in lost {
            self.asked.remove(&want);
            self.late.insert(want);
            self.waiting.push_front(want);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloud_sync::digest::Digest;

    fn wants(count: u64) -> Vec<Want> {
        (0..count).map(|i| Want { digest: Digest::of(&i.to_le_bytes()), offset: 0 }).collect()
    }

    #[test]
    fn the_window_grows_on_a_fast_link_and_is_bounded() {
        let mut window = Window::new(wants(1000));
        let now = Instant::now();
        let mut most = 0;
        while !window.is_done() {
            let asked = window.take(now);
            assert!(!asked.is_empty());
            for want in asked {
                window.done(&want, now + Duration::from_millis(1));
            }
            most = most.max(window.size);
        }
        assert_eq!(most, LARGEST);
    }

    #[test]
    fn a_slow_link_keeps_the_window_small() {
        let mut window = Window::new(wants(20));
        let now = Instant::now();
        for want in window.take(now) {
            window.done(&want, now + Duration::from_secs(5));
        }
        assert_eq!(window.size, FIRST);
    }

    #[test]
    fn what_does_not_come_is_asked_for_again() {
        let mut window = Window::new(wants(4));
        let now = Instant::now();
        assert_eq!(window.take(now).len(), 4);
        assert!(window.take(now + Duration::from_secs(9)).is_empty());
        assert_eq!(window.take(now + Duration::from_secs(10)).len(), 2, "with half the window");
    }

    #[test]
    fn a_late_piece_is_taken_and_the_next_are_waited_for_longer() {
        let mut window = Window::new(wants(4));
        let now = Instant::now();
        let asked = window.take(now);
        let late = now + Duration::from_secs(10);
        let again = window.take(late);
        assert_eq!(again.len(), 2);
        for want in &asked {
            assert!(window.is_wanted(want));
        }
        assert!(window.take(late + Duration::from_secs(19)).is_empty(), "asked for again too soon");
        for want in &asked {
            window.done(want, late + Duration::from_secs(19));
        }
        assert!(window.is_done());
        assert!(!window.is_wanted(&again[0]));
    }

    #[test]
    fn a_lost_link_forgets_what_was_asked_and_nothing_else() {
        let mut window = Window::new(wants(8));
        let now = Instant::now();
        let asked = window.take(now);
        window.done(&asked[0], now);
        window.forget_asked();
        assert!(!window.is_wanted(&asked[1]));
        let mut rest = 0;
        while !window.is_done() {
            for want in window.take(now) {
                window.done(&want, now);
                rest += 1;
            }
        }
        assert_eq!(rest, 7);
    }
}
