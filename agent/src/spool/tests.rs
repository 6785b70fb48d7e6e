use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const CHILD_DIRECTORY: &str = "EDGEWISE_TEST_SPOOL";
const EVERYTHING: usize = usize::MAX;

fn open(directory: &TempDir) -> Spool {
    open_path(directory.path())
}

fn open_path(directory: &Path) -> Spool {
    open_bounded(directory, MIN_BYTES)
}

/// Not a multiple of a segment's charge: the room for seven, and most of an eighth that does not fit.
const TIGHT_BYTES: u64 = 9008 * 1024;

fn open_bounded(directory: &Path, max_bytes: u64) -> Spool {
    let begun = Instant::now();
    loop {
        // A process that another test is just starting holds all locks of this one until it runs its program.
        match Spool::open(directory, SpoolOptions { max_bytes }) {
            Err(SpoolError::InUse { .. }) if begun.elapsed().as_secs() < 10 => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// A row whose bytes say which it is, and do not compress.
fn row(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut row = Vec::with_capacity(bytes + 8);
    while row.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        row.extend_from_slice(&state.to_be_bytes());
    }
    row.truncate(bytes);
    row
}

fn rows(first: u64, count: u64, bytes: usize) -> Vec<Vec<u8>> {
    (first..first + count).map(|seed| row(seed, bytes)).collect()
}

fn dropped(ledger: &Ledger) -> u64 {
    ledger.dropped.values().sum()
}

fn assert_adds_up(spool: &Spool) -> Ledger {
    let ledger = spool.ledger();
    assert_eq!(ledger.captured, ledger.uploaded + ledger.held + dropped(&ledger) + ledger.lost, "{ledger:?}");
    assert!(physical_bytes(spool) <= spool.max_bytes);
    ledger
}

/// All held rows, in steps small enough to cross groups and segments in every way.
fn read_all(spool: &mut Spool) -> Vec<(u64, Vec<u8>)> {
    let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
    loop {
        let after = all.last().map_or(0, |(number, _)| *number);
        let more = spool.peek(after, 777, 300_000).unwrap();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

/// Gives out the rows up to `through` and takes a receipt for them; returns how many more that makes uploaded.
fn upload(spool: &mut Spool, through: u64) -> u64 {
    let before = spool.ledger().uploaded;
    spool.peek(through.saturating_sub(1), 1, EVERYTHING).unwrap();
    spool.receipt(through).unwrap();
    spool.ledger().uploaded - before
}

fn physical_bytes(spool: &Spool) -> u64 {
    directory::allocated(&spool.directory).unwrap()
}

fn names(directory: &TempDir) -> Vec<String> {
    directory::segments(directory.path()).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<usize>),
    Peek { skip: usize, rows: usize, bytes: usize },
    Receipt(f64),
    Shed(u64),
    Reopen { clean: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 0usize..2_000, 2 => 2_000usize..MAX_ROW_BYTES, 1 => Just(MAX_ROW_BYTES)];
    prop_oneof![
        6 => prop::collection::vec(size, 0..40).prop_map(Step::Append),
        3 => (0usize..200, 0usize..200, 0usize..400_000)
            .prop_map(|(skip, rows, bytes)| Step::Peek { skip, rows, bytes }),
        1 => (0.0..1.0f64).prop_map(Step::Receipt),
        1 => (0u64..9).prop_map(Step::Shed),
        1 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_a_queue_that_loses_only_its_oldest(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = open(&directory);
        let stream = spool.stream().to_owned();
        let mut model: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        let (mut next, mut captured) = (1, 0);
        for step in steps {
            let gone_before = { let ledger = spool.ledger(); ledger.uploaded + dropped(&ledger) };
            let mut shed = 0;
            match step {
                Step::Append(sizes) => {
                    let new: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(at, size)| row(next + at as u64, *size)).collect();
                    let numbers = spool.append(&new).unwrap();
                    prop_assert_eq!(numbers.clone(), next..next + new.len() as u64);
                    captured += new.len() as u64;
                    next = numbers.end;
                    model.extend(numbers.zip(new));
                }
                Step::Peek { skip, rows, bytes } => {
                    let after = model.get(skip).map_or(0, |(number, _)| *number);
                    let got = spool.peek(after, rows, bytes).unwrap();
                    let mut budget = bytes;
                    let expected: Vec<_> = model.iter().filter(|(number, _)| *number > after).take(rows).enumerate()
                        .take_while(|(at, (_, row))| {
                            let fits = *at == 0 || row.len() <= budget;
                            budget = budget.saturating_sub(row.len());
                            fits
                        })
                        .map(|(_, row)| row.clone()).collect();
                    prop_assert!(got == expected, "peek({after}, {rows}, {bytes}): {} rows, not {}", got.len(), expected.len());
                }
                Step::Receipt(part) => {
                    let through = ((next - 1) as f64 * part) as u64;
                    upload(&mut spool, through);
                    prop_assert_eq!(upload(&mut spool, through), 0);
                }
                Step::Shed(rows) => {
                    spool.shed(DropReason::QueueFull, rows);
                    shed = rows;
                    captured += rows;
                }
                Step::Reopen { clean } => {
                    // What was only shed is durable with the next write; here there may be none.
                    spool.note();
                    if clean {
                        spool.close().unwrap();
                    }
                    drop(spool);
                    spool = open(&directory);
                    prop_assert_eq!(spool.stream(), &stream);
                    prop_assert_eq!(spool.take_losses(), vec![]);
                }
            }
            let ledger = assert_adds_up(&spool);
            prop_assert_eq!(ledger.captured, captured);
            // Whatever went, went from the front.
            let gone = ledger.uploaded + dropped(&ledger) - gone_before - shed;
            model.drain(..gone as usize);
            prop_assert_eq!(ledger.held, model.len() as u64);
            prop_assert_eq!(ledger.lost, 0);
        }
        prop_assert!(model == read_all(&mut spool));
    }
}

#[test]
fn the_bound_holds_under_twenty_times_too_much() {
    let bound = TIGHT_BYTES;
    // Large rows fill the log unevenly.
    for (count, bytes, times) in [(400, 1000, 20), (1, 8000, 2), (3, MAX_ROW_BYTES, 4)] {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = open_bounded(directory.path(), bound);
        let (mut next, mut most) = (1, 0);
        while next * (bytes as u64) < bound * times {
            let numbers = spool.append(&rows(next, count, bytes)).unwrap();
            next = numbers.end;
            most = most.max(physical_bytes(&spool));
            assert!(most <= bound, "{most} bytes after row {next}");
        }
        let ledger = assert_adds_up(&spool);
        assert_eq!(ledger.captured, next - 1);
        assert_eq!(ledger.dropped.get(&DropReason::SpoolFull).copied(), Some(next - 1 - ledger.held));
        let held_bytes = ledger.held * bytes as u64;
        assert!(held_bytes > bound / 2, "only {held_bytes} bytes of rows of {bytes} bytes held");
        let all = read_all(&mut spool);
        assert_eq!(all.len() as u64, ledger.held);
        for (number, (got, content)) in (next - ledger.held..next).zip(all) {
            assert_eq!(got, number);
            assert!(content == row(number, bytes));
        }
        assert!(physical_bytes(&spool) <= bound, "reading made it grow over the bound");
    }
}

#[test]
fn the_bound_holds_after_restarts_and_with_what_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = open_bounded(directory.path(), TIGHT_BYTES);
    for life in 0..4 {
        let full = spool.ledger().dropped.get(&DropReason::SpoolFull).copied();
        let is_filled = |spool: &Spool| {
            let active = spool.active.as_ref().unwrap();
            spool.ledger().dropped.get(&DropReason::SpoolFull).copied() > full
                && !active.has_room(101_000, spool.segment_bytes).unwrap()
        };
        loop {
            spool.append(&rows(1, 100, 1000)).unwrap();
            assert_adds_up(&spool);
            if is_filled(&spool) {
                break;
            }
        }
        drop(spool);
        if life > 0 {
            on_log(&directory.path().join(&names(&directory)[0]), |bytes| bytes.fill(0));
        }
        // Segments that are opened again take more than they did.
        spool = open_bounded(directory.path(), TIGHT_BYTES);
        read_all(&mut spool);
        let aside = directory::allocated(&directory.path().join(directory::QUARANTINE)).unwrap_or(0);
        assert_eq!(aside > MIN_SEGMENT_BYTES / 2, life > 0, "{aside} bytes are set aside");
        assert!(aside < 2 * MIN_SEGMENT_BYTES, "{aside} bytes are set aside");
        assert_adds_up(&spool);
    }
    drop(spool);
    assert_adds_up(&open(&directory));
}

#[test]
fn a_row_is_written_once_and_never_outside_the_synced_log() {
    for (count, bytes, most) in [(100, 300, 1.15), (1, MAX_ROW_BYTES, 1.45)] {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), SpoolOptions::default()).unwrap();
        let mut next = 1;
        // Up to the moment before the first segment is closed.
        while names(&directory).len() < 2 {
            next = spool.append(&rows(next, count, bytes)).unwrap().end;
        }
        let path = directory.path().join(names(&directory).first().unwrap());
        assert_eq!(fs::read_dir(path.join("blobs")).unwrap().count(), 0);
        let log = directory::allocated(&path.join("db")).unwrap() as f64;
        let stored = (spool.spans[0].end - 1) as f64 * bytes as f64;
        assert!(log <= stored * most, "{log} bytes of log for {stored} bytes of rows");
    }
}

