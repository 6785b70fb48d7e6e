//! The control groups that hold the process, of version 1 and 2: how much memory and time they leave it.
//!
//! A group can't have more than the groups around it, so all of them are asked and the narrowest counts. A container
//! sees its own group as the root, and paths beside it that lead nowhere: those are passed over.

use super::files::{Root, field};

/// Most levels of groups: Kubernetes nests seven.
const MAX_LEVELS: usize = 32;

/// Where the groups of version 2 are: alone, or beside those of version 1.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What one group says of its memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// The most that it may use.
    pub(super) limit: u64,
    /// What it uses, without cached files that the kernel can drop at once.
    pub(super) used: u64,
}

/// What the groups say that have a limit.
pub(super) fn memory(root: &Root) -> Vec<Memory> {
    let unified = |group: &String| {
        // Above the soft limit the kernel takes memory back and slows the group down.
        let limits = ["memory.max", "memory.high"].map(|file| root.number(format!("{group}/{file}")));
        let limit = limits.into_iter().flatten().min()?;
        used(root, group, "memory.current", ["inactive_file", "active_file"])
            .map(|used| Memory { limit, used })
    };
    let first = |group: &String| {
        let limit = root.number(format!("{group}/memory.limit_in_bytes"))?;
        used(root, group, "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"])
            .map(|used| Memory { limit, used })
    };
    let mut found: Vec<Memory> = unified_groups(root).iter().filter_map(unified).collect();
    found.extend(groups(root, "memory").iter().filter_map(first));
    found
}

/// The cores' time that the narrowest group leaves, in cores; `None` without a limit.
pub(super) fn cores(root: &Root) -> Option<f64> {
    let unified = |group: &String| {
        let text = root.text(format!("{group}/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    };
    let first = |group: &String| {
        let quota: f64 = root.number(format!("{group}/cpu.cfs_quota_us"))?;
        let period: f64 = root.number(format!("{group}/cpu.cfs_period_us"))?;
        (quota > 0.0).then_some(quota / period)
    };
    let mut found: Vec<f64> = unified_groups(root).iter().filter_map(unified).collect();
    found.extend(groups(root, "cpu").iter().filter_map(first));
    found.into_iter().filter(|cores| *cores > 0.0).min_by(f64::total_cmp)
}

/// Whether the kernel can hold a group to a limit of memory; `None` where it does not say.
pub(super) fn has_memory(root: &Root) -> Option<bool> {
    let unified = root.text("/sys/fs/cgroup/cgroup.controllers");
    let in_unified = unified.map(|all| all.split_whitespace().any(|name| name == "memory"));
    // `memory 0 84 1`: the last says whether it is switched on, whichever version it is mounted as.
    let all = root.text("/proc/cgroups");
    let in_all = all.and_then(|all| Some(field(&all.replace('\t', " "), "memory")?.ends_with(" 1")));
    if in_unified == Some(true) { Some(true) } else { in_all.or(in_unified) }
}

/// The file that tells how long this process's innermost group of version 2 waited for memory.
pub(super) fn memory_pressure(root: &Root) -> Option<String> {
    let files = unified_groups(root).into_iter().map(|group| format!("{group}/memory.pressure"));
    files.into_iter().find(|file| root.has(file))
}

fn used(root: &Root, group: &str, usage: &str, cached: [&str; 2]) -> Option<u64> {
    let usage: u64 = root.number(format!("{group}/{usage}"))?;
    let statistics = root.text(format!("{group}/memory.stat")).unwrap_or_default();
    let bytes =
        |name: &str| field(&statistics, name).and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or(0);
    Some(usage.saturating_sub(cached.map(bytes).into_iter().sum()))
}

fn unified_groups(root: &Root) -> Vec<String> {
    let own = own(root, "");
    UNIFIED.iter().flat_map(|mount| around(mount, own.as_deref().unwrap_or("/"))).collect()
}

fn groups(root: &Root, controller: &str) -> Vec<String> {
    let own = own(root, controller);
    around(&format!("/sys/fs/cgroup/{controller}"), own.as_deref().unwrap_or("/"))
}

/// The path of this process's group of a controller; "" is version 2.
fn own(root: &Root, controller: &str) -> Option<String> {
    root.of_process("cgroup")?.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then(|| path.to_owned())
    })
}

/// A group's directory and those around it, the innermost first.
fn around(mount: &str, group: &str) -> Vec<String> {
    let mut groups = Vec::new();
    let mut group = group.trim_matches('/');
    while !group.is_empty() && groups.len() < MAX_LEVELS {
        groups.push(format!("{mount}/{group}"));
        group = group.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    groups.push(mount.to_owned());
    groups
}
