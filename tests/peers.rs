//! Programs that others wrote, as peers of an engine on UDP, TCP and TLS: sipp, sipsak, baresip, linphonec. Each registers,
//! with digest authentication; the user agents refresh and unregister as well. Packages: scripts/deps.sh test.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use partyline::engine::{Bindings, Engine, Found, RegistrarOptions, lookup, open_registrar, set_registrar_option};

const LIMIT: Duration = Duration::from_secs(40);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
/// Of those that speak TLS too; Debian's sipp and sipsak are built without.
const WITH_TLS: [&str; 3] = ["udp", "tcp", "tls"];

/// A program's path; without it the test says so loudly and does nothing.
fn program(name: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.exists());
    if found.is_none() {
        let line = format!("SKIPPED: {name} is not installed (scripts/deps.sh test)\n");
        // Past the test runner, which keeps what a passing test prints to itself.
        let _ = fs::OpenOptions::new().write(true).open("/dev/stderr").and_then(|mut e| e.write_all(line.as_bytes()));
    }
    found
}

struct Server {
    engine: Arc<Engine>,
    registrar: Arc<Bindings>,
    port: u16,
    tls: u16,
    dir: PathBuf,
    domain: String,
}

impl Server {
    /// On both transports of one port, with an answer after the commit, for users u000000 to u000199 of a domain.
    fn start(test: &str, domain: &str, algorithms: &str) -> Server {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("peers-{test}"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let mut options = RegistrarOptions::default();
        let digest = [("auth", "digest"), ("realm", "example.org"), ("algorithms", algorithms)];
        for (name, value) in [("mode", "write_through"), ("expires.min", "1")].into_iter().chain(digest) {
            set_registrar_option(&mut options, name, value).unwrap();
        }
        let file = dir.join("location.db");
        let registrar = open_registrar(options, &format!("sqlite:{}", file.display())).unwrap();
        rusqlite::Connection::open(&file)
            .unwrap()
            .execute_batch(&users(&["sql", "200", "--domain", domain, "--realm", "example.org"]))
            .unwrap();
        // The system gives a UDP port; that its TCP port is free too is likely and no more.
        for _ in 0..20 {
            let engine = Engine::new();
            engine.set("log", "warn").unwrap();
            let port = engine.listen("udp:127.0.0.1:0").unwrap().port();
            if engine.listen(&format!("tcp:127.0.0.1:{port}")).is_err() {
                continue;
            }
            let (certificate, key) = certificate(&dir);
            engine.set("tls.certificate", &certificate).unwrap();
            engine.set("tls.key", &key).unwrap();
            let tls = engine.listen("tls:127.0.0.1:0").unwrap().port();
            engine.attach(Arc::clone(&registrar)).unwrap();
            engine.start().unwrap();
            return Server { engine, registrar, port, tls, dir, domain: domain.to_owned() };
        }
        panic!("no port that is free on both transports");
    }

    fn bindings(&self, user: &str) -> Vec<Found> {
        lookup(&self.registrar, &format!("sip:{user}@{}", self.domain)).unwrap()
    }

    fn port_for(&self, transport: &str) -> u16 {
        if transport == "tls" { self.tls } else { self.port }
    }

    /// What UDP, and what TCP with TLS, has received.
    fn received(&self) -> [f64; 2] {
        let text = self.engine.metrics();
        ["partyline_udp_received_total", "partyline_stream_received_total"].map(|name| {
            let lines = text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
        })
    }

    /// Runs `body` and makes sure that its messages came over the transport, and only over that.
    fn only_over<R>(&self, transport: &str, body: impl FnOnce() -> R) -> R {
        let before = self.received();
        let result = body();
        let after = self.received();
        let [udp, tcp] = [after[0] - before[0], after[1] - before[1]];
        assert_eq!((udp > 0.0, tcp > 0.0), (transport == "udp", transport != "udp"), "udp {udp}, tcp {tcp}");
        result
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let left = self.engine.stop(Duration::from_secs(2));
        if !std::thread::panicking() {
            assert_eq!(left.unwrap(), 0, "messages left unanswered");
        }
    }
}

/// A certificate for 127.0.0.1, and its key.
fn certificate(dir: &Path) -> (String, String) {
    let [certificate, key] = ["crt", "key"].map(|end| dir.join(format!("server.{end}")).display().to_string());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-out", &certificate, "-keyout", &key])
        .output()
        .expect("openssl is installed (scripts/deps.sh test)");
    assert!(made.status.success(), "{}", said(&made));
    (certificate, key)
}

/// A port that is free on UDP and TCP, and its successor too, which baresip takes for TLS. Below the range that the system
/// gives out by itself, so that no other program's port 0 becomes this one in between; each port is named once here.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..2000 {
        let port = 23_000 + (std::process::id() as u16 % 2000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 2000 * 2;
        let free = |port: u16| {
            std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()
                && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
        };
        if free(port) && free(port + 1) {
            return port;
        }
    }
    panic!("no free pair of ports from 23000 to 27000");
}

