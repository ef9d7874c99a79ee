//! The log: what a line looks like, and that neither a full ring nor a target that blocks or fails holds anybody up.
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
#[cfg(unix)]
use std::io::{BufRead, BufReader};
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use partyline::observe::log::{self, Options, Receiver, Target};
use proptest::prelude::*;
use tracing::level_filters::LevelFilter;
use tracing::{debug, error, info, warn};

const LONG: Duration = Duration::from_secs(60);

/// Counts this thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// There is one log in a process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock()
}

type Lines = Arc<Mutex<Vec<String>>>;

fn started(level: LevelFilter, ring: usize) -> Lines {
    let lines = Lines::default();
    let to = Arc::clone(&lines);
    let target = Target::Callback(Box::new(move |_, line| to.lock().push(line.to_owned())));
    assert_eq!(log::start(Options { level, target, ring }).unwrap(), Receiver::Ours);
    lines
}

fn stopped(lines: &Lines) -> Vec<String> {
    assert_eq!(log::stop(LONG), 0);
    std::mem::take(&mut *lines.lock())
}

/// A line without its time, which has to be there.
#[track_caller]
fn timeless(line: &str) -> &str {
    let (time, rest) = line.split_once(' ').unwrap();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_eq!(shape, "9999-99-99T99:99:99.999Z", "{line}");
    rest
}

const CHILD: &str = "PARTYLINE_TEST_CHILD";

/// True in a process that [`child`] started: only there do the tests named `child_...` do anything.
fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one test of this file in a process of its own.
fn child(test: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).stdin(Stdio::null()).stdout(Stdio::null());
    command.env(CHILD, "1").env_remove("PARTYLINE_LOG").envs(environment.iter().copied());
    command
}

fn stderr_of(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_line_has_time_level_target_message_and_fields() {
    let _alone = alone();
    let lines = started(LevelFilter::INFO, 16);
    info!(port = 5060, user = "al", name = "a b", empty = "", "listening on {}", "udp");
    error!(target: "elsewhere", ok = false, code = ?Some(7), error = %"it broke");
    debug!("not wanted");
    let lines = stopped(&lines);
    let lines: Vec<&str> = lines.iter().map(|l| timeless(l)).collect();
    assert_eq!(
        lines,
        [
            "INFO  observe_log: listening on udp port=5060 user=al name=\"a b\" empty=\"\"",
            "ERROR elsewhere: ok=false code=Some(7) error=it broke",
        ]
    );
}

#[test]
fn what_comes_from_outside_cannot_forge_a_line_or_reach_the_terminal() {
    let _alone = alone();
    let lines = started(LevelFilter::INFO, 16);
    let evil = "a\r\n2026-01-01 ERROR x: \u{1b}[31m\0\u{9b}\u{2028}é";
    info!(%evil, plain = evil, "{evil}");
    let lines = stopped(&lines);
    assert_eq!(lines.len(), 1);
    assert!(!lines[0].contains(|c: char| c.is_control() || c == '\u{2028}'), "{:?}", lines[0]);
    assert!(lines[0].contains("a\\r\\n2026-01-01 ERROR x: \\u{1b}[31m\\u{0}\\u{9b}\\u{2028}é"), "{}", lines[0]);
}

#[test]
fn events_of_many_threads_all_come_and_each_threads_in_order() {
    let _alone = alone();
    let lines = started(LevelFilter::INFO, 4096);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || (0..1000).for_each(|n| info!(thread, n)));
        }
    });
    let lines = stopped(&lines);
    assert_eq!(lines.len(), 4000);
    for thread in 0..4 {
        let mark = format!("thread={thread} n=");
        let own: Vec<u32> = lines.iter().filter_map(|l| l.split_once(&mark)).map(|(_, n)| n.parse().unwrap()).collect();
        assert_eq!(own, (0..1000).collect::<Vec<_>>());
    }
}

