//! What the pool does to a whole process: misuse ends it with a report, limits hold, memory goes back, threads come and
//! go, fork works. Each case runs in a child process: this same program, told by an environment variable what to do.

use std::ffi::c_void;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;

use partyline::osip::memory::{_osip_free, _osip_malloc, _osip_realloc};
use partyline::pool::{self, stats};

const CASE: &str = "PARTYLINE_TEST_CASE";

/// Runs `body` in a child with these variables set; here it returns what the child said.
fn in_child(name: &str, variables: &[(&str, &str)], body: fn()) -> Option<Output> {
    prepared(name, variables, |_| {}, body)
}

fn prepared(name: &str, variables: &[(&str, &str)], prepare: fn(&mut Command), body: fn()) -> Option<Output> {
    if std::env::var(CASE).is_ok_and(|case| case == name) {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(CASE, name);
    command.envs(variables.iter().copied());
    prepare(&mut command);
    Some(command.output().unwrap())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeds(output: Option<Output>) {
    if let Some(output) = output {
        assert!(output.status.success(), "{}: {}", output.status, said(&output));
        // A case that the child did not find would end well too.
        assert!(said(&output).contains("1 passed"), "{}", said(&output));
    }
}

/// The child was ended by the pool, which named the misuse.
#[track_caller]
fn is_reported(output: Option<Output>, words: &[&str]) {
    let Some(output) = output else { panic!("the misuse was not noticed") };
    let said = said(&output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}: {said}", output.status);
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

/// A block that is passed from thread to thread.
struct Block(*mut u8);
// SAFETY: only the thread that has the value uses the block.
unsafe impl Send for Block {}

fn free(block: *mut u8) {
    // SAFETY: what the misuse tests pass is not a live block, and that is what they are about: the pool looks first.
    unsafe { pool::free(block) }
}

fn keep_one(size: usize) -> *mut u8 {
    // A neighbour that stays keeps the span in use.
    pool::malloc(size);
    pool::malloc(size)
}

#[test]
fn double_free() {
    let output = in_child("double_free", &[], || {
        let block = keep_one(40);
        free(block);
        free(block);
    });
    is_reported(output, &["double free", "size class 48"]);
}

#[test]
fn double_free_of_the_smallest() {
    let output = in_child("double_free_of_the_smallest", &[], || {
        let block = keep_one(1);
        free(block);
        free(block);
    });
    is_reported(output, &["double free", "size class 8"]);
}

#[test]
fn double_free_by_another_thread() {
    let output = in_child("double_free_by_another_thread", &[], || {
        let block = keep_one(100);
        free(block);
        let block = Block(block);
        thread::spawn(move || {
            let block = block;
            free(block.0)
        })
        .join()
        .unwrap();
    });
    is_reported(output, &["double free", "size class 112"]);
}

#[test]
fn double_free_by_two_other_threads() {
    let output = in_child("double_free_by_two_other_threads", &[], || {
        let block = keep_one(100) as usize;
        for _ in 0..2 {
            thread::spawn(move || free(block as *mut u8)).join().unwrap();
        }
    });
    is_reported(output, &["double free", "size class 112"]);
}

#[test]
fn double_free_of_a_large_block() {
    let output = in_child("double_free_of_a_large_block", &[], || {
        let block = pool::malloc(1 << 20);
        free(block);
        free(block);
    });
    is_reported(output, &["no block of the pool"]);
}

#[test]
fn double_realloc() {
    let output = in_child("double_realloc", &[], || {
        let block = keep_one(40);
        free(block);
        // SAFETY: not live, which the pool has to find out.
        unsafe { pool::realloc(block, 60) };
    });
    is_reported(output, &["double free", "in realloc"]);
}

#[test]
fn interior_pointer() {
    let output = in_child("interior_pointer", &[], || {
        let block = keep_one(100);
        free(block.wrapping_add(16));
    });
    is_reported(output, &["middle of a block", "size class 112"]);
}

#[test]
fn interior_pointer_of_a_medium_block() {
    let output = in_child("interior_pointer_of_a_medium_block", &[], || {
        let block = pool::malloc(30_000);
        // Deep in the span, where the descriptor is another slice's.
        let last = (0..5).map(|_| pool::malloc(30_000)).max().unwrap();
        free(block.max(last).wrapping_add(8));
    });
    is_reported(output, &["middle of a block"]);
}

#[test]
fn interior_pointer_of_a_large_block() {
    let output = in_child("interior_pointer_of_a_large_block", &[], || {
        free(pool::malloc(1 << 20).wrapping_add(65536));
    });
    is_reported(output, &["partyline: "]);
}

#[test]
fn pointer_that_was_never_a_block() {
    let output = in_child("pointer_that_was_never_a_block", &[], || {
        let block = pool::malloc(100);
        free(block.wrapping_add(32 << 20));
    });
    is_reported(output, &["no block of the pool"]);
}

#[test]
fn block_that_was_never_handed_out() {
    let output = in_child("block_that_was_never_handed_out", &[], || {
        let block = pool::malloc(48);
        free(block.wrapping_add(48 * 500));
    });
    is_reported(output, &["no block of the pool", "size class 48"]);
}

#[test]
fn pointer_behind_the_last_block_of_a_span() {
    let output = in_child("pointer_behind_the_last_block_of_a_span", &[], || {
        let blocks: Vec<_> = (0..3000).map(|_| pool::malloc(48)).collect();
        // 1,365 blocks of 48 leave 16 bytes.
        free(((blocks[1500] as usize & !0xffff) + 1365 * 48) as *mut u8);
    });
    is_reported(output, &["no block of the pool", "size class 48"]);
}

#[test]
fn double_free_of_a_run() {
    let output = in_child("double_free_of_a_run", &[], || {
        let block = keep_one(40_000);
        free(block);
        free(block);
    });
    is_reported(output, &["double free"]);
}

#[test]
fn double_free_of_a_run_that_was_written_to() {
    let output = in_child("double_free_of_a_run_that_was_written_to", &[], || {
        let block = keep_one(40_000);
        free(block);
        // SAFETY: memory of the pool; the write is part of the misuse under test.
        unsafe { block.write_bytes(1, 8) };
        free(block);
    });
    is_reported(output, &["double free"]);
}

#[test]
fn double_free_of_a_run_by_two_other_threads() {
    let output = in_child("double_free_of_a_run_by_two_other_threads", &[], || {
        let block = keep_one(10_000) as usize;
        for _ in 0..2 {
            thread::spawn(move || free(block as *mut u8)).join().unwrap();
        }
    });
    is_reported(output, &["double free"]);
}

#[test]
fn interior_pointers_of_a_run() {
    for inside in [8usize, 1024, 39_000] {
        let name = "interior_pointers_of_a_run";
        let output = prepared(
            name,
            &[("PARTYLINE_TEST_INSIDE", &inside.to_string())],
            |_| {},
            || {
                let inside = std::env::var("PARTYLINE_TEST_INSIDE").unwrap().parse().unwrap();
                free(keep_one(40_000).wrapping_add(inside));
            },
        );
        is_reported(output, &["middle of a block", "of 40960 bytes"]);
    }
}

#[test]
fn write_after_free_of_a_run() {
    let output = in_child("write_after_free_of_a_run", &[], || {
        let block = keep_one(20_000);
        let other = pool::malloc(20_000);
        free(other);
        free(block);
        // SAFETY: memory of the pool; the write is the misuse under test.
        unsafe { *block = 1 };
        // What begins elsewhere and only covers it finds it as well.
        for _ in 0..100 {
            pool::malloc(9_000);
        }
    });
    is_reported(output, &["write after free"]);
}

fn write_after_free(write: fn(*mut u8)) {
    let block = keep_one(48);
    let other = pool::malloc(48);
    free(other);
    free(block);
    write(block);
    // The block is found when it would be handed out, which is the next time.
    for _ in 0..3 {
        pool::malloc(48);
    }
}

#[test]
fn write_after_free_of_one_byte() {
    let output = in_child("write_after_free_of_one_byte", &[], || {
        write_after_free(|block| {
            // SAFETY: memory of the pool, mapped; the write is the misuse under test.
            unsafe { *block = !*block };
        });
    });
    is_reported(output, &["write after free", "size class 48"]);
}

#[test]
fn write_after_free_of_zeros() {
    let output = in_child("write_after_free_of_zeros", &[], || {
        write_after_free(|block| {
            // SAFETY: as above.
            unsafe { block.write_bytes(0, 48) };
        });
    });
    is_reported(output, &["write after free", "size class 48"]);
}

#[test]
fn checked_overflow_by_one() {
    let output = in_child("checked_overflow_by_one", &[("PARTYLINE_POOL", "checked")], || {
        let block = pool::malloc(20);
        // SAFETY: within the block's class; the write is the misuse under test.
        unsafe { *block.add(20) = 0 };
        free(block);
    });
    is_reported(output, &["write past the end", "in free"]);
}

#[test]
fn checked_overflow_far() {
    let output = in_child("checked_overflow_far", &[("PARTYLINE_POOL", "checked")], || {
        let block = pool::malloc(24);
        // SAFETY: as above.
        unsafe { block.write_bytes(0x41, 45) };
        free(block);
    });
    is_reported(output, &["write past the end"]);
}

#[test]
fn checked_write_after_free_behind_the_first_word() {
    let output = in_child("checked_write_after_free_behind_the_first_word", &[("PARTYLINE_POOL", "checked")], || {
        let block = pool::malloc(60);
        free(block);
        // SAFETY: memory of the pool; the write is the misuse under test.
        unsafe { *block.add(30) = 1 };
        for _ in 0..2000 {
            free(pool::malloc(60));
        }
    });
    is_reported(output, &["write after free", "size class 80"]);
}

/// The trailer tells a freed block, whatever was written to its beginning.
#[test]
fn checked_double_free_of_a_block_that_was_written_to() {
    let name = "checked_double_free_of_a_block_that_was_written_to";
    let output = in_child(name, &[("PARTYLINE_POOL", "checked")], || {
        let block = pool::malloc(20);
        free(block);
        // SAFETY: memory of the pool; the write is part of the misuse under test.
        unsafe { block.write_bytes(7, 20) };
        free(block);
    });
    is_reported(output, &["double free", "size class 32"]);
}

/// Every length of slack: the first byte behind the block, and the last in front of the trailer.
#[test]
fn checked_overflow_at_every_size() {
    for size in [1usize, 7, 8, 9, 15, 16, 23, 24, 25, 33, 100, 1000, 5000, 9000, 100_000, 300_000] {
        let name = "checked_overflow_at_every_size";
        let variables = [("PARTYLINE_POOL", "checked"), ("PARTYLINE_TEST_SIZE", &*size.to_string())];
        let output = prepared(
            name,
            &variables,
            |_| {},
            || {
                let size = std::env::var("PARTYLINE_TEST_SIZE").unwrap().parse().unwrap();
                let block = pool::malloc(size);
                // SAFETY: within what the pool has set aside; the write is the misuse under test: a string's end.
                unsafe { *block.add(size) = 0 };
                free(block);
            },
        );
        is_reported(output, &["write past the end", "in free"]);
    }
}

#[test]
fn checked_mode_keeps_contents() {
    succeeds(in_child("checked_mode_keeps_contents", &[("PARTYLINE_POOL", "checked")], || {
        let mut blocks: Vec<(*mut u8, usize, u8)> = Vec::new();
        for n in 0..200_000usize {
            let size = n.wrapping_mul(2654435761) % [40, 200, 3000, 30_000, 400_000][n / 3 % 5];
            let block = pool::malloc(size);
            // SAFETY: live blocks of these sizes.
            unsafe {
                assert_eq!(pool::usable_size(block), size);
                block.write_bytes(n as u8, size);
                blocks.push((block, size, n as u8));
                if blocks.len() > 300 {
                    let (block, size, mark) = blocks.swap_remove(n * 7 % 300);
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == mark));
                    pool::free(block);
                }
            }
        }
        blocks.into_iter().for_each(|block| free(block.0));
        pool::trim();
        assert_eq!(stats::read().live, 0);
    }));
}

#[test]
fn checked_double_free() {
    let output = in_child("checked_double_free", &[("PARTYLINE_POOL", "checked")], || {
        let block = pool::malloc(60);
        free(block);
        free(block);
    });
    is_reported(output, &["double free"]);
}

/// With every block sampled: the byte behind the alignment's slack is on a page that cannot be touched.
#[test]
fn checked_guard_page() {
    let variables = [("PARTYLINE_POOL", "checked"), ("PARTYLINE_POOL_SAMPLE", "1")];
    let output = in_child("checked_guard_page", &variables, || {
        let block = pool::malloc(60);
        // SAFETY: mapped, but not accessible: the fault is what is tested.
        unsafe { block.add(64).read_volatile() };
    });
    if let Some(output) = output {
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", said(&output));
    }
}

#[test]
fn checked_guarded_overflow_within_the_alignment() {
    let variables = [("PARTYLINE_POOL", "checked"), ("PARTYLINE_POOL_SAMPLE", "1")];
    let output = in_child("checked_guarded_overflow_within_the_alignment", &variables, || {
        let block = pool::malloc(60);
        // SAFETY: within the slack; the write is the misuse under test.
        unsafe { *block.add(60) = 1 };
        free(block);
    });
    is_reported(output, &["write past the end"]);
}

#[test]
fn checked_guarded_use_after_free() {
    let variables = [("PARTYLINE_POOL", "checked"), ("PARTYLINE_POOL_SAMPLE", "1")];
    let output = in_child("checked_guarded_use_after_free", &variables, || {
        let block = pool::malloc(5000);
        free(block);
        // SAFETY: mapped, but not accessible: the fault is what is tested.
        unsafe { block.read_volatile() };
    });
    if let Some(output) = output {
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", said(&output));
    }
}

#[test]
fn guarded_blocks_come_and_go() {
    let variables = [("PARTYLINE_POOL", "checked"), ("PARTYLINE_POOL_SAMPLE", "3")];
    succeeds(in_child("guarded_blocks_come_and_go", &variables, || {
        let mut blocks = Vec::new();
        for n in 0..20_000usize {
            let size = n * 37 % 60_000;
            let block = pool::malloc(size);
            // SAFETY: a live block of this size.
            unsafe { block.write_bytes(3, size) };
            blocks.push(block);
            if blocks.len() > 300 {
                // SAFETY: a live block of the pool.
                let block = unsafe { pool::realloc(blocks.swap_remove(n % 300), 100) };
                free(block);
            }
        }
        blocks.into_iter().for_each(free);
    }));
}

#[test]
fn the_call_site_is_named() {
    let output = in_child("the_call_site_is_named", &[], || {
        // SAFETY: blocks from here, freed twice, which is the misuse under test.
        unsafe {
            let block = _osip_malloc(33, c"parser.c".as_ptr().cast_mut(), 471);
            let block = _osip_realloc(block, 50, c"writer.c".as_ptr().cast_mut(), 12);
            _osip_free(block);
            _osip_free(block);
        }
    });
    is_reported(output, &["double free", "writer.c:12"]);
}

#[test]
fn debug_forms_keep_contents() {
    // SAFETY: live blocks of the pool.
    unsafe {
        let file = c"x.c".as_ptr().cast_mut();
        let block = _osip_malloc(10, file, 1).cast::<u8>();
        block.write_bytes(9, 10);
        let block = _osip_realloc(block.cast(), 5000, file, 2).cast::<u8>();
        assert!((0..10).all(|n| *block.add(n) == 9));
        assert!(_osip_realloc(block.cast(), 0, file, 3).is_null());
    }
}

#[test]
fn leaks_are_listed() {
    let output = in_child("leaks_are_listed", &[("PARTYLINE_POOL", "leaks")], || {
        // SAFETY: blocks of the pool.
        unsafe {
            let file = c"leaky.c".as_ptr().cast_mut();
            for _ in 0..3 {
                _osip_malloc(100, file, 77);
            }
            _osip_free(_osip_malloc(100, file, 78));
        }
        pool::malloc(500);
        // SAFETY: the pool is in leaks mode; called once, at the end.
        pool::watch::report_leaks();
    });
    if let Some(output) = output {
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("3 blocks, 300 bytes, leaky.c:77"), "{said}");
        assert!(said.contains("1 blocks, 500 bytes, size class"), "{said}");
        assert!(!said.contains("leaky.c:78"), "{said}");
    }
}

