//! kill -9 of the server, of its MariaDB, and of both, at random moments under load: every 200 that a client saw in the mode
//! write_through is in the database in the end. Three rounds, or as many as PARTYLINE_CRASH_ROUNDS says (`make test-crash`:
//! 50). A kill does not lose the page cache, so a trace shows besides that the fdatasync of a batch, in the database and in
//! the spool, comes back before the first 200 of that batch leaves.
//!
//! The server is an engine in a process of its own: this binary, started again with the name of one test.

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "common/mariadb.rs"]
mod mariadb;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mariadb::Mariadb;
use mysql::prelude::Queryable;
use partyline::engine::{Engine, RegistrarOptions, open_registrar, set_registrar_option};

const LIMIT: Duration = Duration::from_secs(60);
const TASK: &str = "PARTYLINE_CRASH_SERVER";

/// Not a test of its own: what the others start.
#[test]
fn server_process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let [url, spool] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let mut options = RegistrarOptions::default();
    for (name, value) in [("mode", "write_through"), ("spool", spool), ("spool_after", "100ms"), ("expires.min", "0")] {
        set_registrar_option(&mut options, name, value).unwrap();
    }
    // The database may still be starting.
    let deadline = Instant::now() + LIMIT;
    let registrar = loop {
        match open_registrar(options.clone(), url) {
            Ok(registrar) => break registrar,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let engine = Engine::new();
    engine.set("log", "off").unwrap();
    let port = engine.listen("udp:127.0.0.1:0").unwrap().port();
    engine.attach(registrar).unwrap();
    engine.start().unwrap();
    println!("\nready {port}");
    // Until the one who started it is gone.
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}

struct Server {
    child: Child,
    socket: UdpSocket,
}

impl Server {
    fn start(url: &str, spool: &Path) -> Server {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_process", "--nocapture"])
            .env(TASK, format!("{url} {}", spool.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| line.ok()?.strip_prefix("ready ")?.parse::<u16>().ok()).expect("a server");
        std::thread::spawn(move || lines.for_each(drop));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        Server { child, socket }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// xorshift; the seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A phone: one address-of-record, one request at a time.
#[derive(Default)]
struct Phone {
    /// Of the request that was sent last.
    cseq: u32,
    /// Of the last 200.
    acknowledged: u32,
    sent: Option<Instant>,
}

/// Every seventh request of a phone unregisters.
fn removes(cseq: u32) -> bool {
    cseq % 7 == 0
}

fn message(user: &str, cseq: u32) -> Vec<u8> {
    let expires = if removes(cseq) { 0 } else { 3600 };
    format!(
        "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5999;branch=z9hG4bK{user}x{cseq};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:{user}@example.org>;tag={user}\r\nTo: <sip:{user}@example.org>\r\n\
         Call-ID: {user}\r\nCSeq: {cseq} REGISTER\r\nContact: <sip:{user}@127.0.0.1:5999>\r\nExpires: {expires}\r\n\
         Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// Status, user and CSeq of an answer.
fn answer(bytes: &[u8]) -> Option<(u16, String, u32)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, value("Call-ID:")?.to_owned(), value("CSeq:")?.split(' ').next()?.parse().ok()?))
}

struct Load {
    phones: HashMap<String, Phone>,
    /// Phones that register for the first time, in each round.
    fresh: u32,
    acknowledged: u64,
}

const STEADY: u32 = 40;

impl Load {
    /// Requests and answers, for so long.
    fn run(&mut self, server: &Server, round: u32, time: Duration) {
        let end = Instant::now() + time;
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            for n in 0..STEADY {
                self.drive(server, &format!("s{n}"));
            }
            // Those that come new: a few at a time, each until its first 200.
            for n in self.fresh..self.fresh + 40 {
                let user = format!("f{round}x{n}");
                if self.phones.get(&user).is_none_or(|phone| phone.acknowledged == 0) {
                    self.drive(server, &user);
                }
            }
            while let Ok(length) = server.socket.recv(&mut buffer) {
                let Some((status, user, cseq)) = answer(&buffer[..length]) else { continue };
                let Some(phone) = self.phones.get_mut(&user).filter(|phone| phone.cseq == cseq) else { continue };
                // Anything but 200 says that it is not known to be durable: the next request will tell.
                phone.sent = None;
                if status == 200 {
                    phone.acknowledged = cseq;
                    self.acknowledged += 1;
                }
            }
            while self.phones.get(&format!("f{round}x{}", self.fresh)).is_some_and(|p| p.acknowledged > 0) {
                self.fresh += 1;
            }
        }
    }

    fn drive(&mut self, server: &Server, user: &str) {
        let phone = self.phones.entry(user.to_owned()).or_default();
        match phone.sent {
            Some(at) if at.elapsed() < Duration::from_millis(500) => return,
            Some(_) => {}
            None => phone.cseq += 1,
        }
        phone.sent = Some(Instant::now());
        // A server that has just been killed refuses the datagram.
        let _ = server.socket.send(&message(user, phone.cseq));
    }

    /// Phones whose row is of no state from the last acknowledged one on.
    fn lost(&self, database: &mut mysql::Conn) -> Vec<String> {
        let rows: Vec<(String, u32)> =
            database.query("SELECT CAST(username AS CHAR), cseq FROM location").expect("rows");
        let rows: HashMap<String, u32> = rows.into_iter().collect();
        let wrong = |user: &str, phone: &Phone| match rows.get(user) {
            Some(cseq) => *cseq < phone.acknowledged || *cseq > phone.cseq || removes(*cseq),
            None => phone.acknowledged > 0 && !(phone.acknowledged..=phone.cseq).any(removes),
        };
        let mut lost: Vec<String> = self.phones.iter().filter(|(u, p)| wrong(u, p)).map(|(u, _)| u.clone()).collect();
        lost.sort();
        lost
    }
}

fn spool_file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.db", std::process::id()));
    remove_spool(&path);
    path
}

fn remove_spool(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

#[test]
fn nothing_that_was_acknowledged_is_lost() {
    let rounds: u32 = std::env::var("PARTYLINE_CRASH_ROUNDS").map_or(3, |text| text.parse().expect("a number"));
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    let mut random = Random(seed);
    let database = Mariadb::start("crash");
    let url = database.url("partyline");
    let spool = spool_file("crash-spool");
    let mut server = Server::start(&url, &spool);
    let mut load = Load { phones: HashMap::new(), fresh: 0, acknowledged: 0 };
    let mut kills = [0; 2];
    for round in 0..rounds {
        load.fresh = 0;
        let some = |random: &mut Random| Duration::from_millis(20 + random.below(300));
        load.run(&server, round, some(&mut random));
        // The server, the database, or both; then in which order, and with load in between.
        let (kill_server, kill_database) = [(true, false), (false, true), (true, true)][round as usize % 3];
        let database_first = random.below(2) == 0;
        if kill_database && (database_first || !kill_server) {
            database.kill();
            load.run(&server, round, some(&mut random));
            kills[1] += 1;
        }
        if kill_server {
            server.kill();
            kills[0] += 1;
        }
        if kill_database && kill_server && !database_first {
            database.kill();
            kills[1] += 1;
        }
        if kill_database {
            database.restart();
        }
        if kill_server {
            server = Server::start(&url, &spool);
        }
        load.run(&server, round, some(&mut random));
        // What is still on its way gets there: the spool is replayed, held changes are committed.
        let deadline = Instant::now() + LIMIT;
        let mut conn = database.connect("partyline");
        loop {
            let lost = load.lost(&mut conn);
            if lost.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                println!("lost = {}", lost.len());
                panic!(
                    "round {round} (seed {seed}): {} phones are not as acknowledged, first {:?}",
                    lost.len(),
                    &lost[..1]
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    server.kill();
    let left = {
        let db = rusqlite::Connection::open(&spool).unwrap();
        db.query_row("SELECT count(*) FROM spool", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    remove_spool(&spool);
    assert!(load.acknowledged > u64::from(rounds) * 100, "only {} requests were answered", load.acknowledged);
    println!(
        "crash: {rounds} rounds, {} kills of the server, {} of the database, {} acknowledged, {left} still spooled, seed {seed}",
        kills[0], kills[1], load.acknowledged
    );
    println!("lost = 0");
}

/// strace of the server and of MariaDB in one file, in order of time.
struct Trace {
    strace: Child,
    file: PathBuf,
}

impl Trace {
    fn start(pids: &[u32], name: &str) -> Option<Trace> {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.strace", std::process::id()));
        let _ = std::fs::remove_file(&file);
        let mut command = Command::new("strace");
        command.args(["-f", "-s", "16", "-e", "trace=fdatasync,fsync,sendto,sendmsg,sendmmsg", "-o"]).arg(&file);
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut strace = match spawned {
            Ok(strace) => strace,
            Err(error) => {
                eprintln!("SKIPPED: strace: {error} (scripts/deps.sh test)");
                return None;
            }
        };
        let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
        // "Process N attached with M threads" for each; a container may forbid it.
        for _ in pids {
            let line = said.next().and_then(Result::ok).unwrap_or_default();
            if !line.contains("attached") {
                eprintln!("SKIPPED: strace: {line}");
                let _ = strace.kill();
                let _ = strace.wait();
                return None;
            }
        }
        std::thread::spawn(move || said.for_each(drop));
        Some(Trace { strace, file })
    }

    /// (thread, what) in order: a sync that has come back, or a 200 that begins to leave.
    fn stop(mut self) -> Vec<(u32, Event)> {
        // SAFETY: a system call on a process that this one started.
        assert_eq!(unsafe { libc::kill(self.strace.id() as i32, libc::SIGINT) }, 0);
        self.strace.wait().unwrap();
        let text = std::fs::read_to_string(&self.file).unwrap();
        let _ = std::fs::remove_file(&self.file);
        let mut events: Vec<(u32, Event)> = Vec::new();
        // Calls that another thread's line interrupts: where each began. A send counts from there, a sync when it is back.
        let mut begun: HashMap<u32, usize> = HashMap::new();
        for line in text.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let (thread, rest) = (thread.parse().unwrap(), rest.trim_start());
            let resumed = rest.starts_with("<... ");
            if rest.ends_with("<unfinished ...>") && !rest.contains("SIP/2.0 200 OK") {
                begun.insert(thread, events.len());
            } else if rest.contains("SIP/2.0 200 OK") {
                let at = if resumed { begun[&thread] } else { events.len() };
                events.insert(at, (thread, Event::Answer));
            } else if rest.contains("sync") && rest.ends_with("= 0") {
                events.push((thread, Event::Synced));
            }
        }
        events
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Synced,
    Answer,
}

/// How many answers left, each after a sync of its own; or the first that did not.
fn in_order(events: &[(u32, Event)], on_disk: impl Fn(u32) -> bool) -> Result<usize, usize> {
    let (mut answers, mut synced) = (0, false);
    for (thread, event) in events {
        match event {
            Event::Synced => synced |= on_disk(*thread),
            Event::Answer if !synced => return Err(answers),
            Event::Answer => (answers, synced) = (answers + 1, false),
        }
    }
    Ok(answers)
}

fn threads_of(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| task.unwrap().file_name().to_string_lossy().parse().unwrap()).collect()
}

/// Registers one phone after the other; each request waits for the answer to the one before.
fn one_by_one(server: &Server, users: std::ops::Range<u32>) {
    for n in users {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 4096];
        let user = format!("t{n}");
        server.socket.send(&message(&user, 1)).unwrap();
        loop {
            match server.socket.recv(&mut buffer).ok().and_then(|length| answer(&buffer[..length])) {
                Some((200, who, 1)) if who == user => break,
                _ => assert!(Instant::now() < deadline, "no answer to {user}"),
            }
        }
    }
}

#[test]
fn the_disk_has_a_batch_before_its_first_answer_leaves() {
    let database = Mariadb::start("trace");
    let spool = spool_file("trace-spool");
    let server = Server::start(&database.url("partyline"), &spool);
    one_by_one(&server, 0..1);
    let ours = server.child.id();
    const N: usize = 25;
    // Into the database, then, when that is gone, into the spool. Whoever has the disk's word has it on its own threads.
    for (what, first) in [("database", 100), ("spool", 200)] {
        let pids = if what == "database" { vec![ours, database.pid() as u32] } else { vec![ours] };
        if what == "spool" {
            database.kill();
            // From here on everything is spooled.
            one_by_one(&server, first - 50..first - 40);
        }
        let Some(trace) = Trace::start(&pids, what) else { return };
        // One more: strace may let go before it has written the last call's end.
        one_by_one(&server, first..first + N as u32 + 1);
        let mine = threads_of(ours);
        let events = trace.stop();
        let on_disk = |thread: u32| mine.contains(&thread) == (what == "spool");
        let answers = match in_order(&events, on_disk) {
            Ok(answers) => answers,
            Err(answer) => panic!("{what}: answer {answer} left before its batch was on the disk"),
        };
        // The same trace with one sync gone, or with one after its answer, must not pass.
        let at = events.iter().rposition(|event| event.1 == Event::Answer).unwrap();
        let last = events[..at].iter().rposition(|event| event.1 == Event::Answer).unwrap();
        let spoilt: Vec<_> = [&events[..=last], &events[at..]].concat();
        assert_eq!(in_order(&spoilt, on_disk), Err(answers - 1));
        let mut late = events[..=at].to_vec();
        late[last + 1..].rotate_right(1);
        assert_eq!(in_order(&late, on_disk), Err(answers - 1));
        assert!((N..=N + 1).contains(&answers), "{what}: the trace shows {answers} answers of {N}");
        println!("trace: {what}: {answers} answers, each after a sync of its batch");
    }
    drop(server);
    remove_spool(&spool);
}
