//! A private MariaDB for tests, by `scripts/mariadb.sh`: a folder under `target/`, a free port on 127.0.0.1.
//!
//! It is stopped and its folder removed when the test's process ends, however it ends: a shell waits at a pipe whose other
//! end only this process holds.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use mysql::prelude::Queryable;

pub struct Mariadb {
    dir: PathBuf,
    port: u16,
    /// More arguments of the server.
    extra: String,
    /// Holds the pipe.
    _watcher: Child,
}

const PORTS: std::ops::Range<u16> = 24500..24600;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mariadb.sh")
}

/// The next port of the range that nobody listens on.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let size = u32::from(PORTS.end - PORTS.start);
    // Two test processes at once begin at different ports.
    let start = std::process::id().wrapping_mul(7);
    for _ in 0..size {
        let port = PORTS.start + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % size) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

impl Mariadb {
    /// Starts a server of its own, for a test that kills it.
    pub fn start(name: &str) -> Mariadb {
        Mariadb::start_with(name, "")
    }

    /// With more arguments for mariadbd.
    pub fn start_with(name: &str, extra: &str) -> Mariadb {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mariadb-{name}-{}", std::process::id()));
        let watcher = Command::new("sh")
            .args(["-c", "read _; \"$0\" stop \"$1\"; rm -rf \"$1\""])
            .arg(script())
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell that waits for the end of this process");
        let server = Mariadb { dir, port: free_port(), extra: extra.to_owned(), _watcher: watcher };
        // mariadb-install-db does not bear company.
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _one = INSTALLING.lock();
        server.restart();
        server
    }

    /// The server that the tests of one binary share.
    pub fn shared() -> &'static Mariadb {
        static SHARED: OnceLock<Mariadb> = OnceLock::new();
        SHARED.get_or_init(|| Mariadb::start("shared"))
    }

    fn run(&self, verb: &str, port: Option<u16>) {
        let mut command = Command::new(script());
        command.arg(verb).arg(&self.dir).args(port.map(|p| p.to_string())).stdin(Stdio::null());
        if !self.extra.is_empty() {
            command.env("MARIADB_EXTRA", &self.extra);
        }
        let output = command.output().expect("scripts/mariadb.sh");
        assert!(output.status.success(), "mariadb.sh {verb}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// kill -9; comes back when the process is gone.
    pub fn kill(&self) {
        self.run("kill", None);
    }

    pub fn pid(&self) -> i32 {
        let pid = std::fs::read_to_string(self.dir.join("pid")).expect("the server's pid");
        pid.trim().parse().expect("a number")
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: a system call on a process that this one started.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Starts it again, on the same port and data.
    pub fn restart(&self) {
        self.run("start", Some(self.port));
    }

    /// A new, empty database; its URL.
    pub fn database(&self, name: &str) -> String {
        let mut conn = self.connect("partyline");
        conn.query_drop(format!("DROP DATABASE IF EXISTS {name}")).expect("drop");
        conn.query_drop(format!("CREATE DATABASE {name}")).expect("create");
        self.url(name)
    }

    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{database}", self.port)
    }

    pub fn connect(&self, database: &str) -> mysql::Conn {
        mysql::Conn::new(mysql::Opts::from_url(&self.url(database)).expect("url")).expect("connection")
    }
}