#[test]
fn libc_mode_passes_everything_on() {
    succeeds(in_child("libc_mode_passes_everything_on", &[("PARTYLINE_POOL", "libc")], || {
        let block = pool::malloc(100);
        assert!(pool::offset_of(block as usize).is_none());
        // SAFETY: a live block of libc's, and none afterwards.
        unsafe {
            let block = pool::realloc(block, 200);
            assert!(libc::malloc_usable_size(block.cast()) >= 200);
            libc::free(block.cast());
        }
        assert_eq!(stats::read().allocated, 0);
    }));
}

#[test]
fn past_the_limit_there_is_null() {
    succeeds(in_child("past_the_limit_there_is_null", &[("PARTYLINE_POOL_LIMIT", "3m")], || {
        let blocks: Vec<Block> = std::iter::from_fn(|| {
            let block = pool::malloc(1000);
            (!block.is_null()).then_some(Block(block))
        })
        .collect();
        assert!((2000..3200).contains(&blocks.len()), "{}", blocks.len());
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOMEM));
        assert!(pool::malloc(1 << 20).is_null());
        // What is there can be freed and had again.
        for block in &blocks {
            free(block.0);
        }
        assert!(!pool::malloc(1 << 20).is_null());
        pool::set_limit(0);
        assert!(!pool::malloc(16 << 20).is_null());
    }));
}

