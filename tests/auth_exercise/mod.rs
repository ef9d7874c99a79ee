//! What the fuzz drivers of digest authentication run. An input is the value of an Authorization header in which `NONCE`
//! stands for a nonce that the registrar has just given out, and `RIGHT` for the one response that alice would send with
//! it. Who is let in without both has found a hole; who is let in twice with one nonce count has found another.

use std::path::Path;
use std::sync::OnceLock;

use md5::{Digest as _, Md5};
use parking_lot::{Condvar, Mutex};
use partyline::registrar::store::StoreError;
use partyline::registrar::{Auth, AuthMode, Mode, Options, Registrar, Registration, Sink, SipReply};
use partyline::sip::{Message, Tags};

const NOW: u32 = 1_700_000_000;
const HA1: &str = "alice:example.org:wonder";

#[derive(Default)]
struct Loaded(Mutex<u64>, Condvar);

struct Noting(&'static Loaded);

impl Sink<u64> for Noting {
    fn committed(&self, _: &mut Vec<u64>, _: Result<(), &StoreError>) {
        panic!("nothing is registered");
    }
    fn loaded(&self, waiters: &mut Vec<u64>, result: Result<(), &StoreError>) {
        assert!(result.is_ok());
        *self.0.0.lock() = waiters.iter().copied().max().unwrap_or(0);
        self.0.1.notify_all();
    }
}

struct House {
    registrar: Registrar<u64>,
    loaded: &'static Loaded,
    tags: Tags,
    turn: Mutex<u64>,
}

fn hex(text: &str) -> String {
    Md5::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `dir`: where the database of users may lie.
fn house(dir: &Path) -> &'static House {
    static HOUSE: OnceLock<House> = OnceLock::new();
    HOUSE.get_or_init(|| {
        let file = dir.join(format!("fuzz-auth-{}.db", std::process::id()));
        let options = Options {
            auth: AuthMode::Digest,
            mode: Mode::Memory,
            url: format!("sqlite:{}", file.display()),
            user_ttl: std::time::Duration::from_secs(1 << 20),
            ..Options::default()
        };
        let loaded: &'static Loaded = Box::leak(Box::default());
        let registrar = Registrar::open_at(options, Noting(loaded), || 0).expect("open");
        rusqlite::Connection::open(&file)
            .and_then(|db| {
                let insert = "INSERT INTO subscriber (username, domain, password, ha1, ha1b) VALUES ('alice', 'example.org', '', ?, '')";
                db.execute(insert, (hex(HA1),))
            })
            .expect("alice");
        House { registrar, loaded, tags: Tags::new(), turn: Mutex::new(0) }
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Came {
    In,
    Again,
    /// With the answer.
    Out(Vec<u8>),
    NoMessage,
}

fn ask(house: &House, waiters: &mut u64, branch: u64, cseq: u32, value: &[u8]) -> Came {
    let mut bytes = format!(
        "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK{branch}\r\nFrom: <sip:alice@example.org>;tag=1\r\n\
         To: <sip:alice@example.org>\r\nCall-ID: call\r\nCSeq: {cseq} REGISTER\r\n"
    )
    .into_bytes();
    if !value.is_empty() {
        bytes.extend_from_slice(b"Authorization: ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    let Ok(message) = Message::parse(&mut bytes) else { return Came::NoMessage };
    let Ok(read) = Registration::read(&message, true) else { return Came::NoMessage };
    for _ in 0..4 {
        let mut room = [0; 4000];
        let mut reply = SipReply::new(&mut room, &message, None, &house.tags);
        match house.registrar.authorize(&message, read.aor().as_bytes(), NOW, &mut reply) {
            Auth::Ok => return Came::In,
            Auth::Again => return Came::Again,
            Auth::Challenge | Auth::Rejected(_) => {
                return Came::Out(reply.finish().map(|sent| sent.to_vec()).unwrap_or_default());
            }
            Auth::Miss(ticket) => {
                *waiters += 1;
                house.registrar.load(ticket, *waiters).expect("room");
                let mut last = house.loaded.0.lock();
                while *last < *waiters {
                    house.loaded.1.wait(&mut last);
                }
            }
        }
    }
    panic!("a miss after it was loaded");
}

fn replaced(value: &[u8], name: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = value;
    while let Some(at) = rest.windows(name.len()).position(|window| window == name) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(with);
        rest = &rest[at + name.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Whether alice was let in.
pub fn exercise(input: &[u8], dir: &Path) -> bool {
    let house = house(dir);
    let mut waiters = house.turn.lock();
    let Came::Out(challenge) = ask(house, &mut waiters, 0, 1, b"") else { panic!("let in without a word") };
    let challenge = String::from_utf8(challenge).expect("text");
    let nonce = challenge.split_once("nonce=\"").and_then(|(_, rest)| rest.split_once('"')).expect("a nonce").0;
    let ha2 = hex("REGISTER:sip:example.org");
    let right = hex(&format!("{}:{nonce}:00000001:c:auth:{ha2}", hex(HA1)));
    let value = replaced(&replaced(input, b"NONCE", nonce.as_bytes()), b"RIGHT", right.as_bytes());
    let has = |word: &str| value.windows(word.len()).any(|window| window == word.as_bytes());
    // The branch of a message is new each time, or the registrar would take it for one that it has let in.
    *waiters += 1;
    let branch = *waiters;
    let came = ask(house, &mut waiters, branch, 2, &value);
    match &came {
        Came::In => assert!(has(nonce) && has(&right), "let in: {}", String::from_utf8_lossy(&value)),
        Came::Out(answer) => {
            let mut answer = answer.clone();
            if !answer.is_empty() {
                assert!(Message::parse(&mut answer).is_ok(), "{}", String::from_utf8_lossy(&answer));
            }
        }
        Came::Again => panic!("was never there before"),
        Came::NoMessage => (),
    }
    if came == Came::In {
        assert_eq!(ask(house, &mut waiters, branch, 2, &value), Came::Again, "a retransmission is a question");
        let replay = ask(house, &mut waiters, branch + 1, 3, &value);
        assert!(matches!(replay, Came::Out(_)), "let in twice: {}", String::from_utf8_lossy(&value));
        return true;
    }
    false
}
