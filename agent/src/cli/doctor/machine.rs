//! The machine itself: board, processor, memory, disk, heat, clock.

use jiff::Timestamp;

use super::page::{Finding, Part};
use crate::board::{Board, Cause, Disk, Medium};
use crate::config::in_units;
use crate::pressure::{Level, of_heat};

/// With less there is no room to prove a new version beside the one that serves.
const LITTLE_MEMORY: u64 = 48 << 20;

/// Where what a Raspberry Pi boots without is switched on.
const COMMAND_LINE: &str = "add to the kernel's command line (/boot/firmware/cmdline.txt on a Raspberry Pi)";

pub(super) fn examine(board: &Board) -> Part {
    let mut part = Part::new("machine");
    describe(&mut part, board);
    if board.mute {
        part.findings.push(Finding::warning(
            "the devices did not describe themselves in time, and nothing is known of heat, throttling and GPUs: a \
             sensor may hang; look into the kernel's log (dmesg)",
        ));
    }
    part.findings.extend(clock(board));
    part.findings.extend(heat(board));
    part.findings.extend(memory(board));
    part
}

/// A size in the unit that leaves it readable.
pub(super) fn size(bytes: u64) -> String {
    let unit = [1u64 << 30, 1 << 20, 1 << 10].into_iter().find(|unit| bytes >= 10 * unit).unwrap_or(1);
    in_units(bytes / unit * unit)
}

fn describe(part: &mut Part, board: &Board) {
    let Board { cores, memory, throttling, clock, .. } = board;
    part.fact("board", board.model.clone());
    let processor = board.processor.as_deref().unwrap_or("unknown");
    part.fact("processor", Some(format!("{processor} ({})", board.architecture)));
    let quota = cores.quota.map(|quota| format!(", time of {quota} by its control group"));
    let online = cores.online.map(|online| format!(" of {online}"));
    let usable = cores.usable().map(|usable| {
        format!("{usable}{} for the agent{}", online.unwrap_or_default(), quota.unwrap_or_default())
    });
    part.fact("cores", usable);
    let limit = memory.limit.map(|limit| format!(", {} for the agent by its control group", size(limit)));
    let memory_line = memory.total.zip(memory.available).map(|(total, available)| {
        format!("{}, {} left{}", size(total), size(available), limit.unwrap_or_default())
    });
    part.fact("memory", memory_line);
    let on: Vec<&str> = board.swap_media.iter().map(|medium| medium.words()).collect();
    let on = if on.is_empty() { String::new() } else { format!(" on {}", on.join(" and ")) };
    let swap = memory.swap.map(|swap| match swap {
        0 => "none".to_owned(),
        swap => {
            let used = size(memory.swap_used.unwrap_or(0));
            format!("{}{on}, {used} used", size(swap))
        }
    });
    part.fact("swap", swap);
    part.fact("system disk", board.system_disk.as_ref().map(disk));
    part.fact("data disk", board.disk.as_ref().map(disk));
    let sensor = board.hottest().map(|sensor| {
        let critical = sensor.critical.map(|critical| format!(", off at {critical:.0} °C"));
        format!("{:.0} °C ({}){}", sensor.celsius, sensor.name, critical.unwrap_or_default())
    });
    part.fact("temperature", sensor);
    let slowed = board.hardware().throttled;
    let slowed = match slowed.is_empty() {
        true => throttling.known.then(|| "none".to_owned()),
        false => Some(slowed.join(", ")),
    };
    part.fact("throttling", slowed);
    let kept = match clock.synchronised {
        Some(true) => "synchronised",
        Some(false) => "not synchronised",
        None => "synchronised or not, unknown",
    };
    let battery = if clock.hardware { "" } else { ", stands still without power" };
    part.fact("clock", Some(format!("{}, {kept}{battery}", time(clock.unix_ms))));
    part.fact("GPU", Some(if board.gpus.is_empty() { "none".to_owned() } else { board.gpus.join(", ") }));
    part.fact("system", board.operating_system.clone());
    part.fact("C library", board.c_library.clone());
}

fn disk(disk: &Disk) -> String {
    let room = disk.size.zip(disk.free).map(|(all, free)| format!(", {} free of {}", size(free), size(all)));
    let read_only = if disk.read_only { ", read-only" } else { "" };
    format!("{} ({}){}{read_only}", disk.mounted.display(), disk.words(), room.unwrap_or_default())
}

fn time(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()).unwrap_or_default()
}

fn clock(board: &Board) -> Option<Finding> {
    let clock = &board.clock;
    if !clock.plausible {
        let now = time(clock.unix_ms);
        return Some(Finding::problem(format!(
            "the clock is at {now}: rows carry wrong times and TLS fails until it is set; enable systemd-timesyncd \
             or chrony"
        )));
    }
    match clock.synchronised {
        Some(false) => Some(Finding::warning(
            "the kernel knows of nothing that keeps the clock right, and rows come to carry wrong times; enable \
             systemd-timesyncd or chrony",
        )),
        _ if !clock.hardware => Some(Finding::note(
            "the clock stands still without power: after a power cut, times are wrong until the network is there",
        )),
        _ => None,
    }
}

