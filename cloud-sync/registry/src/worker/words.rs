//! What devices said of themselves and is not kept yet: the last word of each device and kind, so that a whole fleet
//! that connects at once finds room.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloud_sync::name::DeviceId;
use cloud_sync::topic::Kind;
use tokio::sync::Notify;

use crate::store::Note;

/// Bytes of words that may wait, as they came: those of 50,000 devices, of which each has a few hundred bytes to say of
/// its presence and its one model. What waits takes about three times as much memory.
const WAITING_BYTES: usize = 32 * 1024 * 1024;

/// Words that are kept in one transaction.
const AT_ONCE: usize = 256;

/// Words that wait.
#[derive(Default)]
pub(super) struct Words {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    words: HashMap<(DeviceId, Kind), (Note, usize)>,
    /// The first to come the first to go; a newer word takes the place of the older one.
    order: VecDeque<(DeviceId, Kind)>,
    bytes: usize,
    closed: bool,
}

impl Words {
    /// Keeps a word of so many bytes until it is taken; false where there is no room.
    pub(super) fn put(&self, note: Note, bytes: usize) -> bool {
        let key = match &note {
            Note::Presence(device, _) => (device.clone(), Kind::Presence),
            Note::Reported(device, _) => (device.clone(), Kind::Reported),
        };
        let mut waiting = self.waiting();
        let before = waiting.words.get(&key).map(|(_, bytes)| *bytes);
        let after = waiting.bytes.saturating_sub(before.unwrap_or(0)).saturating_add(bytes);
        // A newer word takes the place of the older one even where there is no room: one message at the most is too much.
        if after > WAITING_BYTES && before.is_none() {
            return false;
        }
        waiting.bytes = after;
        if before.is_none() {
            waiting.order.push_back(key.clone());
        }
        waiting.words.insert(key, (note, bytes));
        drop(waiting);
        self.changed.notify_one();
        true
    }

    /// Waits for words and takes some; none once it is closed and empty. For one taker.
    pub(super) async fn take(&self) -> Option<Vec<Note>> {
        loop {
            if let Some(taken) = self.waiting().take() {
                return Some(taken);
            }
            if self.waiting().closed {
                return None;
            }
            self.changed.notified().await;
        }
    }

    /// No more words will come.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.changed.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Vec<Note>> {
        let count = self.order.len().min(AT_ONCE);
        let keys: Vec<_> = self.order.drain(..count).collect();
        let taken: Vec<(Note, usize)> = keys.iter().filter_map(|key| self.words.remove(key)).collect();
        self.bytes = self.bytes.saturating_sub(taken.iter().map(|(_, bytes)| bytes).sum());
        (!taken.is_empty()).then(|| taken.into_iter().map(|(note, _)| note).collect())
    }
}

#[cfg(test)]
mod tests {
    use cloud_sync::contract::Presence;

    use super::*;

    fn presence(device: &str, online: bool) -> Note {
        let presence = Presence { online, boot_id: "b".into(), agent_version: "0.1.0".into() };
        Note::Presence(device.parse().unwrap(), presence)
    }

    #[tokio::test]
    async fn the_last_word_of_each_device_is_taken_in_the_order_of_the_first() {
        let words = Words::default();
        for (device, online) in [("a", true), ("b", true), ("a", false)] {
            assert!(words.put(presence(device, online), 100));
        }
        let taken = words.take().await.unwrap();
        let said = |note: &Note| match note {
            Note::Presence(device, presence) => (device.to_string(), presence.online),
            Note::Reported(..) => panic!("nobody reported"),
        };
        assert_eq!(taken.iter().map(said).collect::<Vec<_>>(), [("a".into(), false), ("b".into(), true)]);
        words.close();
        assert!(words.take().await.is_none());
    }

    #[tokio::test]
    async fn the_bound_holds_and_what_is_taken_makes_room() {
        let words = Words::default();
        assert!(words.put(presence("a", true), WAITING_BYTES - 1));
        assert!(!words.put(presence("b", true), 2));
        assert!(words.put(presence("a", false), WAITING_BYTES), "it takes the place of the older one");
        words.take().await.unwrap();
        assert!(words.put(presence("b", true), WAITING_BYTES));
    }
}
