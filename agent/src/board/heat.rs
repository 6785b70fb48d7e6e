//! How hot it is, and how hot it may become.

use serde::Serialize;

use super::files::Root;

/// Temperatures that a sensor can mean; one that is switched off says −273, 0 or nonsense.
const SENSIBLE: std::ops::RangeInclusive<f64> = -60.0..=200.0;

/// Limits that are meant: some firmware says 20 °C, at which a board would be critical all its life.
const LEAST_CRITICAL: f64 = 60.0;

/// Trip points of a thermal zone: the kernel's own limit is 12 on most boards.
const MAX_TRIPS: usize = 16;

/// What says 100 °C at all times on NVIDIA's Jetson boards.
const STUCK: &str = "PMIC-Die";

/// Processors' sensors that are no thermal zones.
const PROCESSOR_SENSORS: [&str; 3] = ["coretemp", "k10temp", "zenpower"];

/// A temperature sensor. Degrees Celsius.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensor {
    /// Its name.
    pub name: String,
    /// What it says.
    pub celsius: f64,
    /// Where the system switches itself off; `None` where it has no such limit.
    pub critical: Option<f64>,
}

impl Sensor {
    /// Degrees that are left.
    pub fn headroom(&self) -> Option<f64> {
        self.critical.map(|critical| critical - self.celsius)
    }
}

/// All sensors that tell of the processor or the board.
pub fn sensors(root: &Root) -> Vec<Sensor> {
    let zones = root.list("/sys/class/thermal", "thermal_zone");
    let zones = zones.iter().filter_map(|zone| thermal_zone(root, zone));
    let processors = root.list("/sys/class/hwmon", "hwmon");
    let processors = processors.iter().flat_map(|monitor| processor(root, monitor));
    zones.chain(processors).collect()
}

/// The one that is nearest to its limit, else the one that is hottest.
pub fn hottest(sensors: &[Sensor]) -> Option<&Sensor> {
    let limited = sensors.iter().filter_map(|sensor| Some((sensor, sensor.headroom()?)));
    let nearest = limited.min_by(|(_, one), (_, other)| one.total_cmp(other));
    let hottest = || sensors.iter().max_by(|one, other| one.celsius.total_cmp(&other.celsius));
    nearest.map(|(sensor, _)| sensor).or_else(hottest)
}

fn thermal_zone(root: &Root, zone: &str) -> Option<Sensor> {
    let name = root.text(format!("{zone}/type")).filter(|name| name != STUCK)?;
    let celsius = degrees(root, &format!("{zone}/temp"))?;
    let critical = (0..MAX_TRIPS)
        .map_while(|trip| Some((trip, root.text(format!("{zone}/trip_point_{trip}_type"))?)))
        .find(|(_, kind)| kind == "critical")
        .and_then(|(trip, _)| limit(root, &format!("{zone}/trip_point_{trip}_temp")));
    Some(Sensor { name, celsius, critical })
}

fn processor(root: &Root, monitor: &str) -> Option<Sensor> {
    let name = root.text(format!("{monitor}/name"))?;
    PROCESSOR_SENSORS.contains(&name.as_str()).then_some(())?;
    // The first is the whole package.
    let celsius = degrees(root, &format!("{monitor}/temp1_input"))?;
    Some(Sensor { name, celsius, critical: limit(root, &format!("{monitor}/temp1_crit")) })
}

fn limit(root: &Root, file: &str) -> Option<f64> {
    degrees(root, file).filter(|degrees| *degrees >= LEAST_CRITICAL)
}

fn degrees(root: &Root, file: &str) -> Option<f64> {
    let thousandths: f64 = root.number(file)?;
    Some(thousandths / 1000.0).filter(|degrees| SENSIBLE.contains(degrees))
}
