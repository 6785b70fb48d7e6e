use super::*;

const GIB: u64 = 1 << 30;

/// A system that is laid out in a directory.
pub(crate) struct Laid(tempfile::TempDir);

impl Laid {
    /// With these files.
    pub(crate) fn out(files: &[(&str, &str)]) -> Self {
        let laid = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(path, text)| laid.write(path, text));
        laid
    }

    pub(crate) fn root(&self) -> Root {
        Root::new(self.0.path())
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.root().path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.root().path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    fn board(&self, data: &str) -> Board {
        Board::read(&self.root(), Path::new(data))
    }
}

/// A Raspberry Pi 4 on an SD card with a weak supply, as its kernel 6.1 lays out its files.
fn raspberry_pi() -> Laid {
    let laid = Laid::out(&[
        ("/proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
        ("/proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"),
        ("/proc/self/status", "Name:\tedgewise-agent\nCpus_allowed_list:\t0-3\n"),
        ("/sys/devices/system/cpu/online", "0-3"),
        ("/etc/os-release", "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\""),
        ("/proc/sys/kernel/osrelease", "6.1.21-v8+"),
        (
            "/proc/meminfo",
            "MemTotal:         948304 kB\nMemFree:  100000 kB\nMemAvailable:     612000 kB\nSwapTotal:  102396 kB\nSwapFree:  2396 kB",
        ),
        ("/proc/swaps", "Filename\t\tType\t\tSize\tUsed\tPriority\n/var/swap  file  102396  100000  -2"),
        (
            "/proc/self/mountinfo",
            "25 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw\n26 25 0:5 / /dev rw - devtmpfs udev rw\n\
             27 25 8:1 / /srv/my\\040data ro,relatime - vfat /dev/sda1 rw",
        ),
        ("/sys/devices/mmc/mmcblk0/queue/rotational", "0"),
        ("/sys/devices/mmc/mmcblk0/removable", "0"),
        ("/sys/devices/mmc/mmcblk0/device/type", "SD"),
        ("/sys/devices/mmc/mmcblk0/mmcblk0p2/partition", "2"),
        ("/sys/devices/usb/sda/queue/rotational", "1"),
        ("/sys/devices/usb/sda/removable", "1"),
        ("/sys/devices/usb/sda/sda1/partition", "1"),
        ("/sys/class/thermal/thermal_zone0/type", "cpu-thermal"),
        ("/sys/class/thermal/thermal_zone0/temp", "71092"),
        ("/sys/class/thermal/thermal_zone0/trip_point_0_type", "critical"),
        ("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "110000"),
        ("/sys/devices/platform/soc/soc:firmware/get_throttled", "50001"),
        ("/sys/class/drm/card0/device/uevent", ""),
        ("/sys/class/drm/card0-HDMI-A-1/status", "disconnected"),
    ]);
    laid.link("/sys/dev/block/179:2", "../../devices/mmc/mmcblk0/mmcblk0p2");
    laid.link("/sys/dev/block/8:1", "../../devices/usb/sda/sda1");
    laid.link("/sys/class/drm/card0/device/driver", "../../../../bus/platform/drivers/v3d");
    laid
}

#[test]
fn a_raspberry_pi_is_read() {
    let board = raspberry_pi().board("/var/lib/edgewise");
    assert_eq!(board.model.as_deref(), Some("Raspberry Pi 4 Model B Rev 1.4"));
    assert_eq!(board.processor.as_deref(), Some("ARM Cortex-A72"));
    assert_eq!(board.operating_system.as_deref(), Some("Debian GNU/Linux 12 (bookworm), Linux 6.1.21-v8+"));
    assert_eq!(board.cores, Cores { online: Some(4), allowed: Some(4), quota: None });
    assert_eq!((board.memory.total, board.memory.limit), (Some(948_304 << 10), None));
    assert_eq!((board.memory.available, board.memory.swap_used), (Some(612_000 << 10), Some(100_000 << 10)));
    assert_eq!(board.swap_media, [Medium::SdCard]);
    let disk = board.disk.as_ref().unwrap();
    assert_eq!((disk.words().as_str(), disk.read_only), ("ext4 on an SD card", false));
    assert!(disk.size.unwrap() >= disk.free.unwrap());
    let sensor = Sensor { name: "cpu-thermal".to_owned(), celsius: 71.092, critical: Some(110.0) };
    assert_eq!(board.hottest(), Some(&sensor));
    assert_eq!(board.throttling.now, [Cause::UnderVoltage].into());
    assert_eq!(board.throttling.since_boot, [Cause::UnderVoltage, Cause::Throttled].into());
    assert!(!board.clock.hardware && board.clock.plausible);
    assert_eq!(board.gpus, ["v3d"]);

    let hardware = board.hardware();
    assert_eq!((hardware.cores, hardware.celsius, hardware.critical_celsius), (4, Some(71), Some(110)));
    assert_eq!(hardware.throttled, ["under-voltage now", "throttled since boot"]);
    assert_eq!((hardware.swap_bytes, hardware.system_disk_free_bytes), (Some(102_396 << 10), None));
    assert_eq!((hardware.clock_plausible, hardware.clock_hardware), (Some(true), Some(false)));
}

#[test]
fn a_raspberry_pi_5_is_slowed_down_and_its_driver_forgets() {
    let laid = Laid::out(&[
        ("/sys/class/hwmon/hwmon1/name", "rpi_volt"),
        ("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1"),
    ]);
    // It tells of the supply, and nothing of the heat.
    let throttling = laid.board("/").throttling;
    assert_eq!(throttling, Throttling { now: [Cause::UnderVoltage].into(), ..Throttling::default() });

    laid.write("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0");
    let firmware = "/sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled";
    laid.write(firmware, "d0008");
    let board = laid.board("/");
    assert!(board.throttling.known);
    assert_eq!(board.hardware().throttled, ["temperature limit now", "throttled lately"]);
}

#[test]
fn a_drive_is_found_by_its_mount() {
    let disk = raspberry_pi().board("/srv/my data/agent").disk.unwrap();
    assert_eq!((disk.medium, disk.file_system.as_str()), (Some(Medium::Removable), "vfat"));
    assert!(disk.read_only);
}

#[test]
fn what_only_looks_like_a_disk_is_none() {
    let laid = raspberry_pi();
    for name in ["zram0", "loop0"] {
        laid.write(&format!("/sys/devices/virtual/block/{name}/queue/rotational"), "0");
        laid.link(&format!("/sys/class/block/{name}"), &format!("../../devices/virtual/block/{name}"));
    }
    laid.link("/sys/dev/block/7:0", "../../devices/virtual/block/loop0");
    laid.write(
        "/proc/swaps",
        "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100\n/dev/zram0 partition 1 0 100\n\
         /var/swap file 1 0 -2",
    );
    laid.write(
        "/proc/self/mountinfo",
        "20 1 0:20 / / rw - overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay\n\
         21 20 0:21 / /media/root-rw rw - tmpfs tmpfs-root rw\n\
         22 20 179:2 / /media/root-ro ro - ext4 /dev/mmcblk0p2 ro\n\
         23 20 7:0 / /srv ro - squashfs /dev/loop0 ro\n\
         24 20 0:22 / /var rw - overlay overlay rw,lowerdir=/a,upperdir=/lib/docker/overlay2/5b/diff",
    );
    let board = laid.board("/opt/edgewise");
    assert_eq!(board.disk.unwrap().medium, Some(Medium::Memory), "it is gone at the next boot");
    assert_eq!(laid.board("/srv").disk.unwrap().medium, None);
    assert_eq!(laid.board("/var/lib").disk.unwrap().medium, None, "a layer that can't be seen");
    assert_eq!(board.swap_media, [Medium::Memory]);
    laid.write("/proc/self/mountinfo", "25 1 179:2 / / rw - ext4 /dev/mmcblk0p2 rw");
    assert_eq!(laid.board("/").swap_media, [Medium::Memory, Medium::SdCard]);
}

#[test]
fn a_jetson_is_read() {
    let laid = Laid::out(&[
        ("/proc/device-tree/model", "NVIDIA Jetson Nano Developer Kit\0"),
        ("/etc/nv_tegra_release", "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref"),
        ("/proc/self/mountinfo", "25 1 179:1 / / rw - ext4 /dev/root rw"),
        ("/sys/dev/block/179:1/queue/rotational", "0"),
        ("/sys/dev/block/179:1/device/type", "MMC"),
        ("/sys/class/thermal/thermal_zone0/type", "PMIC-Die"),
        ("/sys/class/thermal/thermal_zone0/temp", "100000"),
        ("/sys/class/thermal/thermal_zone1/type", "CPU-therm"),
        ("/sys/class/thermal/thermal_zone1/temp", "43500"),
        ("/sys/class/thermal/thermal_zone1/trip_point_0_type", "passive"),
        ("/sys/class/thermal/thermal_zone1/trip_point_0_temp", "97000"),
        ("/sys/class/thermal/thermal_zone1/trip_point_1_type", "critical"),
        ("/sys/class/thermal/thermal_zone1/trip_point_1_temp", "102500"),
        ("/sys/class/thermal/cooling_device0/type", "pwm-fan"),
        ("/sys/class/thermal/cooling_device0/cur_state", "3"),
        ("/sys/class/thermal/cooling_device1/type", "thermal-cpufreq-0"),
        ("/sys/class/thermal/cooling_device1/cur_state", "0"),
        ("/sys/class/rtc/rtc0/name", "max77620-rtc"),
    ]);
    let board = laid.board("/var/lib/edgewise");
    assert_eq!(board.gpus, ["NVIDIA Jetson, L4T R32 (release), REVISION: 7.1"]);
    assert_eq!(board.disk.unwrap().medium, Some(Medium::Emmc));
    assert_eq!(board.sensors.len(), 1, "the one that is stuck is left out");
    assert_eq!(board.sensors[0].critical, Some(102.5));
    assert!(board.clock.hardware);
    // A fan that turns is no throttling.
    assert_eq!(board.throttling, Throttling { known: true, ..Throttling::default() });
    laid.write("/sys/class/thermal/cooling_device1/cur_state", "2");
    assert_eq!(laid.board("/").throttling.now, [Cause::Throttled].into());
}

#[test]
fn a_pc_is_read() {
    let laid = Laid::out(&[
        ("/sys/class/dmi/id/product_name", "ThinkCentre M70q"),
        ("/proc/cpuinfo", "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-10400T CPU @ 2.00GHz\n"),
        ("/sys/devices/system/cpu/online", "0-11"),
        ("/proc/self/status", "Cpus_allowed_list:\t0-3,6\n"),
        ("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "5"),
        ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "2000000"),
        ("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "3600000"),
        ("/sys/class/hwmon/hwmon2/name", "coretemp"),
        ("/sys/class/hwmon/hwmon2/temp1_input", "56000"),
        ("/sys/class/hwmon/hwmon2/temp1_crit", "100000"),
        (
            "/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19",
        ),
        ("/proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: T4"),
        ("/dev/nvidiactl", ""),
    ]);
    let board = laid.board("/");
    assert_eq!(board.model.as_deref(), Some("ThinkCentre M70q"));
    assert_eq!(board.cores.usable(), Some(5));
    assert_eq!(board.hottest().unwrap().celsius, 56.0);
    assert_eq!(board.throttling.events, Some(5));
    assert!(board.throttling.now.is_empty() && board.throttling.capped);
    assert_eq!(board.gpus, ["1 × NVIDIA, driver 535.104.05"]);
}

#[test]
fn a_container_has_what_its_narrowest_group_leaves() {
    let laid = Laid::out(&[
        ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB"),
        ("/proc/self/cgroup", "0::/machine.slice/agent.service"),
        ("/sys/devices/system/cpu/online", "0-7"),
        ("/sys/fs/cgroup/machine.slice/agent.service/memory.max", "max"),
        ("/sys/fs/cgroup/machine.slice/agent.service/memory.current", "1"),
        ("/sys/fs/cgroup/machine.slice/agent.service/cpu.max", "max 100000"),
        ("/sys/fs/cgroup/machine.slice/memory.max", "268435456"),
        ("/sys/fs/cgroup/machine.slice/memory.current", "201326592"),
        ("/sys/fs/cgroup/machine.slice/memory.stat", "anon 1\ninactive_file 134217728"),
        ("/sys/fs/cgroup/machine.slice/cpu.max", "250000 100000"),
    ]);
    let board = laid.board("/");
    assert_eq!(board.memory.limit, Some(256 << 20));
    assert_eq!(board.memory.available, Some(192 << 20), "cached files are given back");
    assert_eq!((board.cores.quota, board.cores.usable()), (Some(2.5), Some(2)));

    // A shell beside it has another group.
    laid.write("/proc/self/cgroup", "0::/user.slice");
    laid.write("/proc/7/cgroup", "0::/machine.slice/agent.service");
    assert_eq!(laid.board("/").memory.limit, None);
    let seen_by = |id: u32| Board::read(&laid.root().seen_by(id), Path::new("/"));
    assert_eq!((seen_by(7).memory.limit, seen_by(7).cores.quota), (Some(256 << 20), Some(2.5)));
    let (hidden, own) = (seen_by(8), laid.board("/"));
    // All but the clock, which goes on.
    assert_eq!((hidden.memory, hidden.cores), (own.memory, own.cores), "one that is hidden");

    let version_1 = Laid::out(&[
        ("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB"),
        // As Docker shows it: the path is the host's, the mount is the container's own.
        ("/proc/self/cgroup", "4:memory:/docker/5b17\n3:cpu,cpuacct:/docker/5b17\n0::/"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864"),
        ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "33554432"),
        ("/sys/fs/cgroup/memory/memory.stat", "cache 1\ntotal_inactive_file 1048576"),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"),
        ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
    ]);
    let board = version_1.board("/");
    assert_eq!((board.memory.limit, board.memory.available), (Some(64 << 20), Some(33 << 20)));
    assert_eq!(board.cores.usable(), Some(1), "half a core is still one thread");

    // The largest number stands for no limit.
    version_1.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
    version_1.write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
    let board = version_1.board("/");
    assert_eq!((board.memory.usable(), board.memory.available), (Some(8 * GIB), Some(6 * GIB)));
    assert_eq!(board.cores.quota, None);
}

#[test]
fn a_kernel_that_neither_limits_nor_counts_is_seen() {
    let laid = raspberry_pi();
    let memory = |laid: &Laid| {
        let Memory { limitable, waits_counted, .. } = laid.board("/").memory;
        (limitable, waits_counted)
    };
    assert_eq!(memory(&laid), (None, false));
    laid.write(
        "/proc/cgroups",
        "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t84\t1\nmemory\t0\t84\t0",
    );
    laid.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids");
    assert_eq!(memory(&laid), (Some(false), false));
    laid.write("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids");
    laid.write("/proc/pressure/memory", "some avg10=0.00\nfull avg10=0.00");
    assert_eq!(memory(&laid), (Some(true), true));
    // Of version 1.
    laid.write("/sys/fs/cgroup/cgroup.controllers", "pids");
    laid.write("/proc/cgroups", "memory\t4\t84\t1");
    assert_eq!(memory(&laid), (Some(true), true));
}

#[test]
fn of_a_machine_that_tells_nothing_nothing_is_made_up() {
    let board = Laid::out(&[]).board("/data");
    let told = Board {
        architecture: board.architecture,
        c_library: board.c_library.clone(),
        clock: board.clock.clone(),
        ..Board::default()
    };
    assert_eq!(board, told);
    assert_eq!((board.cores.usable(), board.memory.usable()), (None, None));
}

#[test]
fn what_goes_up_is_small_whatever_the_firmware_says() {
    let long = || Some("ä\u{7}".repeat(5000));
    let mut board = raspberry_pi().board("/");
    (board.model, board.processor, board.operating_system) = (long(), long(), long());
    board.gpus = vec![long().unwrap(); 40];
    let pressure = crate::pressure::Pressure { why: long().unwrap(), ..Default::default() };
    let all = engine::Provider::ALL.iter().skip(1).map(|provider| engine::Availability {
        provider: *provider,
        version: if *provider == engine::Provider::Cpu {
            Err(long().unwrap())
        } else {
            Ok("0.23.4".to_owned())
        },
        library: None,
    });
    let hardware = cloud_sync::contract::Hardware {
        pressure: Some(pressure.on_the_wire()),
        certificate_until: Some(u64::MAX),
        engines: engines(all.collect()),
        ..board.hardware()
    };
    assert_eq!((hardware.engines.len(), hardware.engines[1].name.as_str()), (6, "cpu"));
    let bytes = serde_cbor::to_vec(&hardware).unwrap().len();
    assert!(bytes <= 1536, "{bytes} bytes");
}

#[test]
fn this_machine_is_read() {
    let board = Board::here(Path::new("."));
    assert!(board.memory.available.unwrap() > 0);
    assert!(board.cores.usable().unwrap() > 0);
    assert!(board.disk.unwrap().size.unwrap() > 0);
}