#[test]
fn logging_and_losing_allocate_nothing() {
    let _alone = alone();
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let gate = Arc::clone(&open);
    let target = Target::Callback(Box::new(move |_, _| {
        let mut open = gate.0.lock();
        while !*open {
            gate.1.wait(&mut open);
        }
    }));
    let options = Options { level: LevelFilter::INFO, target, ring: 64 };
    assert_eq!(log::start(options).unwrap(), Receiver::Ours);
    info!("the first event sets things up");
    let before = (log::stats().lost, ALLOCATIONS.get());
    for n in 0..1000 {
        info!(n, user = "somebody", "registered {}", "now");
    }
    assert_eq!(ALLOCATIONS.get() - before.1, 0);
    assert!(log::stats().lost - before.0 >= 1000 - 64);
    *open.0.lock() = true;
    open.1.notify_all();
    assert_eq!(log::stop(LONG), 0);
}

/// Takes nothing until it is opened, and then everything.
#[derive(Clone, Default)]
struct Stuck(Arc<(Mutex<OpenAndTaken>, Condvar)>);

type OpenAndTaken = (bool, Vec<u8>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut inner = self.0.0.lock();
        while !inner.0 {
            self.0.1.wait(&mut inner);
        }
        inner.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_target_that_blocks_loses_lines_says_how_many_and_holds_up_nobody() {
    let _alone = alone();
    let stuck = Stuck::default();
    let target = Target::Write(Box::new(stuck.clone()));
    assert_eq!(log::start(Options { level: LevelFilter::INFO, target, ring: 128 }).unwrap(), Receiver::Ours);
    let before = log::stats();
    for n in 0..10_000 {
        info!(n);
    }
    let lost = log::stats().lost - before.lost;
    assert!(lost > 9000, "{lost}");
    stuck.0.0.lock().0 = true;
    stuck.0.1.notify_all();
    assert_eq!(log::stop(LONG), 0);
    let text = String::from_utf8(std::mem::take(&mut stuck.0.0.lock().1)).unwrap();
    let (told, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.ends_with(" lines lost"));
    let told: u64 = told.iter().map(|l| l.rsplit(' ').nth(2).unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!((told, lines.len() as u64), (lost, 10_000 - lost));
    assert_eq!(log::stats().written - before.written, lines.len() as u64);
}

#[test]
fn a_stop_does_not_wait_for_a_target_that_hangs() {
    let _alone = alone();
    let stuck = Stuck::default();
    let target = Target::Write(Box::new(stuck.clone()));
    log::start(Options { level: LevelFilter::INFO, target, ring: 16 }).unwrap();
    for n in 0..5 {
        info!(n);
    }
    assert_eq!(log::stop(Duration::from_millis(20)), 5);
    // A new one does not mind the old one.
    let lines = started(LevelFilter::INFO, 16);
    info!("again");
    assert_eq!(stopped(&lines).len(), 1);
    // The old thread's five lines count when it writes them: not in the midst of the next test.
    let before = log::stats().written;
    stuck.0.0.lock().0 = true;
    stuck.0.1.notify_all();
    let until = std::time::Instant::now() + LONG;
    while log::stats().written < before + 5 && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(log::stats().written, before + 5);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_counted_and_stops_nothing() {
    let _alone = alone();
    let before = log::stats();
    log::start(Options { level: LevelFilter::INFO, target: Target::File("/dev/full".into()), ring: 256 }).unwrap();
    for n in 0..200 {
        info!(n);
    }
    assert_eq!(log::stop(LONG), 0);
    let after = log::stats();
    assert_eq!((after.written, after.lost - before.lost), (before.written, 200));
    assert!(after.failures > before.failures);
}

/// Takes the first part of a line, fails a few times, and takes everything from then on.
struct Tearing(usize, Arc<Mutex<Vec<u8>>>);

impl Write for Tearing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += 1;
        let n = match self.0 {
            1 => 10,
            2..=4 => return Err(std::io::Error::other("no space")),
            _ => bytes.len(),
        };
        self.1.lock().extend_from_slice(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_a_torn_line_the_next_begins_on_its_own() {
    let _alone = alone();
    let text = Arc::new(Mutex::new(Vec::new()));
    let target = Target::Write(Box::new(Tearing(0, Arc::clone(&text))));
    let before = log::stats();
    log::start(Options { level: LevelFilter::INFO, target, ring: 16 }).unwrap();
    info!("the first is torn");
    let end = std::time::Instant::now() + LONG;
    while log::stats().failures < before.failures + 2 {
        assert!(std::time::Instant::now() < end, "never failed");
        std::thread::yield_now();
    }
    info!("the second comes after");
    assert_eq!(log::stop(LONG), 0);
    let text = String::from_utf8(std::mem::take(&mut *text.lock())).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].len(), 10);
    for line in &lines[1..] {
        timeless(line);
    }
    assert!(text.contains(" lines lost\n"), "{text}");
}

#[test]
fn a_panic_in_a_value_or_a_callback_costs_one_line() {
    struct Fails;
    impl std::fmt::Debug for Fails {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("a value that fails");
        }
    }
    let _alone = alone();
    let lines = started(LevelFilter::INFO, 1);
    let died = std::panic::catch_unwind(|| info!(value = ?Fails));
    assert!(died.is_err());
    info!("the only line of the ring is back");
    assert_eq!(stopped(&lines).iter().filter(|l| l.contains("is back")).count(), 1);

    let target = Target::Callback(Box::new(|_, _| panic!("a callback that fails")));
    let before = log::stats().failures;
    log::start(Options { level: LevelFilter::INFO, target, ring: 4 }).unwrap();
    info!("one");
    info!("two");
    assert_eq!(log::stop(LONG), 0);
    assert_eq!(log::stats().failures - before, 2);
}

#[test]
fn a_callback_that_logs_does_not_feed_itself() {
    let _alone = alone();
    let calls = Arc::new(Mutex::new(0));
    let count = Arc::clone(&calls);
    let target = Target::Callback(Box::new(move |_, _| {
        *count.lock() += 1;
        info!("about a line");
    }));
    log::start(Options { level: LevelFilter::INFO, target, ring: 4 }).unwrap();
    info!("one");
    assert_eq!(log::stop(LONG), 0);
    assert_eq!(*calls.lock(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_text_makes_one_line_of_bounded_length(text in any::<String>(), times in 1usize..200) {
        let _alone = alone();
        let long = text.repeat(times);
        let lines = started(LevelFilter::INFO, 4);
        info!(%long, "{text}");
        let lines = stopped(&lines);
        prop_assert_eq!(lines.len(), 1);
        prop_assert!(lines[0].len() < 1000, "{}", lines[0].len());
        prop_assert!(!lines[0].contains(char::is_control));
        timeless(&lines[0]);
    }
}

#[test]
fn a_file_is_appended_to() {
    let _alone = alone();
    let path = std::env::temp_dir().join(format!("partyline-log-{}", std::process::id()));
    for n in 0..2 {
        log::start(Options { level: LevelFilter::INFO, target: Target::File(path.clone()), ring: 4 }).unwrap();
        info!(n, "round");
        assert_eq!(log::stop(LONG), 0);
    }
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<&str> = text.lines().map(timeless).collect();
    assert_eq!(lines, ["INFO  observe_log: round n=0", "INFO  observe_log: round n=1"]);
    let nowhere = Target::File("/nonexistent/directory/log".into());
    assert!(log::start(Options { target: nowhere, ..Options::default() }).is_err());
    assert_eq!(log::stop(LONG), 0, "nothing was started");
}

#[test]
fn a_stderr_that_nobody_reads_stops_nothing() {
    let mut child = child("child_floods_stderr", &[]).stderr(Stdio::piped()).spawn().unwrap();
    let status = child.wait().unwrap();
    assert!(status.success());
    // What fitted into the pipe is whole lines.
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.len() > 4000);
    text.lines().filter(|l| l.contains("INFO")).take(20).for_each(|l| assert!(timeless(l).starts_with("INFO")));
}

#[test]
fn child_floods_stderr() {
    if !is_child() {
        return;
    }
    // Less than the ring's lines take: on a busy machine the ring overflows before the thread has written 64 KiB, and stop
    // would then find room for the rest.
    #[cfg(target_os = "linux")]
    // SAFETY: no memory is passed; the parent has made descriptor 2 a pipe.
    let size = unsafe { libc::fcntl(2, libc::F_SETPIPE_SZ, 8192) };
    #[cfg(target_os = "linux")]
    assert_eq!(size, 8192, "{}", std::io::Error::last_os_error());
    log::start(Options { ring: 256, ..Options::default() }).unwrap();
    for n in 0..100_000 {
        info!(n, "nobody reads this");
    }
    assert!(log::stats().lost > 0);
    assert!(log::stop(Duration::from_millis(50)) > 0);
}

#[test]
fn before_the_start_warnings_go_to_stderr_once_and_nothing_else_does() {
    let lines = stderr_of(&child("child_warns_early", &[]).output().unwrap());
    let lines: Vec<&str> = lines.iter().map(|l| timeless(l)).collect();
    assert_eq!(lines, ["WARN  observe_log: again and again n=0", "ERROR observe_log: another place"]);
}

#[test]
fn child_warns_early() {
    if !is_child() {
        return;
    }
    warn!("nobody listens yet");
    assert_eq!(log::install(LevelFilter::INFO), Receiver::Ours);
    for n in 0..3 {
        warn!(n, "again and again");
    }
    info!("of no concern");
    error!("another place");
}

#[test]
fn the_environment_sets_the_level_and_a_wrong_one_is_told() {
    let levels = |level| {
        let lines = stderr_of(&child("child_logs_at_all_levels", &[("PARTYLINE_LOG", level)]).output().unwrap());
        lines.iter().map(|l| timeless(l).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(levels("off"), [""; 0]);
    assert_eq!(levels("ERROR"), ["ERROR observe_log: e"]);
    assert_eq!(levels("debug"), ["ERROR observe_log: e", "WARN  observe_log: w", "DEBUG observe_log: d"]);
    let wrong = levels("loud");
    assert_eq!(wrong.len(), 3);
    assert!(wrong[0].contains("unknown log level") && wrong[0].ends_with("PARTYLINE_LOG=loud"), "{}", wrong[0]);
}

#[test]
fn child_logs_at_all_levels() {
    if !is_child() {
        return;
    }
    log::start(Options::default()).unwrap();
    error!("e");
    warn!("w");
    debug!("d");
    assert_eq!(log::stop(LONG), 0);
}

#[test]
fn the_programs_own_receiver_stays() {
    let lines = stderr_of(&child("child_has_a_receiver", &[]).output().unwrap());
    assert_eq!(lines, ["theirs"]);
}

#[test]
fn child_has_a_receiver() {
    if !is_child() {
        return;
    }
    struct Theirs;
    impl tracing::Subscriber for Theirs {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            eprintln!("theirs");
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    tracing::subscriber::set_global_default(Theirs).unwrap();
    assert_eq!(log::start(Options::default()).unwrap(), Receiver::Programs);
    error!("to whom?");
    assert_eq!(log::stop(LONG), 0);
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_does_not_end_the_process() {
    let mut child = child("child_loses_its_reader", &[]).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut reader = BufReader::new(child.stderr.take().unwrap());
    reader.read_line(&mut first).unwrap();
    assert!(first.contains("INFO"), "{first}");
    drop(reader);
    assert!(child.wait().unwrap().success(), "SIGPIPE");
}

#[cfg(unix)]
#[test]
fn child_loses_its_reader() {
    if !is_child() {
        return;
    }
    // As in a C program; Rust's own runtime ignores the signal.
    // SAFETY: sets a disposition, nothing else.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    {
        let _blocked = partyline::ffi::thread::block_signals();
        log::start(Options { ring: 16, ..Options::default() }).unwrap();
    }
    let end = std::time::Instant::now() + LONG;
    while log::stats().failures == 0 {
        assert!(std::time::Instant::now() < end, "the reader never went away");
        info!("anybody there?");
        std::thread::yield_now();
    }
    log::stop(LONG);
}