#[test]
fn a_receipt_is_the_only_word_that_rows_are_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = open(&directory);
    assert!(matches!(spool.receipt(1), Err(SpoolError::ReceiptAhead { through: 1, last: 0 })));
    spool.append(&rows(1, 10, 50)).unwrap();
    assert_eq!(spool.peek(0, 4, EVERYTHING).unwrap().len(), 4);
    assert_eq!(spool.ledger().held, 10);
    assert_eq!(spool.receipt(4).unwrap(), 4);
    assert_eq!(spool.receipt(3).unwrap(), 3);
    assert_eq!(spool.ledger().uploaded, 4);
    assert!(matches!(spool.receipt(5), Err(SpoolError::ReceiptAhead { through: 5, last: 4 })));
    assert_eq!(spool.peek(0, 1, EVERYTHING).unwrap()[0].0, 5);
    assert_eq!(upload(&mut spool, 10), 6);
    // All is up and gone, and still no number comes twice.
    for clean in [true, false] {
        if clean {
            spool.close().unwrap();
        }
        drop(spool);
        spool = open(&directory);
        assert_eq!(names(&directory), Vec::<String>::new());
        let next = spool.append(&rows(1, 1, 50)).unwrap();
        assert_eq!(next.start, if clean { 11 } else { 12 });
        upload(&mut spool, next.start);
    }
    assert_eq!(assert_adds_up(&spool).uploaded, 12);
}

