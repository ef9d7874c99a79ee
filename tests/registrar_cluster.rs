//! Two servers on a Galera cluster of three nodes, one of which is killed under load: registrations go on, nothing that was
//! acknowledged is lost, and both servers agree with the table. `make test-cluster`.

mod registrar_support;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mysql::prelude::Queryable;
use partyline::registrar::{Mode, Options, Outcome};
use registrar_support::{Answer, Bench, contact, eventually, now, options, request};

const FIRST: u16 = 24_620;

struct Node {
    process: Child,
    port: u16,
}

/// The folder of all nodes, under /tmp: mariadbd runs as nobody, who must be able to get there.
struct Cluster {
    dir: PathBuf,
    nodes: Vec<Node>,
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("a command");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    fn start() -> Cluster {
        let dir = PathBuf::from(format!("/tmp/partyline-cluster-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let mut cluster = Cluster { dir, nodes: Vec::new() };
        for n in 0..3 {
            let node = cluster.start_node(n);
            cluster.nodes.push(node);
            eventually("a node is ready", || {
                let ended = cluster.nodes[n as usize].process.try_wait().expect("a child");
                assert!(ended.is_none(), "node {n} has ended: {ended:?}\n{}", cluster.log(n));
                let Ok(mut conn) = cluster.root(n) else { return false };
                let ready: Option<(String, String)> =
                    conn.query_first("SHOW GLOBAL STATUS LIKE 'wsrep_ready'").unwrap_or_default();
                ready.is_some_and(|(_, value)| value == "ON")
            });
        }
        cluster
    }

    /// root may come by the socket alone.
    fn root(&self, n: u16) -> mysql::Result<mysql::Conn> {
        let socket = self.dir.join(format!("n{n}")).join("sock").display().to_string();
        mysql::Conn::new(mysql::OptsBuilder::new().user(Some("root")).socket(Some(socket)))
    }

    fn log(&self, n: u16) -> String {
        let text = std::fs::read_to_string(self.dir.join(format!("n{n}")).join("error.log")).unwrap_or_default();
        let telling = |line: &&str| line.contains("ERROR") || line.contains("SST") || line.contains("Warning");
        let lines: Vec<&str> = text.lines().rev().filter(telling).take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn start_node(&self, n: u16) -> Node {
        let dir = self.dir.join(format!("n{n}"));
        let (data, tmp) = (dir.join("data"), dir.join("tmp"));
        for folder in [&data, &tmp] {
            std::fs::create_dir_all(folder).expect("folder");
        }
        if n == 0 {
            let mut install = Command::new("mariadb-install-db");
            install.args([
                "--no-defaults",
                "--force",
                "--user=root",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ]);
            run(install.arg(format!("--datadir={}", data.display())));
        }
        // As root, the rsync of a state transfer would change to nobody and not be let in: everything is nobody's then.
        // SAFETY: a system call without arguments.
        let root = unsafe { libc::geteuid() } == 0;
        if root {
            run(Command::new("chown").args(["-R", "nobody:nogroup"]).arg(&dir));
        }
        let (port, group) = (FIRST + 10 * n, |n: u16| FIRST + 10 * n + 1);
        let at = |path: &Path, name: &str| path.join(name).display().to_string();
        let mut command = Command::new("/usr/sbin/mariadbd");
        if root {
            command.uid(65_534).gid(65_534);
        }
        command.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve"]).args([
            "--binlog-format=ROW",
            "--default-storage-engine=InnoDB",
            "--innodb-autoinc-lock-mode=2",
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=32M",
            "--performance-schema=OFF",
            "--wsrep-on=ON",
            "--wsrep-provider=/usr/lib/galera/libgalera_smm.so",
            "--wsrep-cluster-name=partyline",
            "--wsrep-sst-method=rsync",
        ]);
        command.arg(format!("--datadir={}", data.display())).arg(format!("--tmpdir={}", tmp.display()));
        command.arg(format!("--socket={}", at(&dir, "sock"))).arg(format!("--port={port}"));
        command.arg(format!("--pid-file={}", at(&dir, "pid"))).arg(format!("--log-error={}", at(&dir, "error.log")));
        let members: Vec<String> = (0..3).map(|n| format!("127.0.0.1:{}", group(n))).collect();
        command.arg(format!("--wsrep-cluster-address=gcomm://{}", members.join(",")));
        command.arg(format!("--wsrep-node-name=n{n}")).arg(format!("--wsrep-node-address=127.0.0.1:{}", group(n)));
        command.arg(format!("--wsrep-node-incoming-address=127.0.0.1:{port}"));
        command.arg(format!("--wsrep-sst-receive-address=127.0.0.1:{}", group(n) + 4));
        command.arg(format!(
            "--wsrep-provider-options=base_host=127.0.0.1;base_port={0};gmcast.listen_addr=tcp://127.0.0.1:{0};\
             ist.recv_addr=127.0.0.1:{1};gcache.size=32M;evs.keepalive_period=PT0.5S;evs.suspect_timeout=PT2S;\
             evs.inactive_timeout=PT4S;evs.inactive_check_period=PT0.5S",
            group(n),
            group(n) + 1
        ));
        if n == 0 {
            command.arg("--wsrep-new-cluster");
        }
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Node { process: process.expect("mariadbd"), port }
    }

    /// With the nodes in an order that begins with one of them.
    fn url(&self, first: usize) -> String {
        let hosts: Vec<String> =
            (0..3).map(|turn| format!("127.0.0.1:{}", self.nodes[(first + turn) % 3].port)).collect();
        format!("mysql://app:secret@{}/partyline", hosts.join(","))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn connect(port: u16) -> mysql::Result<mysql::Conn> {
    mysql::Conn::new(mysql::Opts::from_url(&format!("mysql://app:secret@127.0.0.1:{port}/partyline"))?)
}

fn open(url: &str, server_id: u32) -> Bench {
    let mut options = options(Mode::WriteThrough, url);
    options.store.shared = true;
    options.store.server_id = server_id;
    options.store.connect_timeout = Duration::from_secs(2);
    let bench = Bench::open(Options { commit_timeout: Duration::from_secs(40), ..options });
    eventually("preload", || bench.registrar.complete());
    bench
}

#[test]
#[ignore = "needs galera-4 and a minute: make test-cluster"]
fn one_node_of_three_is_killed() {
    let mut cluster = Cluster::start();
    let mut root = cluster.root(0).expect("root");
    for sql in [
        "CREATE DATABASE partyline",
        "CREATE USER app@'127.0.0.1' IDENTIFIED BY 'secret'",
        "GRANT ALL ON *.* TO app@'127.0.0.1'",
    ] {
        root.query_drop(sql).expect(sql);
    }
    drop(root);
    // Each server writes to a node of its own, so that what meets, meets at COMMIT (error 1213).
    let a = open(&cluster.url(0), 1);
    let b = open(&cluster.url(1), 2);
    let stop = AtomicBool::new(false);
    let sent = [AtomicU64::new(0), AtomicU64::new(0)];
    const COMMON: u64 = 20;
    std::thread::scope(|scope| {
        for (which, bench) in [&a, &b].into_iter().enumerate() {
            let (stop, sent) = (&stop, &sent[which]);
            scope.spawn(move || {
                let uri = [contact("sip:a@h")];
                let call_id = format!("client {which}");
                let mut n = 0u64;
                while !stop.load(Ordering::Acquire) {
                    while n >= bench.notes.committed.lock().len() as u64 + 200 && !stop.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    // Every fourth is for an address-of-record that the other server writes too.
                    let aor =
                        if n % 4 == 0 { format!("common{}@h", n / 4 % COMMON) } else { format!("s{which}x{n}@h") };
                    let mut answer = Answer::default();
                    match bench.registrar.register(&request(&aor, &call_id, n as u32 + 1, &uri), now(), &mut answer) {
                        Outcome::Durable(ticket) => {
                            if bench.registrar.submit(ticket, n).is_some() {
                                bench.notes.committed.lock().insert(n, Ok(()));
                            }
                        }
                        // max_contacts and CSeq cannot be in the way: one contact, counted up.
                        other => panic!("{other:?} {answer:?}"),
                    }
                    bench.registrar.kick();
                    n += 1;
                    sent.store(n, Ordering::Release);
                }
            });
        }
        for bench in [&a, &b] {
            bench.notes.wait("some load", |committed| committed.len() > 1000);
        }
        cluster.nodes[0].process.kill().expect("kill");
        cluster.nodes[0].process.wait().expect("gone");
        for bench in [&a, &b] {
            let enough = bench.notes.committed.lock().len() + 1000;
            bench.notes.wait("registrations go on", |committed| committed.len() > enough);
        }
        stop.store(true, Ordering::Release);
    });
    let mut conn = connect(cluster.nodes[2].port).expect("a node that lives");
    conn.query_drop("SET SESSION wsrep_sync_wait = 1").expect("sync");
    let mut lost = 0;
    for (which, bench) in [&a, &b].into_iter().enumerate() {
        let sent = sent[which].load(Ordering::Acquire);
        bench.notes.wait("all answered", |committed| committed.len() as u64 == sent);
        let rows: Vec<String> = conn
            .query(format!("SELECT CAST(username AS CHAR) FROM location WHERE username LIKE 's{which}x%'"))
            .expect("rows");
        let rows: std::collections::HashSet<String> = rows.into_iter().collect();
        let committed = bench.notes.committed.lock();
        let own = committed.iter().filter(|(n, result)| *n % 4 != 0 && result.is_ok());
        lost += own.filter(|(n, _)| !rows.contains(&format!("s{which}x{n}"))).count();
        let counters = bench.registrar.counters();
        println!(
            "cluster: server {}: {} acknowledged, {} retries, {} outages",
            which + 1,
            committed.len(),
            counters.retries.get(),
            counters.outages.get()
        );
    }
    assert!(a.registrar.counters().outages.get() > 0, "the first server's node was not the one that was killed");
    println!("lost = {lost}");
    assert_eq!(lost, 0);
    for n in 0..COMMON {
        eventually("both servers say what the table says", || {
            let stored: Option<(String, u32)> = conn
                .query_first(format!("SELECT CAST(callid AS CHAR), cseq FROM location WHERE username = 'common{n}'"))
                .expect("row");
            [&a, &b].iter().all(|bench| {
                let mut known = None;
                bench.registrar.try_lookup(format!("common{n}@h").as_bytes(), now(), |b| {
                    known = Some((String::from_utf8_lossy(b.call_id).into_owned(), b.cseq));
                });
                known == stored
            })
        });
    }
}
