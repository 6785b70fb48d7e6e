//! The processor: what it calls itself, and how many cores of it are ours.

use serde::Serialize;

use super::cgroup;
use super::files::{Root, field};

/// Cores of the processor.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cores {
    /// That are switched on.
    pub online: Option<u32>,
    /// That this process may run on, by its affinity.
    pub allowed: Option<u32>,
    /// Whose time its control groups leave it.
    pub quota: Option<f64>,
}

impl Cores {
    pub(super) fn read(root: &Root) -> Self {
        let status = root.of_process("status").unwrap_or_default();
        Self {
            online: root.text("/sys/devices/system/cpu/online").and_then(|list| count(&list)),
            allowed: field(&status, "Cpus_allowed_list").and_then(count),
            quota: cgroup::cores(root),
        }
    }

    /// How many threads have a core each: whole cores, at least one.
    pub fn usable(&self) -> Option<u32> {
        let quota = self.quota.map(|cores| (cores as u32).max(1));
        [self.online, self.allowed, quota].into_iter().flatten().min()
    }
}

/// The processor's name for itself. ARM's cores say a number, which stands in the Technical Reference Manual of each.
pub(super) fn name(root: &Root) -> Option<String> {
    let info = root.text("/proc/cpuinfo")?;
    let arm = || {
        (field(&info, "CPU implementer")? == "0x41").then_some(())?;
        let part = field(&info, "CPU part")?;
        let known = ARM_PARTS.iter().find(|(number, _)| *number == part)?;
        Some(format!("ARM {}", known.1))
    };
    arm().or_else(|| Some(field(&info, "model name")?.to_owned()))
}

const ARM_PARTS: [(&str, &str); 14] = [
    ("0xb76", "ARM1176"),
    ("0xc07", "Cortex-A7"),
    ("0xc08", "Cortex-A8"),
    ("0xc09", "Cortex-A9"),
    ("0xc0f", "Cortex-A15"),
    ("0xd03", "Cortex-A53"),
    ("0xd04", "Cortex-A35"),
    ("0xd05", "Cortex-A55"),
    ("0xd07", "Cortex-A57"),
    ("0xd08", "Cortex-A72"),
    ("0xd09", "Cortex-A73"),
    ("0xd0b", "Cortex-A76"),
    ("0xd42", "Cortex-A78AE"),
    ("0xd4d", "Cortex-A715"),
];

/// How many a list such as `0-3,6` names.
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}