#[test]
fn a_receipt_from_before_a_restart_counts_for_what_is_given_out_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = open(&directory);
    spool.append(&rows(1, 10, 50)).unwrap();
    spool.peek(0, 8, EVERYTHING).unwrap();
    drop(spool);
    let mut spool = open(&directory);
    assert_eq!(spool.receipt(8).unwrap(), 0);
    assert_eq!(spool.ledger().held, 10);
    assert_eq!(spool.peek(0, 3, EVERYTHING).unwrap().len(), 3);
    assert_eq!(spool.receipt(8).unwrap(), 3);
    assert_eq!(assert_adds_up(&spool).uploaded, 3);
}

#[test]
fn a_spool_put_back_from_a_copy_begins_a_stream_and_gives_up_no_row() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = open(&directory);
    spool.append(&rows(1, 10, 50)).unwrap();
    let old = spool.stream().to_owned();
    spool.append(&rows(11, 2, 50)).unwrap();
    // The cloud has row 20 of this stream; here there never was one.
    assert!(matches!(spool.receipt(20), Err(SpoolError::ReceiptAhead { .. })));
    spool.begin_stream().unwrap();
    assert_ne!(spool.stream(), old);
    assert!(matches!(spool.receipt(1), Err(SpoolError::ReceiptAhead { through: 1, last: 0 })));
    let all = read_all(&mut spool);
    assert_eq!((all.len(), assert_adds_up(&spool).uploaded), (12, 0));
    let new = spool.stream().to_owned();
    drop(spool);
    assert_eq!(open(&directory).stream(), new);
}

