//! How the C library's allocator is set up, for a device where every mebibyte counts.
//!
//! As it comes, glibc's allocator makes a heap for each thread (up to eight per core), and stops giving large blocks
//! back once one was freed. After 400 scores of the sample over 8 connections 10.4 and 11.4 MiB of private memory were
//! left on two cores, and 7.6 and 8.1 MiB so (with 128 KiB of surplus), at the same speed. Giving back from 128 KiB on
//! would have left 5.6 MiB, but a model whose tensors are of that size (magika on tract) took half as long again for each
//! score.

/// Blocks of this many bytes or more go back to the system as soon as they are free.
#[cfg(target_env = "gnu")]
const LARGE: i32 = 1 << 20;

/// Free memory at a heap's end that goes back to the system. With glibc's 128 KiB, which it would raise by itself, each request
/// with a tensor of 600 KB was given 250 new pages, and 30 so; a score of the sample on tract took 2.9 ms, and 2.4 so. After
/// those, over 1 and 8 connections, 38.5 and 37.6 MiB were resident with 128 KiB, and 38.0 and 36.5 so.
#[cfg(target_env = "gnu")]
const SURPLUS: i32 = 2 << 20;

/// Heaps: the scorers' and the network's threads seldom wait for each other with two.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// Sets the allocator up; to be called before there are threads. Other C libraries need none of it.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, HEAPS), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, SURPLUS)]
    {
        // SAFETY: mallopt takes two numbers. What it does not take stays as it was, and works.
        unsafe { libc::mallopt(parameter, value) };
    }
}
