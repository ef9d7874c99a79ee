//! partysip's room on the host program of partysip's shape: plain, preloaded and relinked give the same answers and call the
//! same hooks in the same order; what was taken over was called; nothing is lost, and nothing is left at the end.
//!
//! Needs `make harness` (as `make test` does). Where there are no osip2 headers there is no host, and the tests say so.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn harness() -> Option<PathBuf> {
    let path = root().join("target/harness/partysip");
    if path.join("partysip-host-relinked").exists() {
        return Some(path);
    }
    let headers = Command::new("pkg-config").args(["--exists", "libosip2"]).status().is_ok_and(|s| s.success());
    assert!(!headers, "{} is missing: run `make harness` first", path.display());
    eprintln!("SKIPPED: no osip2 headers, so there is no partysip-host");
    None
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Plain,
    Preloaded,
    Relinked,
    /// Relinked, with libpartyline's transport plugin.
    Transport,
}

const FORMS: [Form; 4] = [Form::Plain, Form::Preloaded, Form::Relinked, Form::Transport];

struct Host {
    child: Child,
    port: u16,
    folder: PathBuf,
    errors: Option<std::thread::JoinHandle<String>>,
}

/// A folder of its own for each run.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("partysip-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Host {
    fn start(form: Form, name: &str, plugins: &str, settings: &str, set: &[(&str, &str)]) -> Option<Host> {
        Host::start_under(&[], form, name, plugins, settings, set)
    }

    fn start_under(
        checker: &[&str],
        form: Form,
        name: &str,
        plugins: &str,
        settings: &str,
        set: &[(&str, &str)],
    ) -> Option<Host> {
        let harness = harness()?;
        let folder = folder(&format!("{name}-{form:?}"));
        let port = free_port();
        let config = folder.join("conf");
        std::fs::write(
            &config,
            format!("serverport_udp = {port}\nserverip = 127.0.0.1\nplugins = {plugins}\n{settings}\n"),
        )
        .unwrap();
        let relinked = matches!(form, Form::Relinked | Form::Transport);
        let program = harness.join(if relinked { "partysip-host-relinked" } else { "partysip-host" });
        let own = if form == Form::Transport { harness.join("partyline") } else { harness.clone() };
        let mut words: Vec<&str> = checker.to_vec();
        words.push(program.to_str().unwrap());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("-f").arg(&config).arg("-d").arg(&own);
        command
            .env("PARTYLINE_REPORT", "1")
            .env("TRACE_FILE", folder.join("trace"))
            .env("SLOW_FILE", folder.join("slow"));
        if form == Form::Preloaded {
            command.env("LD_PRELOAD", root().join("target/lib/libpartyline.so.0"));
        }
        for (name, value) in set {
            command.env(name, value);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut host = Host { child, port, folder, errors: Some(errors) };
        if line != "partysip-host: ready\n" {
            let (_, said) = host.end();
            panic!("{form:?} does not start: {said}");
        }
        Some(host)
    }

    /// Ends it and returns its exit code and what it has said on stderr.
    fn end(&mut self) -> (Option<i32>, String) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: the child was not waited for yet, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let code = self.child.wait().unwrap().code();
        (code, self.errors.take().map_or_else(String::new, |errors| errors.join().unwrap()))
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.errors.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

struct Peer {
    socket: UdpSocket,
    host: u16,
}

impl Peer {
    fn new(host: &Host) -> Peer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        Peer { socket, host: host.port }
    }

    fn send(&self, text: &str) {
        self.socket.send_to(text.as_bytes(), ("127.0.0.1", self.host)).unwrap();
    }

    fn receive(&self) -> Option<String> {
        let mut buffer = [0; 8192];
        let (n, _) = self.socket.recv_from(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..n].to_vec()).unwrap())
    }

    /// Sends until there is an answer.
    fn ask(&self, text: &str) -> String {
        let began = Instant::now();
        while began.elapsed() < LIMIT {
            self.send(text);
            if let Some(answer) = self.receive() {
                return answer;
            }
        }
        panic!("no answer to {text}");
    }
}

