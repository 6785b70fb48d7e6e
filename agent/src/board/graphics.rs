//! Graphics processors, by their drivers.

use super::files::Root;

/// What there is, the ones that can compute for us first.
pub(super) fn gpus(root: &Root) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(release) = root.text("/etc/nv_tegra_release") {
        let release =
            release.trim_start_matches(['#', ' ']).split(", GCID").next().unwrap_or_default().to_owned();
        found.push(format!("NVIDIA Jetson, L4T {release}"));
    } else if let Some(version) = root.text("/proc/driver/nvidia/version") {
        let line = version.lines().next().unwrap_or_default();
        let line = line.trim_start_matches("NVRM version:").trim();
        // Not the nodes in /dev, which a service with devices of its own does not see.
        let cards = root.list("/proc/driver/nvidia/gpus", "").len();
        found.push(format!("{cards} × NVIDIA, driver {}", line.split("  ").nth(1).unwrap_or(line)));
    }
    // card0, not its connectors, as card0-HDMI-A-1.
    let cards = root.list("/sys/class/drm", "card").into_iter().filter(|card| !card.contains('-'));
    let drivers = cards.filter_map(|card| root.link(&format!("{card}/device/driver")));
    let mut others: Vec<String> = drivers.filter(|driver| !driver.starts_with("nvidia")).collect();
    others.sort();
    others.dedup();
    found.extend(others);
    found
}
