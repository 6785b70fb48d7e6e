//! What is used of the machine now, by all that runs on it and by the agent: cheap enough to be asked every few seconds.

use super::files::{Root, field};

/// The processor's time since the machine's start, in the kernel's ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticks {
    /// In which it worked.
    pub busy: u64,
    /// All of it, of all cores.
    pub all: u64,
}

impl Ticks {
    /// Until now.
    pub fn read(root: &Root) -> Option<Self> {
        let stat = root.text("/proc/stat")?;
        // user nice system idle iowait irq softirq steal; what guests take is in user and nice already.
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|ticks| ticks.parse().ok()).collect();
        let all = ticks.iter().try_fold(0u64, |sum, ticks| sum.checked_add(*ticks))?;
        let idle = ticks.get(3)?.checked_add(*ticks.get(4)?)?;
        Some(Self { busy: all.checked_sub(idle)?, all })
    }

    /// The share of the time since `before` in which the processor worked, 0 to 1; `None` where none has passed.
    pub fn since(self, before: Self) -> Option<f64> {
        let (busy, all) = (self.busy.checked_sub(before.busy)?, self.all.checked_sub(before.all)?);
        (all > 0).then(|| busy as f64 / all as f64)
    }
}

/// The memory that the process holds, in bytes.
pub fn resident(root: &Root) -> Option<u64> {
    let status = root.of_process("status")?;
    let kibibytes: u64 = field(&status, "VmRSS")?.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::Laid;

    #[test]
    fn waiting_for_the_disk_is_no_work() {
        let read = |stat: &str| Ticks::read(&Laid::out(&[("/proc/stat", stat)]).root());
        let before = read("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!(before, Ticks { busy: 150, all: 1000 });
        let after = read("cpu  160 10 70 860 80 0 10 10 160 10\n").unwrap();
        assert_eq!(after.since(before), Some(0.55));
        assert_eq!(after.since(after), None);
        assert_eq!(before.since(after), None, "a clock that went back");
        for odd in ["", "cpu", "cpu  1 2 3", "intr 1 2 3 4 5"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn this_process_holds_memory() {
        assert!(resident(&Root::new("/")).unwrap() > 1 << 20);
    }
}