/// A request; `more` are header lines that each end in CRLF.
fn request(method: &str, uri: &str, to: &str, call: &str, cseq: u32, more: &str) -> String {
    // Who registers somebody else is refused by our registrar.
    let from = if method == "REGISTER" { to } else { "sip:me@127.0.0.1" };
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP client.invalid:5099;branch=z9hG4bK-{call}-{cseq}-{method};rport\r\n\
         From: <{from}>;tag=1\r\nTo: <{to}>\r\nCall-ID: {call}\r\nCSeq: {cseq} {method}\r\n{more}\
         Content-Length: 0\r\n\r\n"
    )
}

fn register(user: &str, call: &str, cseq: u32, contacts: &str) -> String {
    let to = format!("sip:{user}@127.0.0.1");
    request("REGISTER", "sip:127.0.0.1", &to, call, cseq, &format!("Max-Forwards: 70\r\n{contacts}"))
}

fn status(answer: &str) -> u32 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// An answer without what differs from run to run: the tag of To, the source port, seconds that have passed.
fn normal(answer: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in answer.split("\r\n") {
        let mut line = line.to_owned();
        if line.starts_with("To:") {
            line = line.split(";tag=").next().unwrap().to_owned();
        }
        if let Some(at) = line.find(";rport=") {
            let end = line[at + 7..].find(';').map_or(line.len(), |n| at + 7 + n);
            line.replace_range(at..end, ";rport");
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// What a registrar and a location service are asked.
fn recorded() -> Vec<String> {
    let contact = |text: &str| format!("Contact: {text}\r\nExpires: 600\r\n");
    let to_alice =
        |method: &str, call: &str| request(method, "sip:alice@127.0.0.1", "sip:alice@127.0.0.1", call, 1, "");
    vec![
        register("alice", "c1", 1, &contact("<sip:alice@10.0.0.1:5070>")),
        register("Alice", "c1", 2, &contact("<sip:alice@10.0.0.1:5070>")),
        register("alice", "c2", 1, &contact("<sip:alice@10.0.0.2>;q=0.5")),
        register("bob", "c3", 1, &contact("<sip:bob@10.0.0.3>, <sip:bob@10.0.0.4>;expires=60")),
        register("bob", "c3", 2, ""),
        to_alice("OPTIONS", "c4"),
        to_alice("INFO", "c5"),
        to_alice("MESSAGE", "c6"),
        to_alice("INVITE", "c7"),
        request("INVITE", "sip:nobody@127.0.0.1", "sip:nobody@127.0.0.1", "c8", 1, ""),
        request("CANCEL", "sip:alice@127.0.0.1", "sip:alice@127.0.0.1", "c9", 1, ""),
        request("OPTIONS", "sip:alice@127.0.0.1", "sip:alice@127.0.0.1", "c10", 1, "Max-Forwards: 0\r\n"),
        request("REGISTER", "sip:127.0.0.1", "sip:127.0.0.1", "c11", 1, "Max-Forwards: 70\r\n"),
        register("alice", "c1", 3, "Contact: *\r\nExpires: 0\r\n"),
        to_alice("OPTIONS", "c12"),
        register("bob", "c3", 3, "Contact: <sip:bob@10.0.0.3>;expires=0\r\n"),
    ]
}

const PLUGINS: &str = "udp, syntax, rgstrar, ls_localdb, trace";

fn number(report: &str, name: &str) -> u64 {
    let line = report.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in:\n{report}"));
    line.split(name).nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// Nothing may pass by comparing stock with stock.
fn assert_taken_over(form: Form, report: &str) {
    match form {
        Form::Plain => assert!(!report.contains("partyline"), "{report}"),
        Form::Preloaded => {
            assert!(number(report, "find_by_aor ") > 0 && number(report, "nist created ") > 0, "{report}");
            assert!(!report.contains("taken over 0") && !report.contains("pspm_"), "{report}");
        }
        Form::Relinked | Form::Transport => {
            assert!(number(report, "partysip: taken over ") > 0, "{report}");
            for name in
                ["psp_osip_wakeup ", "module_wakeup ", "pspm_sfp_execute ", "pspm_tlp_execute ", "hooks_in_turn "]
            {
                assert!(number(report, name) > 0, "{name}: {report}");
            }
            assert!(number(report, "find_by_aor ") > 0 && number(report, "nist created ") > 0, "{report}");
        }
    }
}

#[test]
fn all_forms_answer_alike_and_call_the_same_hooks() {
    let mut first: Option<(Vec<String>, String)> = None;
    for form in FORMS {
        let Some(mut host) = Host::start(form, "parity", PLUGINS, "", &[]) else { return };
        let peer = Peer::new(&host);
        let answers: Vec<String> = recorded().iter().map(|text| normal(&peer.ask(text))).collect();
        let (code, report) = host.end();
        assert_eq!(code, Some(0), "{form:?}: {report}");
        assert_taken_over(form, &report);
        let trace = host.file("trace");
        assert!(trace.lines().count() > recorded().len(), "{form:?}: {trace}");
        match &first {
            None => {
                let seen: Vec<u32> = answers.iter().map(|answer| status(answer)).collect();
                let expected = [200, 200, 200, 200, 200, 302, 302, 302, 302, 404, 481, 483, 403, 200, 480, 200];
                assert_eq!(seen, expected, "{answers:#?}");
                first = Some((answers, trace));
            }
            Some((expected, hooks)) => {
                for (i, (answer, expected)) in answers.iter().zip(expected).enumerate() {
                    assert_eq!(answer, expected, "{form:?}, request {i}");
                }
                assert_eq!(&trace, hooks, "{form:?}");
            }
        }
    }
}

/// Sends all of them at once, and again what has no answer yet; the answers by branch.
fn burst(peer: &Peer, requests: &[String]) -> HashMap<String, u32> {
    let branch = |text: &str| text.split("branch=").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let mut left: HashMap<String, &String> = requests.iter().map(|text| (branch(text), text)).collect();
    let mut answers = HashMap::new();
    let began = Instant::now();
    while !left.is_empty() {
        assert!(began.elapsed() < LIMIT, "{} requests have no answer", left.len());
        for text in left.values() {
            peer.send(text);
        }
        while let Some(answer) = peer.receive() {
            if let Some(text) = left.remove(&branch(&answer)) {
                answers.insert(branch(text), status(&answer));
            }
            if left.is_empty() {
                break;
            }
        }
    }
    answers
}

#[test]
fn serial_hooks_are_called_once_per_request_one_at_a_time_in_order() {
    for form in FORMS {
        let Some(mut host) = Host::start(form, "serial", PLUGINS, "", &[]) else { return };
        let peer = Peer::new(&host);
        let mut requests = Vec::new();
        for call in 0..20 {
            for cseq in 1..=10 {
                let contact = format!("Contact: <sip:u{call}@10.0.0.1>\r\n");
                requests.push(register(&format!("u{call}"), &format!("call{call}"), cseq, &contact));
            }
        }
        let answers = burst(&peer, &requests);
        let (code, report) = host.end();
        assert_eq!(code, Some(0), "{form:?}: {report}");
        assert_taken_over(form, &report);
        assert!(answers.len() == 200 && answers.values().all(|status| *status == 200), "{form:?}: {answers:?}");
        let trace = host.file("trace");
        assert!(!trace.contains("two at once"), "{form:?}");
        // rgstrar mandates: `first` and `final` of the trace, in this order, then its hook for the answer.
        let mut seen: HashMap<(String, u32), Vec<String>> = HashMap::new();
        for line in trace.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            seen.entry((words[2].into(), words[3].parse().unwrap())).or_default().push(words[0].into());
        }
        assert_eq!(seen.len(), 200, "{form:?}");
        for (request, hooks) in seen {
            assert!(
                hooks == ["final", "answer"] || hooks == ["first", "final", "answer"],
                "{form:?} {request:?}: {hooks:?}"
            );
        }
    }
}

#[test]
fn policies_say_how_many_calls_run_at_once() {
    for (policy, users, least, most) in [
        ("slow=parallel", 40, 2, 40),
        ("slow=keyed:aor", 1, 1, 1),
        ("slow=keyed:callid", 40, 2, 40),
        ("slow=serial", 40, 1, 1),
    ] {
        let set = [("PARTYLINE_PLUGINS", policy), ("SLOW_MS", "20")];
        let name = policy.replace(['=', ':'], "-");
        let Some(mut host) = Host::start(Form::Relinked, &name, "udp, slow, syntax, rgstrar, ls_localdb", "", &set)
        else {
            return;
        };
        let peer = Peer::new(&host);
        let requests: Vec<String> = (0..40)
            .map(|i| {
                let user = format!("u{}", i % users);
                register(&user, &format!("call{i}"), 1, &format!("Contact: <sip:{user}@10.0.0.1>\r\n"))
            })
            .collect();
        let answers = burst(&peer, &requests);
        let (code, report) = host.end();
        assert_eq!(code, Some(0), "{policy}: {report}");
        assert!(answers.values().all(|status| *status == 200), "{policy}: {answers:?}");
        let words = host.file("slow");
        let words: Vec<&str> = words.split_whitespace().collect();
        let (calls, at_once): (u32, u32) = (words[1].parse().unwrap(), words[3].parse().unwrap());
        assert_eq!(calls, 40, "{policy}");
        assert!((least..=most).contains(&at_once), "{policy}: {at_once} at once");
        if policy == "slow=serial" {
            assert!(!report.contains("hooks_beside"), "{report}");
        } else {
            assert_eq!(number(&report, "hooks_beside "), 40, "{policy}");
        }
    }
}

#[test]
fn bindings_outlive_the_program() {
    for form in [Form::Preloaded, Form::Relinked] {
        let database = folder(&format!("db-{form:?}")).join("location.db");
        let url = format!("sqlite:{}", database.display());
        let set = [("PARTYLINE_DB", url.as_str())];
        for round in 0..2 {
            let Some(mut host) =
                Host::start(form, &format!("keep{round}"), "udp, syntax, rgstrar, ls_localdb", "", &set)
            else {
                return;
            };
            let peer = Peer::new(&host);
            if round == 0 {
                for (i, contact) in
                    ["<sip:alice@10.0.0.1>;q=0.5", "<sip:alice@10.0.0.2>", "<sip:alice@10.0.0.3>"].iter().enumerate()
                {
                    let answer = peer.ask(&register("alice", "c1", i as u32 + 1, &format!("Contact: {contact}\r\n")));
                    assert_eq!(status(&answer), 200);
                }
                let gone = register("alice", "c1", 9, "Contact: <sip:alice@10.0.0.3>;expires=0\r\n");
                assert_eq!(status(&peer.ask(&gone)), 200);
            } else {
                let find = request("OPTIONS", "sip:ALICE@127.0.0.1", "sip:alice@127.0.0.1", "c2", 1, "");
                let answer = peer.ask(&find);
                assert_eq!(status(&answer), 302, "{form:?}: {answer}");
                let contacts: Vec<&str> = answer.lines().filter(|line| line.starts_with("Contact:")).collect();
                let all = contacts.join(" ");
                assert!(
                    all.contains("10.0.0.1") && all.contains("10.0.0.2") && !all.contains("10.0.0.3"),
                    "{form:?}: {answer}"
                );
            }
            let (code, report) = host.end();
            assert_eq!(code, Some(0), "{report}");
            assert_eq!(number(&report, "loaded "), round, "{report}");
        }
    }
}

#[test]
fn a_database_that_cannot_be_opened_is_said_at_the_start() {
    let Some(harness) = harness() else { return };
    let folder = folder("refused");
    let config = folder.join("conf");
    std::fs::write(&config, "plugins = udp\n").unwrap();
    let output = Command::new(harness.join("partysip-host"))
        .arg("-f")
        .arg(&config)
        .env("LD_PRELOAD", root().join("target/lib/libpartyline.so.0"))
        .env("PARTYLINE_DB", "postgres://u:secret@h/d")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("PARTYLINE_DB: unknown database") && !said.contains("secret"),
        "{said}"
    );
}

#[test]
fn our_registrar_answers_first_or_as_one_plugin_among_others() {
    let database = folder("db-first").join("location.db");
    let settings = format!("mysqlreg_url = sqlite:{}\nmysqlreg_location = redirect", database.display());
    for (plugins, taken) in [("udp, mysqlreg", false), ("mysqlreg, udp", false), ("udp, mysqlreg, trace", true)] {
        let name = format!("first-{}", plugins.replace(", ", "-"));
        let Some(mut host) = Host::start(Form::Transport, &name, plugins, &settings, &[]) else { return };
        let peer = Peer::new(&host);
        let answer = peer.ask(&register("alice", &name, 1, "Contact: <sip:alice@10.0.0.1>\r\nExpires: 600\r\n"));
        assert_eq!(status(&answer), 200, "{plugins}: {answer}");
        assert!(answer.contains("<sip:alice@10.0.0.1>;expires="), "{plugins}: {answer}");
        let brief = peer.ask(&register("alice", &name, 2, "Contact: <sip:alice@10.0.0.2>\r\nExpires: 5\r\n"));
        assert!(status(&brief) == 423 && brief.contains("Min-Expires: 60"), "{plugins}: {brief}");
        let found = peer.ask(&request("OPTIONS", "sip:alice@127.0.0.1", "sip:alice@127.0.0.1", "c4", 1, ""));
        assert!(status(&found) == 302 && found.contains("10.0.0.1"), "{plugins}: {found}");
        let nobody = peer.ask(&request("INVITE", "sip:nobody@127.0.0.1", "sip:nobody@127.0.0.1", "c5", 1, ""));
        assert_eq!(status(&nobody), 404, "{plugins}: {nobody}");
        let (code, report) = host.end();
        assert_eq!(code, Some(0), "{plugins}: {report}");
        // Two REGISTERs more where they come to partysip.
        assert_eq!(number(&report, "requests_taken "), if taken { 4 } else { 2 }, "{plugins}: {report}");
        let trace = host.file("trace");
        assert_eq!(trace.contains("REGISTER"), taken, "{plugins}: {trace}");
    }
}

#[test]
fn our_plugins_read_partysips_configuration() {
    // A list of addresses, as partysip makes it itself, and the section of another plugin.
    let database = folder("db-digest").join("location.db");
    let settings = format!(
        "serverip = 127.0.0.1,127.0.0.2\nudp_listen = 127.0.0.1\nmysqlreg_url = sqlite:{}\nmysqlreg_auth = digest\n\
         <auth>\nrealm here\n</auth>",
        database.display()
    );
    for plugins in ["udp mysqlreg", "udp mysqlreg trace"] {
        let name = format!("digest-{}", plugins.replace(' ', "-"));
        let Some(mut host) = Host::start(Form::Transport, &name, plugins, &settings, &[]) else { return };
        let peer = Peer::new(&host);
        let answer = peer.ask(&register("alice", &name, 1, "Contact: <sip:alice@10.0.0.1>\r\nExpires: 600\r\n"));
        assert_eq!(status(&answer), 401, "{plugins}: {answer}");
        assert!(answer.contains("realm=\"here\""), "{plugins}: {answer}");
        let (code, said) = host.end();
        assert_eq!(code, Some(0), "{plugins}: {said}");
    }
}

#[test]
fn all_memory_is_freed() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no valgrind");
        return;
    }
    let valgrind = [
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        "--fair-sched=yes",
        // What the allocator reads of its own pages is the business of the pool's tests.
        "--undef-value-errors=no",
    ];
    for (form, plugins) in [
        (Form::Plain, PLUGINS),
        (Form::Relinked, PLUGINS),
        (Form::Transport, "udp, slow, syntax, rgstrar, ls_localdb, trace"),
    ] {
        let set = [("PARTYLINE_PLUGINS", "slow=parallel,rgstrar=keyed:aor"), ("SLOW_MS", "1")];
        let Some(mut host) = Host::start_under(&valgrind, form, "valgrind", plugins, "", &set) else { return };
        let peer = Peer::new(&host);
        for text in recorded() {
            peer.ask(&text);
        }
        let (code, said) = host.end();
        assert_eq!(code, Some(0), "{form:?}: {said}");
    }
}
