//! Whether the processor is slowed down to keep it cool or because its supply is weak, now, lately or since boot.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::files::Root;

/// What slows a processor down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The supply gives too little.
    UnderVoltage,
    /// It is slowed down for its heat or its supply.
    Throttled,
    /// It is at the temperature from which it runs slower.
    TemperatureLimit,
}

/// What is seen of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// Whether this machine tells that it is slowed down; one may tell of its supply alone.
    pub known: bool,
    /// Now.
    pub now: BTreeSet<Cause>,
    /// In the last seconds: a Raspberry Pi whose driver has the firmware forget what was before.
    pub lately: BTreeSet<Cause>,
    /// At any time since boot.
    pub since_boot: BTreeSet<Cause>,
    /// How often the processor says that it was, since boot; a look later tells whether it is now.
    pub events: Option<u64>,
    /// Whether the highest frequency is set below what the processor can do: by heat, or by the owner's choice.
    pub capped: bool,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnderVoltage => "under-voltage",
            Self::Throttled => "throttled",
            Self::TemperatureLimit => "temperature limit",
        })
    }
}

/// Raspberry Pi's bits of `vcgencmd get_throttled`: now, and 16 bits higher that it was.
const BITS: [(u32, Cause); 4] =
    [(0, Cause::UnderVoltage), (1, Cause::Throttled), (2, Cause::Throttled), (3, Cause::TemperatureLimit)];

impl Throttling {
    /// Reads it.
    pub fn read(root: &Root) -> Self {
        let mut found = Self::default();
        found.raspberry_pi(root);
        found.cooling_devices(root);
        found.cores(root);
        found
    }

    /// What it was, and is not now, with the time in words.
    pub fn past(&self) -> impl Iterator<Item = (Cause, &'static str)> {
        let lately = self.lately.difference(&self.now).map(|cause| (*cause, "lately"));
        let earlier = self.since_boot.iter().filter(|cause| !self.lately.contains(*cause));
        lately.chain(earlier.filter(|cause| !self.now.contains(*cause)).map(|cause| (*cause, "since boot")))
    }

    fn raspberry_pi(&mut self, root: &Root) {
        let monitors = root.list("/sys/class/hwmon", "hwmon").into_iter();
        let mut supplies =
            monitors.filter(|monitor| root.text(format!("{monitor}/name")).as_deref() == Some("rpi_volt"));
        let alarm: Option<u8> =
            supplies.find_map(|monitor| root.number(format!("{monitor}/in0_lcrit_alarm")));
        if alarm == Some(1) {
            self.now.insert(Cause::UnderVoltage);
        }
        let Some(bits) = firmware_bits(root) else { return };
        self.known = true;
        // The driver behind that alarm asks the firmware every two seconds, and has it clear the upper bits.
        let was = if alarm.is_some() { &mut self.lately } else { &mut self.since_boot };
        for (bit, cause) in BITS {
            if alarm.is_some() && cause == Cause::UnderVoltage {
                continue;
            }
            if bits & (1 << bit) != 0 {
                self.now.insert(cause);
            }
            if bits & (1 << (bit + 16)) != 0 {
                was.insert(cause);
            }
        }
    }

    fn cooling_devices(&mut self, root: &Root) {
        for device in root.list("/sys/class/thermal", "cooling_device") {
            let kind = root.text(format!("{device}/type")).unwrap_or_default().to_lowercase();
            // A fan that turns is no throttling.
            if !kind.contains("cpu") && kind != "processor" {
                continue;
            }
            self.known = true;
            if root.number::<i64>(format!("{device}/cur_state")).is_some_and(|state| state > 0) {
                self.now.insert(Cause::Throttled);
            }
        }
    }

    fn cores(&mut self, root: &Root) {
        let number = |core: &str, file: &str| root.number::<u64>(format!("{core}/{file}"));
        for core in root.list("/sys/devices/system/cpu", "cpu") {
            let counts = ["core_throttle_count", "package_throttle_count"];
            let counts = counts.map(|file| number(&core, &format!("thermal_throttle/{file}")));
            if let Some(count) = counts.into_iter().flatten().max() {
                self.known = true;
                self.events = Some(self.events.unwrap_or(0).saturating_add(count));
            }
            let [set, possible] = ["scaling_max_freq", "cpuinfo_max_freq"]
                .map(|file| number(&core, &format!("cpufreq/{file}")));
            self.capped |= set.zip(possible).is_some_and(|(set, possible)| set < possible);
        }
        if self.events.is_some_and(|events| events > 0) {
            self.since_boot.insert(Cause::Throttled);
        }
    }
}

/// Newer kernels put one warning into their log for the first read since boot ("deprecated, use hwmon sysfs instead"):
/// it is worth that, for their hwmon tells of the supply alone, and nothing else of a firmware that slows down for heat.
fn firmware_bits(root: &Root) -> Option<u32> {
    // `soc/soc:firmware`, on a Raspberry Pi 5 `soc@107c000000/soc@107c000000:firmware`.
    let buses = root.list("/sys/devices/platform", "soc").into_iter();
    let mut firmware =
        buses.flat_map(|bus| root.list(&bus, "soc")).filter(|node| node.ends_with(":firmware"));
    let text = firmware.find_map(|node| root.text(format!("{node}/get_throttled")))?;
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}
