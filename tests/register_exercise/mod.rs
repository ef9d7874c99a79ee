//! What the fuzz drivers of REGISTER handling run. An input is messages one behind the other, cut at lines that begin with
//! `--`; each is decided as an engine does it, and what must hold whatever it says is looked at.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use parking_lot::Mutex;
use partyline::registrar::store::StoreError;
use partyline::registrar::{Options, Outcome, Registrar, Registration, Sink, SipReply};
use partyline::sip::{HeaderName, Message, Tags};

struct Nobody;

impl Sink<u64> for Nobody {
    fn committed(&self, _: &mut Vec<u64>, _: Result<(), &StoreError>) {
        panic!("nobody waits in memory");
    }
    fn loaded(&self, _: &mut Vec<u64>, _: Result<(), &StoreError>) {
        panic!("nobody waits in memory");
    }
}

/// Longer than any binding lasts: at the next input those of the last have expired.
const BETWEEN: u32 = 100_000;
const FIRST: u32 = 1 << 30;

/// A registrar and its time. When that runs out a new one takes its place.
struct House {
    registrar: Registrar<u64>,
    now: u32,
}

impl House {
    fn open() -> House {
        // The registrar's own clock stands still: nothing expires but by the calls below.
        House { registrar: Registrar::open_at(Options::default(), Nobody, || 0).expect("open"), now: FIRST }
    }
}

type Bindings = Vec<(Vec<u8>, u32, u32)>;

fn bindings(registrar: &Registrar<u64>, aor: &[u8], now: u32) -> Bindings {
    let mut all = Vec::new();
    let count = registrar
        .lookup(aor, now, |b| {
            assert!(b.expires > now && !b.contact.is_empty());
            all.push((b.contact.to_vec(), b.expires, b.cseq));
        })
        .expect("memory");
    assert_eq!(count, all.len());
    all.sort();
    all
}

/// How many of the messages were answered with 200.
pub fn exercise(input: &[u8]) -> usize {
    // One input at a time: the registrar is shared, and what it holds is compared.
    static HOUSE: Mutex<Option<House>> = Mutex::new(None);
    let mut house = HOUSE.lock();
    if house.as_ref().is_some_and(|house| house.now > u32::MAX - 2 * BETWEEN) {
        *house = None;
    }
    let House { registrar, now } = house.get_or_insert_with(House::open);
    *now += BETWEEN;
    registrar.expire(*now);
    assert_eq!(registrar.bindings(), 0, "what expired is gone");
    let mut known: BTreeMap<Vec<u8>, Bindings> = BTreeMap::new();
    let mut accepted = 0;
    for (n, part) in input.split_inclusive(|byte| *byte == b'\n').fold(vec![Vec::new()], cut).into_iter().enumerate() {
        if n == 16 {
            break;
        }
        accepted += usize::from(one(registrar, part, *now, &mut known));
        *now += 1;
    }
    accepted
}

fn cut(mut parts: Vec<Vec<u8>>, line: &[u8]) -> Vec<Vec<u8>> {
    match parts.last_mut() {
        Some(last) if !line.starts_with(b"--") => last.extend_from_slice(line),
        _ => parts.push(Vec::new()),
    }
    parts
}

fn one(registrar: &Registrar<u64>, mut bytes: Vec<u8>, now: u32, known: &mut BTreeMap<Vec<u8>, Bindings>) -> bool {
    static TAGS: OnceLock<Tags> = OnceLock::new();
    let Ok(message) = Message::parse(&mut bytes) else { return false };
    let Ok(read) = Registration::read(&message, true) else { return false };
    let aor = read.aor().as_bytes().to_vec();
    let before = bindings(registrar, &aor, now);
    let request = read.request(b"", b"udp:127.0.0.1:5060");
    let mut room = vec![0; 70_000];
    let mut reply = SipReply::new(&mut room, &message, None, TAGS.get_or_init(Tags::new));
    let outcome = registrar.register(&request, now, &mut reply);
    let after = bindings(registrar, &aor, now);
    let status = match outcome {
        Outcome::Answered(status) => status,
        Outcome::Rejected(rejection) => {
            assert_eq!(before, after, "refused, and yet something changed");
            rejection.answer().0
        }
        other => panic!("in memory: {other:?}"),
    };
    if let Some(sent) = reply.finish() {
        let text = sent.to_vec();
        let answer = Message::parse(sent).expect("the answer to a sound request is sound");
        assert!(text.starts_with(format!("SIP/2.0 {status} ").as_bytes()), "{}", String::from_utf8_lossy(&text));
        let told = answer.headers(HeaderName::Contact).count();
        assert_eq!(told, if status == 200 { after.len() } else { 0 }, "{}", String::from_utf8_lossy(&text));
    }
    // A request changes nothing but its own address-of-record.
    known.insert(aor, after);
    for (aor, then) in known.iter() {
        let still: Bindings = then.iter().filter(|binding| binding.1 > now).cloned().collect();
        assert_eq!(bindings(registrar, aor, now), still, "{}", String::from_utf8_lossy(aor));
    }
    status == 200
}
