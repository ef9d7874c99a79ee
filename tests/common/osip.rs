//! Building C programs against osip2 and running them on stock and on ours. Where there is no osip2 to build against the
//! tests say so and end: there is nothing to compare with.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn words(name: &str) -> Option<Vec<String>> {
    std::env::var(name).ok().map(|value| value.split_whitespace().map(String::from).collect())
}

pub fn cflags() -> Vec<String> {
    words("OSIP_CFLAGS").unwrap_or_default()
}

pub fn libs() -> Vec<String> {
    words("OSIP_LIBS").unwrap_or_else(|| vec!["-losip2".into(), "-losipparser2".into()])
}

pub fn has_osip() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("has_osip.c");
        std::fs::write(&file, "#include <sys/time.h>\n#include <osip2/osip.h>\nint main(void) { return 0; }\n")
            .unwrap();
        let status = Command::new("cc").args(cflags()).arg("-fsyntax-only").arg(&file).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    })
}

/// `None` where there are no osip2 headers.
pub fn build(source: &str, link: &[&str]) -> Option<PathBuf> {
    if !has_osip() {
        eprintln!("SKIPPED: no osip2 headers");
        return None;
    }
    let name = Path::new(source).file_stem().unwrap().to_str().unwrap();
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{count}", std::process::id()));
    let mut cc = Command::new("cc");
    cc.current_dir(root()).args(["-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-o"]).arg(&out).arg(source);
    cc.args(cflags());
    if link.is_empty() {
        cc.args(libs());
    } else {
        cc.args(link);
    }
    let done = cc.arg("-lpthread").output().unwrap();
    assert!(done.status.success(), "{source}:\n{}", String::from_utf8_lossy(&done.stderr));
    Some(out)
}

/// Where `make lib` puts the libraries, made if the sources are newer. `OSIP_LIBRARY_DIR` names another place, which is
/// taken as it is: how `scripts/osip-versions.sh` tests what was built against another osip2.
fn libraries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(dir) = std::env::var_os("OSIP_LIBRARY_DIR") {
            return dir.into();
        }
        let done = Command::new("make")
            .current_dir(root())
            .args(["--no-print-directory", "target/lib/.built"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        root().join("target/lib")
    })
}

/// The shared library as it is installed.
pub fn library() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| libraries().join("libpartyline.so.0"))
}

/// The archive.
pub fn archive() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| libraries().join("libpartyline.a"))
}

pub struct Output {
    pub stdout: String,
    pub stderr: String,
}

pub struct Run(Command, String);

impl Run {
    pub fn new(program: &Path) -> Run {
        let mut command = Command::new("timeout");
        command.arg("300").arg(program).stdin(Stdio::null());
        Run(command, program.display().to_string())
    }

    /// Under a checker.
    pub fn under(checker: &[&str], program: &Path) -> Run {
        let mut command = Command::new("timeout");
        command.arg("300").args(checker).arg(program).stdin(Stdio::null());
        Run(command, program.display().to_string())
    }

    pub fn preload(mut self) -> Run {
        self.0.env("LD_PRELOAD", library()).env("PARTYLINE_REPORT", "1");
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Run {
        self.0.env(name, value);
        self
    }

    pub fn args(mut self, arguments: &[&str]) -> Run {
        self.0.args(arguments);
        self
    }

    pub fn output(mut self) -> Output {
        let output = self.0.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{} ended with {}:\n{stdout}\n{stderr}", self.1, output.status);
        Output { stdout, stderr }
    }
}

/// The engine's counts, from `PARTYLINE_REPORT`.
#[derive(Default)]
pub struct Counts(HashMap<(String, String), u64>);

impl Counts {
    pub fn read(report: &str) -> Counts {
        let mut counts = Counts::default();
        for line in report.lines().filter_map(|line| line.strip_prefix("partyline: engine: ")) {
            let mut words = line.split_whitespace();
            let kind = words.next().unwrap_or("").to_string();
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                counts.0.insert((kind.clone(), name.to_string()), value.parse().unwrap());
            }
        }
        counts
    }

    pub fn of(&self, kind: &str, name: &str) -> u64 {
        self.0.get(&(kind.to_string(), name.to_string())).copied().unwrap_or(0)
    }
}

/// Runs on stock and on ours; the output has to be the same.
pub fn compare(program: &Path, arguments: &[&str]) -> Counts {
    let stock = Run::new(program).args(arguments).output();
    let ours = Run::new(program).args(arguments).preload().output();
    assert!(stock.stdout.lines().count() > 10, "printed next to nothing:\n{}", stock.stdout);
    if stock.stdout != ours.stdout {
        let at = stock.stdout.lines().zip(ours.stdout.lines()).take_while(|(a, b)| a == b).count();
        let around = |text: &str| text.lines().skip(at.saturating_sub(8)).take(12).collect::<Vec<_>>().join("\n");
        panic!(
            "{program:?} {arguments:?}: line {at}\nstock:\n{}\nours:\n{}",
            around(&stock.stdout),
            around(&ours.stdout)
        );
    }
    let counts = Counts::read(&ours.stderr);
    let all: u64 = ["ict", "ist", "nict", "nist"].iter().map(|kind| counts.of(kind, "executed")).sum();
    assert!(all + counts.of("resends", "sent") > 0, "the engine was not in use:\n{}", ours.stderr);
    counts
}
