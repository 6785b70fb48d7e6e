use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cloud_sync::contract::Collect;
use engine::Tensor;

use super::*;
use crate::board::tests::Laid;
use crate::clock::RunClock;
use crate::deploy::prove::prove;
use crate::scorer::Scorer;
use crate::service::{Request, Service};
use crate::settings::Settings;
use crate::spool::{DropReason, Ledger, Spool, SpoolOptions};
use crate::vault::Verified;

const TEMPERATURE: &str = "/sys/class/thermal/thermal_zone0/temp";
const MEMORY: &str = "/proc/meminfo";

fn board() -> Laid {
    let laid = Laid::out(&[
        ("/sys/class/thermal/thermal_zone0/type", "cpu"),
        ("/sys/class/thermal/thermal_zone0/trip_point_0_type", "critical"),
        ("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "100000"),
    ]);
    celsius(&laid, 50);
    available(&laid, 300);
    laid
}

fn celsius(laid: &Laid, degrees: u32) {
    laid.write(TEMPERATURE, &(degrees * 1000).to_string());
}

/// Of 512 MiB.
fn available(laid: &Laid, mebibytes: u64) {
    laid.write(MEMORY, &format!("MemTotal: 524288 kB\nMemAvailable: {} kB", mebibytes << 10));
}

#[test]
fn heat_rises_at_once_and_is_over_only_once_it_has_been_for_a_while() {
    let laid = board();
    let mut gauge = Gauge::new(laid.root());
    assert_eq!(gauge.look(), Pressure::default());
    celsius(&laid, 92);
    let strained = gauge.look();
    assert_eq!((strained.heat, strained.memory), (Level::Strained, Level::Calm));
    assert_eq!(strained.why, "cpu at 92 °C of 100 °C");
    celsius(&laid, 97);
    assert_eq!(gauge.look().heat, Level::Critical);

    // A degree below the threshold is not yet below it by the margin.
    celsius(&laid, 91);
    for _ in 0..CALM_LOOKS {
        assert_eq!(gauge.look().heat, gauge.heat.level);
    }
    assert_eq!(gauge.heat.level, Level::Strained);
    for _ in 0..3 * CALM_LOOKS {
        assert_eq!(gauge.look().heat, Level::Strained);
    }
    celsius(&laid, 80);
    for _ in 1..CALM_LOOKS {
        let recovering = gauge.look();
        assert_eq!((recovering.heat, recovering.why.as_str()), (Level::Strained, "heat is recovering"));
    }
    assert_eq!(gauge.look(), Pressure::default());
}

#[test]
fn a_look_that_finds_it_again_starts_the_wait_anew() {
    let laid = board();
    let mut gauge = Gauge::new(laid.root());
    for _ in 0..3 {
        celsius(&laid, 92);
        assert_eq!(gauge.look().heat, Level::Strained);
        celsius(&laid, 60);
        for _ in 1..CALM_LOOKS {
            assert_eq!(gauge.look().heat, Level::Strained);
        }
    }
}

#[test]
fn memory_that_runs_out_is_seen_also_where_only_the_container_lacks_it() {
    let laid = board();
    let mut gauge = Gauge::new(laid.root());
    available(&laid, 50);
    assert_eq!(gauge.look().memory, Level::Strained);
    available(&laid, 24);
    let critical = gauge.look();
    assert_eq!((critical.memory, critical.why.as_str()), (Level::Critical, "24 of 512 MiB of memory left"));

    available(&laid, 300);
    laid.write("/sys/fs/cgroup/memory.max", "67108864");
    laid.write("/sys/fs/cgroup/memory.current", "65011712");
    let mut gauge = Gauge::new(laid.root());
    assert_eq!(gauge.look().why, "2 of 64 MiB of memory left");
    laid.write("/sys/fs/cgroup/memory.stat", "inactive_file 33554432");
    assert_eq!(Gauge::new(laid.root()).look(), Pressure::default());
}

#[test]
fn waiting_for_memory_counts_also_while_some_is_left() {
    let laid = board();
    laid.write(
        "/proc/pressure/memory",
        "some avg10=60.00 avg60=1 avg300=1 total=1\nfull avg10=12.50 avg60=1",
    );
    let pressure = Gauge::new(laid.root()).look();
    assert_eq!(pressure.memory, Level::Strained);
    assert_eq!(pressure.why, "everything waits for memory 12 % of the time");
}

#[test]
fn a_processor_that_is_slowed_down_is_strained() {
    let laid = board();
    let mut gauge = Gauge::new(laid.root());
    let counter = "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count";
    laid.write(counter, "7");
    assert_eq!(gauge.look().heat, Level::Calm, "it may have been long ago");
    laid.write(counter, "8");
    assert_eq!(gauge.look().heat, Level::Strained);

    laid.write("/sys/devices/platform/soc/soc:firmware/get_throttled", "4");
    assert_eq!(Gauge::new(laid.root()).look().why, "throttled");
    // Under-voltage and the soft limit slow nothing down.
    laid.write("/sys/devices/platform/soc/soc:firmware/get_throttled", "9");
    assert_eq!(Gauge::new(laid.root()).look().heat, Level::Calm);
    // What was, is over.
    laid.write("/sys/devices/platform/soc/soc:firmware/get_throttled", "80000");
    assert_eq!(Gauge::new(laid.root()).look().heat, Level::Calm);
}

#[test]
fn a_limit_that_no_firmware_can_mean_is_none() {
    let laid = board();
    laid.write("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "18800");
    celsius(&laid, 17);
    assert_eq!(Gauge::new(laid.root()).look(), Pressure::default());
}

#[test]
fn what_is_not_told_puts_no_pressure_on() {
    assert_eq!(Gauge::new(Laid::out(&[]).root()).look(), Pressure::default());
}

fn scorer() -> Scorer {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/samples/power-demand/2");
    let settings = Settings {
        provider: engine::Provider::Tract,
        threads: 1,
        instances: 1,
        queue: 4,
        batching: Default::default(),
        tuning: Default::default(),
        collect: None,
    };
    let bundle = Verified::local(&sample).unwrap();
    let scorer = Scorer::default();
    scorer.swap(prove(&bundle, &"power-demand".parse().unwrap(), 2, &settings, None).unwrap()).unwrap();
    scorer
}

/// Scores eight requests, all of which are answered; gives the ledger after them.
async fn eight_scores(service: &Service, spool: &Mutex<Spool>) -> Ledger {
    for _ in 0..8 {
        let load = Tensor::from_vec(vec![1, 24], vec![0.5f32; 24]).unwrap();
        let inputs = [("load", load)].into_iter().collect();
        let request =
            Request { model: "power-demand", version: None, inputs, request_id: None, correlation_id: None };
        service.score(request).await.unwrap_or_else(|error| panic!("{error}"));
    }
    service.capture.settle().await;
    spool.lock().unwrap_or_else(PoisonError::into_inner).ledger()
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_backs_off_while_scoring_goes_on_and_every_row_is_counted() {
    let laid = board();
    let directory = tempfile::tempdir().unwrap();
    let spool = Arc::new(Mutex::new(Spool::open(directory.path(), SpoolOptions::default()).unwrap()));
    let waiting = crate::capture::Waiting { bytes: 1 << 20, time: Duration::from_millis(100) };
    let (capture, writer, _appended) = crate::capture::open(spool.clone(), RunClock::start("boot"), waiting);
    let writer = std::thread::spawn(move || writer.run());
    capture.set_collect(Collect::default());
    let service =
        Service { scorer: scorer(), capture, timeout: Duration::from_secs(30), tracer: Default::default() };
    let (known, mut seen) = watch::channel(Pressure::default());
    let stop = CancellationToken::new();
    let gauge = Gauge::new(laid.root());
    let looks = run(gauge, Duration::from_millis(1), service.capture.clone(), known, stop.clone());
    let looks = tokio::spawn(looks);

    let calm = eight_scores(&service, &spool).await;
    assert_eq!((calm.held, calm.dropped.get(&DropReason::Pressure)), (8, None));
    celsius(&laid, 92);
    seen.wait_for(|now| now.level() == Level::Strained).await.unwrap();
    let strained = eight_scores(&service, &spool).await;
    assert_eq!((strained.held, strained.dropped.get(&DropReason::Pressure)), (10, Some(&6)));
    available(&laid, 20);
    seen.wait_for(|now| now.level() == Level::Critical).await.unwrap();
    let critical = eight_scores(&service, &spool).await;
    assert_eq!((critical.held, critical.dropped.get(&DropReason::Pressure)), (10, Some(&14)));
    celsius(&laid, 50);
    available(&laid, 300);
    seen.wait_for(|now| now.level() == Level::Calm).await.unwrap();
    let calm = eight_scores(&service, &spool).await;
    assert_eq!((calm.held, calm.captured), (18, 32));

    stop.cancel();
    looks.await.unwrap();
    service.scorer.drain();
    drop(service);
    writer.join().unwrap();
}