#[test]
fn a_late_receipt_turns_evicted_rows_into_uploaded_ones() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = open(&directory);
    spool.append(&rows(1, 100, 1000)).unwrap();
    assert_eq!(spool.peek(0, 60, EVERYTHING).unwrap().len(), 60);
    while !spool.ledger().dropped.contains_key(&DropReason::SpoolFull) {
        spool.append(&rows(1, 100, 1000)).unwrap();
    }
    let before = assert_adds_up(&spool);
    let evicted = before.dropped[&DropReason::SpoolFull];
    assert!(evicted > 100);
    // Of the evicted rows, sixty had been given out, forty of them are confirmed now, then the rest.
    spool.receipt(40).unwrap();
    assert_eq!(spool.ledger().uploaded, 40);
    spool.receipt(60).unwrap();
    let after = assert_adds_up(&spool);
    assert_eq!((after.uploaded, after.dropped[&DropReason::SpoolFull]), (60, evicted - 60));
    assert_eq!(after.held, before.held);
}

#[test]
fn what_does_not_fit_is_refused_and_counted_by_reason() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(
        Spool::open(directory.path(), SpoolOptions { max_bytes: MIN_BYTES - 1 }),
        Err(SpoolError::BoundTooSmall { .. })
    ));
    let mut spool = open(&directory);
    assert!(matches!(
        Spool::open(directory.path(), SpoolOptions { max_bytes: MIN_BYTES }),
        Err(SpoolError::InUse { .. })
    ));
    let error = spool.append(&[row(1, 10), row(2, MAX_ROW_BYTES + 1)]).unwrap_err();
    assert!(matches!(error, SpoolError::RowTooLarge { index: 1, .. }) && !error.is_retryable());
    assert_eq!(spool.ledger(), Ledger::default());
    spool.shed(DropReason::RowTooLarge, 1);
    spool.shed(DropReason::QueueFull, 5);
    spool.append(&[row(1, 10)]).unwrap();
    drop(spool);
    let ledger = assert_adds_up(&open(&directory));
    assert_eq!(ledger.captured, 7);
    assert_eq!(ledger.dropped, [(DropReason::QueueFull, 5), (DropReason::RowTooLarge, 1)].into());
}

/// What is done to the segment in this directory.
type Damage = fn(&Path);

fn on_log(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path.join("db")).unwrap();
    change(&mut bytes);
    fs::write(path.join("db"), bytes).unwrap();
}

const DAMAGES: [(&str, Damage); 8] = [
    ("truncated snapshot", |path| {
        fs::write(path.join("snap.0000000000000001"), b"cut").unwrap();
    }),
    ("zeroed log", |path| on_log(path, |bytes| bytes.fill(0))),
    ("log cut in half", |path| on_log(path, |bytes| bytes.truncate(bytes.len() / 2))),
    ("log lost its tail", |path| on_log(path, |bytes| bytes.truncate(bytes.len() - 5000))),
    ("noise in the log", |path| {
        on_log(path, |bytes| {
            let noise = row(3, 200_000);
            let at = bytes.len() / 3;
            bytes[at..at + noise.len()].copy_from_slice(&noise);
        })
    }),
    ("log of noise", |path| on_log(path, |bytes| *bytes = row(4, bytes.len()))),
    ("no log", |path| fs::remove_file(path.join("db")).unwrap()),
    ("a file, not a directory", |path| {
        fs::remove_dir_all(path).unwrap();
        fs::write(path, row(5, 5000)).unwrap();
    }),
];

