//! The rooms' order, as the table in src/lib.rs says: a room uses only the rooms above it.

use std::fs;
use std::path::{Path, PathBuf};

const ROOMS: [&str; 11] =
    ["observe", "ffi", "pool", "sched", "net", "sip", "registrar", "engine", "capi", "osip", "partysip"];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Each `crate::ROOM` in code (comments may name any room), with its place.
fn looks_down(room: usize, file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        for part in code.split("crate::").skip(1) {
            let used: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if let Some(other) = ROOMS.iter().position(|r| *r == used) {
                if other > room {
                    found.push(format!("{}:{}: {} uses {used}", file.display(), number + 1, ROOMS[room]));
                }
            }
        }
    }
    found
}

#[test]
fn no_room_uses_one_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for (i, room) in ROOMS.iter().enumerate() {
        let mut files = Vec::new();
        sources(&src.join(room), &mut files);
        assert!(!files.is_empty(), "the room {room} is empty");
        for file in files {
            found.extend(looks_down(i, &file, &fs::read_to_string(&file).unwrap()));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_check_sees_a_look_down() {
    let bad = "use crate::net::UdpListener;\nfn f() { crate::sip::parse() } // crate::capi is only named\n";
    assert_eq!(looks_down(3, Path::new("x.rs"), bad).len(), 2);
    assert!(looks_down(7, Path::new("x.rs"), bad).is_empty());
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for room in ["observe", "sched", "sip", "registrar", "engine"] {
        let mut files = Vec::new();
        sources(&src.join(room), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or("");
                let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
                assert!(!words.contains(&"unsafe"), "{}:{}: unsafe in the room {room}", file.display(), number + 1);
            }
        }
    }
}
