//! Whether the processor is slowed down to keep it cool or because its supply is weak, now or since boot.

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
    /// Whether this machine tells at all.
    pub known: bool,
    /// Now.
    pub now: BTreeSet<Cause>,
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

/// Raspberry Pi's bits of `vcgencmd get_throttled`: now, and 16 bits higher since boot.
const RASPBERRY_PI: &str = "/sys/devices/platform/soc/soc:firmware/get_throttled";
const BITS: [(u32, Cause); 4] =
    [(0, Cause::UnderVoltage), (1, Cause::Throttled), (2, Cause::Throttled), (3, Cause::TemperatureLimit)];

impl Throttling {
    /// Reads it.
    pub fn read(root: &Root) -> Self {
        let mut found = Self::default();
        found.raspberry_pi(root);
        found.supply(root);
        found.cooling_devices(root);
        found.cores(root);
        found
    }

    fn raspberry_pi(&mut self, root: &Root) {
        let text = root.text(RASPBERRY_PI);
        let bits = text.and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok());
        let Some(bits) = bits else { return };
        self.known = true;
        for (bit, cause) in BITS {
            if bits & (1 << bit) != 0 {
                self.now.insert(cause);
            }
            if bits & (1 << (bit + 16)) != 0 {
                self.since_boot.insert(cause);
            }
        }
    }

    fn supply(&mut self, root: &Root) {
        for monitor in root.list("/sys/class/hwmon", "hwmon") {
            if root.text(format!("{monitor}/name")).as_deref() == Some("rpi_volt") {
                self.known = true;
                if root.number::<u8>(format!("{monitor}/in0_lcrit_alarm")) == Some(1) {
                    self.now.insert(Cause::UnderVoltage);
                }
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