fn heat(board: &Board) -> Vec<Finding> {
    let mut findings = Vec::new();
    let throttling = &board.throttling;
    let all = || throttling.now.iter().copied().chain(throttling.past().map(|(cause, _)| cause));
    if all().any(|cause| cause == Cause::UnderVoltage) {
        findings.push(Finding::warning(
            "the supply is, or was, too weak (under-voltage): the board slows down and may lose what it writes; take \
             a stronger one and a short cable",
        ));
    }
    if all().any(|cause| cause != Cause::UnderVoltage) {
        let at = board.hottest().map(|sensor| format!(" ({:.0} °C now)", sensor.celsius));
        findings.push(Finding::warning(format!(
            "the processor is, or was, slowed down{}: add cooling, or lower engine.threads",
            at.unwrap_or_default()
        )));
    }
    let (level, why) = of_heat(board);
    let words = || format!("it is too hot, {why}: add cooling, or lower engine.threads");
    match level {
        Level::Critical => findings.push(Finding::problem(words())),
        // That it is slowed down has been said.
        Level::Strained if !throttling.now.contains(&Cause::Throttled) => {
            findings.push(Finding::warning(words()));
        }
        Level::Strained | Level::Calm => {}
    }
    if throttling.capped && !throttling.now.contains(&Cause::Throttled) {
        findings.push(Finding::note(
            "the processor's highest frequency is set below what it can do: scores take longer than they could",
        ));
    }
    findings
}

fn memory(board: &Board) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(available) = board.memory.available.filter(|available| *available < LITTLE_MEMORY) {
        findings.push(Finding::warning(format!(
            "{} of memory are left: a new version may not fit beside the one that serves; stop what else runs here, or \
             raise the limit of the service or the container",
            size(available)
        )));
    }
    if board.swap_media.iter().any(|medium| matches!(medium, Medium::SdCard | Medium::Emmc)) {
        findings.push(Finding::warning(
            "swap is on flash, which it wears out and which is slow: turn it off (swapoff -a), or use zram",
        ));
    }
    if board.memory.limitable == Some(false) {
        findings.push(Finding::note(format!(
            "the kernel holds no service to a limit of memory, and MemoryMax= does nothing: {COMMAND_LINE} \
             cgroup_enable=memory"
        )));
    }
    if board.memory.total.is_some() && !board.memory.waits_counted {
        findings.push(Finding::note(format!(
            "the kernel does not count how long is waited for memory, and capture backs off only when little is left: \
             {COMMAND_LINE} psi=1"
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::{Clock, Memory, Sensor, Throttling};
    use crate::cli::doctor::page::Grade;

    fn healthy() -> Board {
        let clock =
            Clock { unix_ms: 1_800_000_000_000, plausible: true, synchronised: Some(true), hardware: true };
        Board { clock, ..Board::default() }
    }

    fn found(board: &Board) -> Vec<(Grade, String)> {
        let findings = examine(board).findings.into_iter();
        findings.map(|finding| (finding.grade, finding.what)).collect()
    }

    #[test]
    fn each_trouble_is_told_with_what_to_do() {
        assert_eq!(found(&healthy()), []);
        let at_1970 = Clock { unix_ms: 5_000, plausible: false, ..healthy().clock };
        let weak = Throttling { now: [Cause::UnderVoltage].into(), ..Throttling::default() };
        let unlimited = Memory { limitable: Some(false), ..Memory::default() };
        let uncounted = Memory { total: Some(1 << 30), ..Memory::default() };
        let little = Memory { available: Some(20 << 20), ..Memory::default() };
        let cases = [
            (Board { clock: at_1970, ..healthy() }, Grade::Problem, "1970-01-01 00:00:05 UTC"),
            (Board { throttling: weak, ..healthy() }, Grade::Warning, "stronger"),
            (Board { memory: little, ..healthy() }, Grade::Warning, "20 MiB of memory are left"),
            (Board { swap_media: vec![Medium::Memory, Medium::SdCard], ..healthy() }, Grade::Warning, "zram"),
            (Board { memory: unlimited, ..healthy() }, Grade::Note, "cgroup_enable=memory"),
            (Board { memory: uncounted, ..healthy() }, Grade::Note, "psi=1"),
            (Board { mute: true, ..healthy() }, Grade::Warning, "dmesg"),
        ];
        for (board, grade, words) in cases {
            let found = found(&board);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0 == grade && found[0].1.contains(words), "{found:?}");
        }
    }

    #[test]
    fn heat_is_told_with_its_own_reason_whatever_the_supply_does() {
        let hot = |celsius: f64, cause: Cause| {
            let sensor = Sensor { name: "cpu".to_owned(), celsius, critical: Some(100.0) };
            let throttling = Throttling { known: true, now: [cause].into(), ..Throttling::default() };
            // Of too little memory nothing is to be said where it is about heat.
            let memory = Memory { available: Some(60 << 20), ..Memory::default() };
            found(&Board { sensors: vec![sensor], throttling, memory, ..healthy() })
        };
        let weak = hot(94.0, Cause::UnderVoltage);
        assert_eq!(weak.len(), 2, "{weak:?}");
        assert!(
            weak[1].0 == Grade::Warning && weak[1].1.contains("hot, cpu at 94 °C of 100 °C:"),
            "{weak:?}"
        );
        // It is slowed down, which says all.
        let slow = hot(94.0, Cause::Throttled);
        assert!(slow.len() == 1 && slow[0].1.contains("slowed down (94 °C now)"), "{slow:?}");
        let critical = hot(98.0, Cause::Throttled);
        assert!(critical.len() == 2 && critical[1].0 == Grade::Problem, "{critical:?}");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(948_304 << 10), "926 MiB");
        assert_eq!(size(31_000_000_000), "28 GiB");
        assert_eq!(size(0), "0 bytes");
    }
}