/// What scripts/sipp/users.py writes.
fn users(arguments: &[&str]) -> String {
    let output = Command::new("python3").arg(format!("{ROOT}/scripts/sipp/users.py")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A peer that runs until it is let go; killed when the test fails. What it says goes to a file: a pipe could fill.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(command: &mut Command, log: PathBuf) -> Running {
        let (out, err) = (fs::File::create(&log).unwrap(), fs::File::options().append(true).open(&log).unwrap());
        Running { child: command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn().unwrap(), log }
    }

    fn say(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for its end; whether it was a good one, and what it has said.
    fn end(mut self) -> (bool, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.success(), self.said());
            }
            assert!(start.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            eprintln!("{}", self.said());
        }
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "never came: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Registers, is challenged, refreshes, unregisters: what a user agent does, seen from the registrar.
fn watch(server: &Server, user: &str, unregister: impl FnOnce()) {
    until("a binding", || server.bindings(user).len() == 1);
    let first = server.bindings(user).remove(0).cseq;
    until("a refresh", || server.bindings(user).first().is_some_and(|b| b.cseq > first));
    assert_eq!(server.bindings(user).len(), 1, "a refresh made a second binding");
    unregister();
    until("the end of the binding", || server.bindings(user).is_empty());
}

#[test]
fn sipp() {
    let Some(sipp) = program("sipp") else { return };
    let server = Server::start("sipp", "example.org", "MD5");
    fs::write(server.dir.join("users.csv"), users(&["csv", "200", "--digest"])).unwrap();
    for (mode, transport) in [("u1", "udp"), ("un", "udp"), ("t1", "tcp"), ("tn", "tcp")] {
        let output = server.only_over(transport, || {
            Command::new(&sipp)
                .current_dir(&server.dir)
                .args(["-sf", &format!("{ROOT}/scripts/sipp/register_digest.xml"), "-inf", "users.csv"])
                .args(["-t", mode, "-max_socket", "60", "-i", "127.0.0.1", "-p", &free_port().to_string()])
                .args(["-m", "200", "-l", "50", "-r", "400", "-nostdin", "-timeout", "30s", "-timeout_error"])
                // The registrar wants the digest's URI to name the host of the request's.
                .args(["-auth_uri", "example.org"])
                .arg(format!("127.0.0.1:{}", server.port))
                .stdin(Stdio::null())
                .output()
                .unwrap()
        });
        assert!(output.status.success(), "sipp -t {mode}: {}\n{}", output.status, said(&output));
        for user in 0..200 {
            assert!(!server.bindings(&format!("u{user:06}")).is_empty(), "sipp -t {mode}: no binding of user {user}");
        }
    }
}

#[test]
fn sipsak() {
    let Some(sipsak) = program("sipsak") else { return };
    let server = Server::start("sipsak", "127.0.0.1", "MD5");
    for transport in TRANSPORTS {
        let run = |contact: &str, expires: &str| {
            let output = Command::new(&sipsak)
                .args(["-U", "-i", "-C", contact, "-s", &format!("sip:u000001@127.0.0.1:{}", server.port)])
                .args(["-E", transport, "-u", "u000001", "-a", "secret-u000001", "-x", expires])
                .output()
                .unwrap();
            assert!(output.status.success(), "sipsak {transport}: {}\n{}", output.status, said(&output));
        };
        server.only_over(transport, || {
            run("sip:u000001@127.0.0.1:5199", "60");
            assert_eq!(server.bindings("u000001").len(), 1);
            run("*", "0");
            assert_eq!(server.bindings("u000001").len(), 0);
        });
    }
}

#[test]
fn baresip() {
    let Some(baresip) = program("baresip") else { return };
    let server = Server::start("baresip", "example.org", "MD5");
    for transport in WITH_TLS {
        let dir = server.dir.join(transport);
        fs::create_dir_all(&dir).unwrap();
        let modules = "module g711.so\nmodule_tmp uuid.so\nmodule_tmp account.so\nmodule_app menu.so\n";
        let config = format!(
            "poll_method epoll\nsip_listen 127.0.0.1:{}\nnet_interface 127.0.0.1\nmodule_path /usr/lib/baresip/modules\n{modules}",
            free_port()
        );
        fs::write(dir.join("config"), config).unwrap();
        let account = format!(
            "<sip:u000002@example.org;transport={transport}>;auth_user=u000002;auth_pass=secret-u000002;\
             outbound=\"sip:127.0.0.1:{};transport={transport}\";regint=4\n",
            server.port_for(transport)
        );
        fs::write(dir.join("accounts"), account).unwrap();
        fs::write(dir.join("contacts"), "").unwrap();
        let (_, said) = server.only_over(transport, || {
            let running =
                Running::start(Command::new(&baresip).arg("-f").arg(&dir).args(["-v", "-t", "8"]), dir.join("log"));
            watch(&server, "u000002", || {});
            running.end()
        });
        // Its exit code is 0 whatever happens.
        assert!(said.contains("200 OK") && said.contains("[1 binding]"), "baresip {transport}:\n{said}");
    }
}

#[test]
fn linphonec() {
    let Some(linphonec) = program("linphonec") else { return };
    let server = Server::start("linphonec", "example.org", "SHA-256,MD5");
    for transport in WITH_TLS {
        let home = server.dir.join(transport);
        fs::create_dir_all(home.join(".local/share/linphone")).unwrap();
        let [udp, tcp, tls] = WITH_TLS.map(|own| if own == transport { free_port() } else { 0 });
        let config = format!(
            "[sip]\nsip_port={udp}\nsip_tcp_port={tcp}\nsip_tls_port={tls}\nverify_server_certs=0\nverify_server_cn=0\nuse_ipv6=0\nauto_net_state_mon=0\n\
             register_only_when_network_is_up=0\ndefault_proxy=0\n\n[proxy_0]\n\
             reg_proxy=<sip:127.0.0.1:{};transport={transport}>\nreg_identity=sip:u000003@example.org\nreg_expires=4\n\
             reg_sendregister=1\npublish=0\n\n[auth_info_0]\nusername=u000003\npasswd=secret-u000003\nrealm=example.org\n",
            server.port_for(transport)
        );
        let file = home.join("linphonerc");
        fs::write(&file, config).unwrap();
        let (good, said) = server.only_over(transport, || {
            let mut command = Command::new(&linphonec);
            let mut running = Running::start(command.env("HOME", &home).arg("-c").arg(&file), home.join("log"));
            watch(&server, "u000003", || running.say("unregister\n"));
            running.say("quit\n");
            running.end()
        });
        assert!(good, "linphonec {transport}:\n{said}");
    }
}
