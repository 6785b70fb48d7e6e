//! Bytes from a stranger: no decoder panics, hangs or gives back other than it took, whatever it is given.
//!
//! A short, repeatable form of what `tests/run fuzz` does for as long as it is told: every target's samples, changed in
//! the ways in which a fuzzer changes them. What a fuzzer has found is a test of its own beside the decoder.

use std::time::{Duration, Instant};

use e2e::hostile::{ALL, Target};
use e2e::random::Random;

/// Changed samples of each target. All together take a few seconds.
const ROUNDS: u64 = 1_000;

/// Longest time for one target: where a decoder does not end, this does not either, but where it has grown slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes with a meaning in what is decoded: ends of ranges, lengths, brackets, separators.
const TELLING: &[u8] = b"\x00\x01\x7f\x80\xff\x1b\x5b\x7b\x9b\x9f\xbb\xbf\xc0\xd8\xfb[]{}\",:.=/%\\\n0-9eE";

#[test]
fn no_decoder_is_upset_by_what_it_reads() {
    let threads: Vec<_> =
        ALL.iter().map(|target| (target.name, std::thread::spawn(|| tried(target)))).collect();
    let upset: Vec<&str> =
        threads.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect();
    assert!(upset.is_empty(), "upset: {upset:?}; the rounds above say by what");
}

fn tried(target: &Target) {
    let begun = Instant::now();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no sample", target.name);
    seeds.iter().for_each(|seed| (target.run)(seed));
    for round in 0..ROUNDS {
        let mut random = Random::new(round);
        let seed = &seeds[index(&mut random, seeds.len())];
        let bytes = changed(seed.clone(), &seeds, &mut random);
        let run = std::panic::catch_unwind(|| (target.run)(&bytes));
        assert!(run.is_ok(), "{} in round {round}: {bytes:02x?}", target.name);
    }
    assert!(begun.elapsed() < PATIENCE, "{} takes too long", target.name);
}

/// A sample with one to eight changes.
fn changed(mut bytes: Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    for _ in 0..=random.below(8) {
        if bytes.is_empty() {
            break;
        }
        let at = index(random, bytes.len());
        let until = (at + 1 + index(random, 16)).min(bytes.len());
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = TELLING[index(random, TELLING.len())],
            2 => bytes.insert(at, TELLING[index(random, TELLING.len())]),
            3 => drop(bytes.drain(at..until)),
            4 => bytes.truncate(at),
            5 => bytes[at..until].fill(TELLING[index(random, TELLING.len())]),
            6 => {
                let part = bytes[at..until].repeat(1 + index(random, 64));
                bytes.splice(at..at, part);
            }
            // The end of another sample.
            _ => {
                let other = &seeds[index(random, seeds.len())];
                let from = index(random, other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

fn index(random: &mut Random, end: usize) -> usize {
    random.below(end as u64) as usize
}