#[test]
fn damage_is_counted_and_the_spool_goes_on() {
    for (what, damage) in DAMAGES {
        // The oldest, one in the middle, and the one that was being written when the process died.
        for place in 0..3 {
            let directory = tempfile::tempdir().unwrap();
            let mut spool = open(&directory);
            let mut next = spool.append(&rows(1, 300, 1000)).unwrap().end;
            // While it is being written: reading a closed segment mends its log.
            upload(&mut spool, 50);
            while spool.spans.len() < 3 || spool.spans[2].end - spool.spans[2].first < 400 {
                next = spool.append(&rows(next, 300, 1000)).unwrap().end;
            }
            drop(spool);
            damage(&directory.path().join(&names(&directory)[place]));

            let mut spool = open(&directory);
            let all = read_all(&mut spool);
            let ledger = assert_adds_up(&spool);
            let context = format!("{what}, segment {place}: {ledger:?}");
            assert_eq!((ledger.captured, ledger.uploaded), (next - 1, 50), "{context}");
            assert_eq!(ledger.held, all.len() as u64, "{context}");
            assert!(all.is_sorted_by(|left, right| left.0 < right.0), "{context}");
            assert!(all.iter().all(|(number, content)| *content == row(*number, 1000)), "{context}");
            let lost: u64 = spool.take_losses().iter().map(|loss| loss.rows).sum();
            assert_eq!(lost, ledger.lost, "{context}");
            assert_eq!(lost == 0, what == "truncated snapshot", "{context}");
            // Never the whole for a part: the other segments are all there.
            assert!(lost <= 1000 && ledger.held > next - 1 - 50 - 1000, "{context}");

            let again = spool.append(&rows(next, 1, 1000)).unwrap();
            assert!(again.start >= next, "{context}: {again:?}");
            assert_eq!(
                spool.peek(again.start - 1, 9, EVERYTHING).unwrap(),
                vec![(again.start, row(next, 1000))]
            );
            drop(spool);
            let mut spool = open(&directory);
            assert_eq!(spool.take_losses(), vec![], "counted twice: {context}");
            assert_eq!(assert_adds_up(&spool).lost, lost, "{context}");
            assert_eq!(read_all(&mut spool).len(), all.len() + 1, "{context}");
        }
    }
}

#[test]
fn without_its_ledger_a_spool_keeps_its_rows_under_a_new_stream() {
    for bytes in [None, Some([0; 8192])] {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = open(&directory);
        spool.append(&rows(1, 3000, 1000)).unwrap();
        upload(&mut spool, 100);
        let stream = spool.stream().to_owned();
        drop(spool);
        match bytes {
            None => fs::remove_file(directory.path().join("ledger")).unwrap(),
            Some(bytes) => fs::write(directory.path().join("ledger"), bytes).unwrap(),
        }
        let mut spool = open(&directory);
        assert_ne!(spool.stream(), stream);
        let losses = spool.take_losses();
        assert_eq!((losses.len(), losses[0].name.as_str(), losses[0].rows), (1, "ledger", 0));
        assert_eq!(assert_adds_up(&spool).lost, 0);
        let all = read_all(&mut spool);
        assert_eq!(all.last().unwrap(), &(3000, row(3000, 1000)));
        assert_eq!(spool.append(&rows(1, 1, 10)).unwrap().start, 3001);
    }
}

/// A power cut can lose what the ledger only noted.
#[test]
fn an_old_ledger_costs_nothing_and_no_number_comes_twice() {
    for damaged in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut spool = open(&directory);
        spool.append(&rows(1, 1, 100)).unwrap();
        let old = fs::read(&path).unwrap();
        spool.append(&rows(2, 200, 100)).unwrap();
        drop(spool);
        fs::write(&path, old).unwrap();
        if damaged {
            on_log(&directory.path().join(&names(&directory)[0]), |bytes| bytes.fill(0));
        }
        let mut spool = open(&directory);
        let numbers = spool.append(&rows(1, 1, 100)).unwrap();
        if damaged {
            assert!(numbers.start > 201, "{numbers:?}");
            assert_eq!(assert_adds_up(&spool).lost, 1, "as many as it knows of");
        } else {
            assert_eq!(numbers.start, 202);
            assert_eq!((assert_adds_up(&spool).held, read_all(&mut spool).len()), (202, 202));
        }
    }
}

/// The disk failed while rows were written and when the segment was to be closed; it was refused rows that it kept.
#[test]
fn a_segment_that_could_not_be_closed_ends_where_the_next_begins() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&directory));
    for (first, count) in [(1, 10), (8, 5)] {
        let path = directory.path().join(directory::segment_name(first, None));
        let mut segment = segment::Segment::create(&path, first).unwrap();
        segment.append(&rows(first, count, 100)).unwrap();
    }
    let mut spool = open(&directory);
    let all = read_all(&mut spool);
    let expected: Vec<(u64, Vec<u8>)> = (1..13).map(|number| (number, row(number, 100))).collect();
    assert_eq!(all, expected);
}

