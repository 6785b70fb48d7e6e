//! Metrics of the machine under the agent, under the names that Triton gives them, and of the agent's own process.

use std::sync::{Arc, Mutex, PoisonError};

use super::Source;
use crate::board::{Memory, Root, Ticks, resident};
use crate::exposition::{Exposition, Kind};

/// What writes them, of the system below `root`.
pub fn source(root: Root) -> Source {
    let last = Mutex::new(Ticks::default());
    Arc::new(move |exposition| {
        let mut gauge = |name, help, value: Option<u64>| {
            if let Some(value) = value {
                exposition.family(name, Kind::Gauge, help).sample(&[], value);
            }
        };
        let memory = Memory::read(&root);
        let total = memory.usable();
        let used = total.zip(memory.available).map(|(total, left)| total.saturating_sub(left));
        gauge("nv_cpu_memory_total_bytes", "Memory that the agent may use.", total);
        gauge("nv_cpu_memory_used_bytes", "What of it can't be had now, whoever uses it.", used);
        gauge("process_resident_memory_bytes", "Memory that the agent holds.", resident(&root));
        of_processor(&root, &last, exposition);
    })
}

/// Between two looks, whoever looked; at the first one, since the machine's start.
fn of_processor(root: &Root, last: &Mutex<Ticks>, exposition: &mut Exposition) {
    let Some(now) = Ticks::read(root) else { return };
    let before = std::mem::replace(&mut *last.lock().unwrap_or_else(PoisonError::into_inner), now);
    let help = "Share of the processor's time that was used since this was last asked, 0 to 1.";
    let share = now.since(before).unwrap_or_default();
    exposition.family("nv_cpu_utilization", Kind::Gauge, help).sample(&[], share);
}
