//! How much memory there is, how much of it is ours, and how much is left.

use serde::Serialize;

use super::cgroup;
use super::files::{Root, field};

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Of the machine.
    pub total: Option<u64>,
    /// The most that this process's control groups may use, where that is less.
    pub limit: Option<u64>,
    /// What could still be had without swapping, by the machine and by the control groups.
    pub available: Option<u64>,
    /// Swap space.
    pub swap: Option<u64>,
    /// What of it is used.
    pub swap_used: Option<u64>,
    /// The files and devices that hold it.
    pub swap_on: Vec<String>,
    /// Whether the kernel can hold a control group to a limit; `None` where it does not say.
    pub limitable: Option<bool>,
    /// Whether the kernel counts how long is waited for memory.
    pub waits_counted: bool,
}

impl Memory {
    /// Reads it.
    pub fn read(root: &Root) -> Self {
        let info = root.text("/proc/meminfo").unwrap_or_default();
        let bytes = |name: &str| {
            let kibibytes = field(&info, name)?.split_whitespace().next()?.parse::<u64>().ok()?;
            kibibytes.checked_mul(1024)
        };
        let total = bytes("MemTotal");
        let groups = cgroup::memory(root);
        let limited = groups.iter().filter(|group| total.is_none_or(|total| group.limit < total));
        let left = groups.iter().map(|group| group.limit.saturating_sub(group.used));
        let swap = bytes("SwapTotal");
        let swaps = root.text("/proc/swaps").unwrap_or_default();
        let swap_on = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        Self {
            total,
            limit: limited.map(|group| group.limit).min(),
            available: left.chain(bytes("MemAvailable")).min(),
            swap,
            swap_used: swap.zip(bytes("SwapFree")).map(|(swap, free)| swap.saturating_sub(free)),
            swap_on: swap_on.map(str::to_owned).collect(),
            limitable: cgroup::has_memory(root),
            waits_counted: root.text("/proc/pressure/memory").is_some(),
        }
    }

    /// What the agent may use at most.
    pub fn usable(&self) -> Option<u64> {
        self.limit.or(self.total)
    }
}

/// The share of the last ten seconds in which everything that runs here waited for memory, 0 to 100: of this
/// process's control group, else of the machine. `None` where the kernel does not count it.
pub fn stalled(root: &Root) -> Option<f64> {
    let file = cgroup::memory_pressure(root).unwrap_or_else(|| "/proc/pressure/memory".to_owned());
    let text = root.text(file)?;
    let full = field(&text, "full")?;
    full.split_whitespace().find_map(|part| part.strip_prefix("avg10="))?.parse().ok()
}