/// The test binary again, running one ignored test below on `directory`.
fn child(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", &format!("spool::tests::{test}")]);
    command.env(CHILD_DIRECTORY, directory);
    command
}

#[test]
#[ignore = "run in a process of its own by the test that kills it"]
fn child_appends_until_killed() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let mut spool = open_path(Path::new(&directory));
    println!("\nopen");
    let mut seed = u64::from(std::process::id());
    loop {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let first = spool.record.next;
        let numbers = spool.append(&rows(first, 1 + (seed >> 33) % 200, 500)).unwrap();
        println!("stored {} {}", numbers.start, numbers.end);
        if (seed >> 50) % 16 == 0 {
            let through = spool.record.head + (numbers.end - spool.record.head) / 2;
            upload(&mut spool, through);
            println!("uploaded {through}");
        }
    }
}

#[test]
fn a_kill_at_any_moment_loses_and_doubles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut stored, mut uploaded) = (1, 0);
    for cycle in 0..15u64 {
        let mut process =
            child("child_appends_until_killed", directory.path()).stdout(Stdio::piped()).spawn().unwrap();
        // The child goes on while its lines are read, so that the kill hits any point of its work.
        let lines = 1 + (cycle * 7919 + 13) % 90;
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while let Some(Ok(line)) = output.next() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["stored", start, end] => {
                    assert!(start.parse::<u64>().unwrap() >= stored, "{line} after {stored}");
                    stored = end.parse().unwrap();
                }
                ["uploaded", through] => uploaded = through.parse().unwrap(),
                _ => continue,
            }
            seen += 1;
            if seen == lines {
                process.kill().unwrap();
            }
        }
        assert!(seen >= lines, "the child ended by itself: {:?}", process.wait());
        process.wait().unwrap();

        let mut spool = open(&directory);
        let ledger = assert_adds_up(&spool);
        assert_eq!(ledger.lost, 0, "{ledger:?}");
        let all = read_all(&mut spool);
        let head = spool.record.head;
        assert!(head > uploaded, "a receipt was forgotten");
        let numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers.len() as u64, ledger.held, "{ledger:?}");
        assert!(numbers.last().unwrap() + 1 >= stored, "an acknowledged row is gone");
        // A kill between a segment's making and its first row leaves one that may have had rows, by all that is known.
        let follows = |pair: &[u64]| [1, 1 + segment::MAX_ROWS].contains(&(pair[1] - pair[0]));
        assert!(numbers[0] >= head && numbers.windows(2).all(follows), "{head}: {numbers:?}");
        assert!(all.iter().all(|(number, content)| *content == row(*number, 500)));
        stored = spool.record.next;
    }
    assert!(stored > 1000);
}