/// The library's own Rust code must not run into the host's limit.
#[test]
fn the_limit_does_not_bind_rust_code() {
    use std::alloc::{GlobalAlloc, Layout};
    succeeds(in_child("the_limit_does_not_bind_rust_code", &[("PARTYLINE_POOL_LIMIT", "1m")], || {
        for _ in 0..1000 {
            // SAFETY: a layout of some size.
            let block = unsafe { pool::PoolAlloc.alloc(Layout::from_size_align(10_000, 8).unwrap()) };
            assert!(!block.is_null());
        }
    }));
}

fn limit_address_space(command: &mut Command) {
    // SAFETY: setrlimit is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 300 << 20, rlim_max: 300 << 20 };
            if libc::setrlimit(libc::RLIMIT_AS, &limit) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[test]
fn with_little_address_space_the_range_is_smaller_and_libc_helps_out() {
    let name = "with_little_address_space_the_range_is_smaller_and_libc_helps_out";
    succeeds(prepared(name, &[], limit_address_space, || {
        let blocks: Vec<usize> = (0..1200).map(|_| pool::malloc(100_000) as usize).collect();
        let ours = blocks.iter().filter(|&&block| pool::offset_of(block).is_some()).count();
        assert!(blocks.iter().all(|&block| block != 0));
        assert!(ours > 100 && ours < 1200, "{ours}");
        blocks.into_iter().for_each(|block| free(block as *mut u8));
    }));
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn memory_goes_back_after_a_peak() {
    succeeds(in_child("memory_goes_back_after_a_peak", &[], || {
        free(pool::malloc(100));
        // The list's own pages belong to the start: written, not only reserved.
        let mut blocks: Vec<usize> = vec![1; 2_000_000];
        blocks.clear();
        let start = resident();
        let mut bytes = 0;
        let mut n = 0usize;
        while bytes < 200 << 20 {
            let size = [16, 24, 48, 100, 200, 500, 1000, 4096][n % 8];
            let block = pool::malloc(size);
            // SAFETY: a live block of this size.
            unsafe { block.write_bytes(1, size) };
            blocks.push(block as usize);
            bytes += size;
            n += 1;
        }
        assert!(resident() > start + (190 << 20));
        for &block in &blocks {
            free(block as *mut u8);
        }
        let after = resident();
        assert!(after < start + (5 << 20), "{} KiB more than at the start", (after - start) >> 10);
        pool::trim();
        let trimmed = resident();
        assert!(trimmed < start + (1 << 20), "{} KiB more than at the start", (trimmed - start) >> 10);
        let stats = stats::read();
        assert_eq!(stats.from_os - stats.to_os, stats.used_bytes + stats.idle_bytes);
    }));
}

/// The same with sizes that come from regions of runs, freed in another order, some by another thread.
#[test]
fn memory_of_runs_goes_back_after_a_peak() {
    succeeds(in_child("memory_of_runs_goes_back_after_a_peak", &[], || {
        free(pool::malloc(10_000));
        let start = resident();
        let (mut blocks, mut bytes, mut n) = (Vec::new(), 0, 0usize);
        while bytes < 200 << 20 {
            let size = 3000 + n.wrapping_mul(7919) % 250_000;
            let block = pool::malloc(size);
            // SAFETY: a live block of this size.
            unsafe { block.write_bytes(1, size) };
            blocks.push(block as usize);
            bytes += size;
            n += 1;
        }
        let full = stats::read();
        assert!(full.live_bytes >= bytes as u64 && full.peak_bytes >= full.live_bytes, "{full:?}");
        assert!(resident() > start + (190 << 20));
        let sent: Vec<usize> = blocks.iter().copied().step_by(3).collect();
        thread::spawn(move || sent.into_iter().for_each(|block| free(block as *mut u8))).join().unwrap();
        blocks.iter().enumerate().filter(|(n, _)| n % 3 != 0).for_each(|(_, &block)| free(block as *mut u8));
        // The owner takes in what others have freed when it allocates next.
        free(pool::malloc(10_000));
        free(pool::malloc(3000));
        let after = resident();
        assert!(after < start + (5 << 20), "{} KiB more than at the start", (after - start) >> 10);
        pool::trim();
        let trimmed = resident();
        // What describes 200 MB of slices stays: 384 bytes of 64 KiB.
        assert!(trimmed < start + (2 << 20), "{} KiB more than at the start", (trimmed - start) >> 10);
        let stats = stats::read();
        assert_eq!(stats.live, 0, "{stats:?}");
        assert_eq!(stats.live_bytes, 0);
        assert_eq!(stats.from_os - stats.to_os, stats.used_bytes + stats.idle_bytes);
    }));
}

/// Nobody adopts the heap and nobody trims: those who free take its memory in.
#[test]
fn what_an_exited_thread_has_allocated_goes_back_when_it_is_freed() {
    let name = "what_an_exited_thread_has_allocated_goes_back_when_it_is_freed";
    succeeds(in_child(name, &[], || {
        free(pool::malloc(100));
        let start = stats::read().used_bytes;
        let blocks: Vec<usize> =
            thread::spawn(|| (0..40_000usize).map(|n| pool::malloc([24, 500, 3000, 20_000][n % 4]) as usize).collect())
                .join()
                .unwrap();
        assert!(stats::read().used_bytes > start + (50 << 20));
        blocks.into_iter().for_each(|block| free(block as *mut u8));
        let used = stats::read().used_bytes;
        // What waits in the outbox of this thread keeps its spans, and the orphan keeps one region.
        assert!(used < start + (6 << 20), "{} KiB more than at the start", (used - start) >> 10);
    }));
}

#[test]
fn a_setuid_program_is_not_steered_by_its_environment() {
    let name = "a_setuid_program_is_not_steered_by_its_environment";
    // SAFETY: no precondition.
    if std::env::var(CASE).is_err() && unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED: only root can run a program with other rights than its own");
        return;
    }
    fn raise(command: &mut Command) {
        // SAFETY: setresuid is async-signal-safe. Another real user than the effective one, as a setuid program has it.
        unsafe {
            command.pre_exec(|| match libc::setresuid(65534, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }
    succeeds(prepared(name, &[("PARTYLINE_POOL", "libc"), ("PARTYLINE_POOL_LIMIT", "1m")], raise, || {
        assert!(pool::offset_of(pool::malloc(100) as usize).is_some());
        assert!(!pool::malloc(16 << 20).is_null());
    }));
}

#[test]
fn ten_thousand_threads_share_few_heaps() {
    succeeds(in_child("ten_thousand_threads_share_few_heaps", &[], || {
        let (send, receive) = mpsc::channel::<Block>();
        for round in 0..2500 {
            let threads: Vec<_> = (0..4)
                .map(|n| {
                    let send = send.clone();
                    thread::spawn(move || {
                        let blocks: Vec<*mut u8> = (0..50).map(|k| pool::malloc(k * 8 + n)).collect();
                        for (k, block) in blocks.into_iter().enumerate() {
                            // Some outlive their thread.
                            if k % 10 == 0 { send.send(Block(block)).unwrap() } else { free(block) }
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            if round % 7 == 0 {
                receive.try_iter().for_each(|block| free(block.0));
            }
        }
        receive.try_iter().for_each(|block| free(block.0));
        pool::trim();
        let stats = stats::read();
        assert!(stats.heaps < 20, "{}", stats.heaps);
        assert_eq!(stats.live, 0, "{stats:?}");
        assert!(stats.used_bytes < 4 << 20, "{}", stats.used_bytes);
    }));
}

/// Runs in each round of thread-exit destructors, the pool's own included, and takes and gives memory each time.
unsafe extern "C" fn late(value: *mut c_void) {
    // SAFETY: the value is a block of the pool that only this thread has.
    unsafe {
        let old = value.cast::<u8>();
        assert_eq!(*old, 0x11);
        pool::free(old);
        let block = pool::malloc(300);
        block.write_bytes(0x11, 300);
        // Whoever came last leaks it.
        libc::pthread_setspecific(LATE_KEY.load(std::sync::atomic::Ordering::Relaxed), block.cast());
    }
}

static LATE_KEY: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

#[test]
fn memory_can_be_had_after_thread_exit_destructors() {
    succeeds(in_child("memory_can_be_had_after_thread_exit_destructors", &[], || {
        // The pool's key is made first, so that its destructor runs before this one in each round.
        free(pool::malloc(1));
        let mut key = 0;
        // SAFETY: makes a key.
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(late)) }, 0);
        LATE_KEY.store(key, std::sync::atomic::Ordering::Relaxed);
        let before = stats::read();
        for _ in 0..100 {
            thread::spawn(move || {
                let block = pool::malloc(300);
                // SAFETY: a live block of 300 bytes; the key exists.
                unsafe {
                    block.write_bytes(0x11, 300);
                    libc::pthread_setspecific(key, block.cast());
                }
            })
            .join()
            .unwrap();
        }
        let after = stats::read();
        assert!(after.allocated - before.allocated >= 400, "{}", after.allocated - before.allocated);
        assert_eq!(after.live - before.live, 100);
    }));
}

#[test]
fn fork_leaves_a_usable_pool() {
    succeeds(in_child("fork_leaves_a_usable_pool", &[], || {
        // Threads that allocate and free all the time, so that forks meet them in the middle of it.
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let threads: Vec<_> = (0..3)
            .map(|n| {
                let stop = stop.clone();
                thread::spawn(move || {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let blocks: Vec<_> = (0..200).map(|k| pool::malloc(k * 37 % 9000 + n)).collect();
                        blocks.into_iter().for_each(free);
                        free(pool::malloc(1 << 18));
                    }
                })
            })
            .collect();
        let mine: Vec<*mut u8> = (0..1000).map(|n| pool::malloc(n % 300)).collect();
        for _ in 0..50 {
            // SAFETY: the child calls the pool and _exit, nothing else.
            unsafe {
                let child = libc::fork();
                assert!(child >= 0);
                if child == 0 {
                    for &block in &mine {
                        pool::free(block);
                    }
                    for n in 0..3000usize {
                        let block = pool::malloc(n % 20_000);
                        if block.is_null() {
                            libc::_exit(1);
                        }
                        block.write_bytes(1, n % 20_000);
                        pool::free(block);
                    }
                    pool::trim();
                    libc::_exit(0);
                }
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        mine.into_iter().for_each(free);
    }));
}