#[test]
#[ignore = "run on a small file system of its own by the test that fills it"]
fn child_fills_the_disk() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let directory = Path::new(&directory);
    let options = || SpoolOptions { max_bytes: MIN_BYTES };
    let mut spool = Spool::open(directory, options()).unwrap();
    let mut stored = 0;
    let mut refused = 0;
    while refused < 500 {
        match spool.append(&rows(1, 100, 1000)) {
            Ok(numbers) => stored += numbers.end - numbers.start,
            Err(SpoolError::NotStored { stored: part, dropped, reason, .. }) => {
                assert_eq!((reason, dropped + part.end - part.start), (DropReason::DiskFull, 100));
                stored += part.end - part.start;
                refused += dropped;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let full = |spool: &Spool| {
        let ledger = spool.ledger();
        (ledger.captured, ledger.held, ledger.lost, ledger.dropped.get(&DropReason::DiskFull).copied())
    };
    assert_eq!(full(&spool), (stored + refused, stored, 0, Some(refused)));
    drop(spool);
    // It starts on a full disk; in the room that is held in reserve rows can be read, their receipts free the rest, and
    // rows are taken again.
    let mut spool = Spool::open(directory, options()).unwrap();
    assert_eq!(full(&spool), (stored + refused, stored, 0, Some(refused)));
    upload(&mut spool, stored);
    assert_eq!(spool.append(&rows(1, 100, 1000)).unwrap(), stored + 1..stored + 101);
    assert_eq!(read_all(&mut spool).len(), 100);
    assert_eq!(fs::metadata(directory.join("reserve")).unwrap().len(), reserve::BYTES, "room is held again");
    // It also starts where sled can't check the segment that was being written, and where no room is in reserve.
    drop(spool);
    fs::remove_file(directory.join("reserve")).unwrap();
    let filler = directory.join("filler");
    assert!(std::io::copy(&mut std::io::repeat(1), &mut File::create(&filler).unwrap()).is_err());
    let mut spool = Spool::open(directory, options()).unwrap();
    assert_eq!(spool.ledger().held, 100);
    assert!(matches!(spool.peek(0, 1, 1), Err(SpoolError::Disk { .. })));
    assert!(spool.append(&rows(1, 1, 1)).is_err());
    fs::remove_file(filler).unwrap();
    assert_eq!(read_all(&mut spool).len(), 100);
    assert!(spool.append(&rows(1, 1, 1)).unwrap().start > stored + 100);
    assert_eq!(assert_adds_up(&spool).lost, 0);
    println!("\nfilled {stored}");
}

#[test]
fn a_full_disk_drops_the_new_rows_counted_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let run = |command: &Command| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let script = format!(
            "mount -t tmpfs -o size=4m none '{0}' || exit 77; {1}",
            directory.path().display(),
            words.join(" ")
        );
        let mut shell = Command::new("unshare");
        shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
        shell.env(CHILD_DIRECTORY, directory.path());
        shell.output()
    };
    match run(&child("child_fills_the_disk", directory.path())) {
        Ok(output) if output.status.code() != Some(77) && !output.stderr.starts_with(b"unshare:") => {
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("\nfilled "), "{text}{errors}");
        }
        refused => eprintln!("not tested, this machine gives no file system to fill: {refused:?}"),
    }
}

#[test]
#[ignore = "measures; run it alone"]
fn measure() {
    let written = || -> u64 {
        let io = fs::read_to_string("/proc/self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
    };
    let resident = || -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // A directory of the build, because the default one may be in memory.
    let parent = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    for (count, bytes, appends) in [(1, 300, 3000), (100, 300, 1500), (1, 90_000, 500)] {
        let directory = tempfile::tempdir_in(&parent).unwrap();
        let before = resident();
        let mut spool = Spool::open(directory.path(), SpoolOptions::default()).unwrap();
        let payload = appends * count * bytes as u64;
        let (start_bytes, start_resident) = (written(), resident());
        let mut times: Vec<_> = (0..appends)
            .map(|at| {
                let batch = rows(at * count + 1, count, bytes);
                let start = Instant::now();
                spool.append(&batch).unwrap();
                start.elapsed()
            })
            .collect();
        let elapsed: std::time::Duration = times.iter().sum();
        times.sort();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "{count} rows of {bytes}: p50 {:?} p99 {:?} max {:?}; {:.0} rows/s; wrote {:.2}, keeps {:.2} bytes per byte; \
             resident {before} kB at start, +{} kB",
            at(0.5),
            at(0.99),
            at(1.0),
            (appends * count) as f64 / elapsed.as_secs_f64(),
            (written() - start_bytes) as f64 / payload as f64,
            physical_bytes(&spool) as f64 / payload as f64,
            resident() as i64 - start_resident as i64,
        );
        let start = Instant::now();
        let (mut after, mut read) = (0, 0);
        while let Some((number, _)) = spool.peek(after, 1000, 100_000).unwrap().last() {
            after = *number;
            read += 1;
        }
        println!("  read back in {read} batches: {:?}", start.elapsed());
        drop(spool);
        let start = Instant::now();
        let mut spool = Spool::open(directory.path(), SpoolOptions::default()).unwrap();
        println!("  opened after a crash: {:?}", start.elapsed());
        let start = Instant::now();
        spool.receipt(after).unwrap();
        println!("  receipt for all: {:?}, resident {} kB", start.elapsed(), resident());
    }
}
