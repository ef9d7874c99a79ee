//! Authentication against a real `subscriber` table.

mod registrar_support;

use std::time::Duration;

use partyline::registrar::store::Kind;
use partyline::registrar::{Auth, AuthMode, Mode, Options, Registrar, Registration, SipReply};
use partyline::sip::digest::{Algorithm, Credentials, Hash};
use partyline::sip::{Message, Tags};
use registrar_support::{NOW, Notes, NotingSink, SqliteFile};

use std::sync::Arc;

const REALM: &str = "example.org";

struct Guard {
    registrar: Registrar<u64>,
    notes: Arc<Notes>,
    tags: Tags,
    file: SqliteFile,
}

/// What a request came to, and the answer as text.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    In,
    Again,
    Challenged(String),
    Rejected(u16),
}

fn open(auth: AuthMode, change: impl FnOnce(&mut Options)) -> Guard {
    let file = SqliteFile::new("auth");
    let mut options = Options { auth, ..registrar_support::options(Mode::Memory, &file.url()) };
    change(&mut options);
    let sink = NotingSink::default();
    let notes = sink.0.clone();
    let registrar = Registrar::open_at(options, sink, || 0).expect("open");
    let db = file.connect();
    let ha1 = |user: &str, password: &str| {
        let hash = Hash::ha1(Algorithm::Md5, user.as_bytes(), REALM.as_bytes(), password.as_bytes());
        String::from_utf8(hash.as_bytes().to_vec()).expect("hex")
    };
    let insert = "INSERT INTO subscriber (username, domain, password, ha1, ha1b) VALUES (?, 'example.org', ?, ?, ?)";
    db.execute(insert, ("alice", "", ha1("alice", "wonder"), ha1("alice@example.org", "wonder"))).expect("alice");
    db.execute(insert, ("bob", "builder", "", "")).expect("bob");
    Guard { registrar, notes, tags: Tags::new(), file }
}

fn register(user: &str, cseq: u32, branch: &str, authorization: &str) -> Vec<u8> {
    let authorization =
        if authorization.is_empty() { String::new() } else { format!("Authorization: {authorization}\r\n") };
    format!(
        "REGISTER sip:example.org SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK{branch}\r\nFrom: <sip:{user}@example.org>;tag=1\r\n\
         To: <sip:{user}@example.org>\r\nCall-ID: call\r\nCSeq: {cseq} REGISTER\r\n{authorization}\r\n"
    )
    .into_bytes()
}

impl Guard {
    /// As an engine does it, loading what is missing.
    fn ask(&self, now: u32, mut bytes: Vec<u8>) -> Came {
        let message = Message::parse(&mut bytes).expect("message");
        let read = Registration::read(&message, self.registrar.options().use_domain).expect("register");
        for waiter in 1..4 {
            let mut buf = [0; 2000];
            let mut reply = SipReply::new(&mut buf, &message, None, &self.tags);
            match self.registrar.authorize(&message, read.aor().as_bytes(), now, &mut reply) {
                Auth::Ok => return Came::In,
                Auth::Again => return Came::Again,
                Auth::Challenge => {
                    let text = String::from_utf8(reply.finish().expect("fits").to_vec()).expect("text");
                    assert!(text.starts_with("SIP/2.0 401 Unauthorized\r\n"), "{text}");
                    return Came::Challenged(text);
                }
                Auth::Rejected(rejection) => {
                    assert!(reply.finish().is_some());
                    return Came::Rejected(rejection.answer().0);
                }
                Auth::Miss(ticket) => {
                    self.notes.loaded.lock().remove(&waiter);
                    self.registrar.load(ticket, waiter).expect("room");
                    assert_eq!(self.notes.wait_loaded(waiter), Ok(()));
                }
            }
        }
        panic!("a miss after it was loaded");
    }

    /// The nonces that an unauthenticated request is offered, by algorithm.
    fn challenge(&self, now: u32, user: &str) -> Vec<(Algorithm, String)> {
        match self.ask(now, register(user, 1, "first", "")) {
            Came::Challenged(text) => offers(&text),
            other => panic!("{other:?}"),
        }
    }
}

fn offers(answer: &str) -> Vec<(Algorithm, String)> {
    answer
        .lines()
        .filter_map(|line| line.strip_prefix("WWW-Authenticate: Digest realm=\"example.org\", nonce=\""))
        .map(|rest| {
            let (nonce, rest) = rest.split_once('"').expect("nonce");
            let algorithm = rest.split_once("algorithm=").expect("algorithm").1.split(',').next().expect("name");
            (Algorithm::from_bytes(algorithm.as_bytes()).expect("known"), nonce.to_owned())
        })
        .collect()
}

fn answer(user: &str, password: &str, algorithm: Algorithm, nonce: &str, nc: u32) -> String {
    let name = String::from_utf8(algorithm.as_bytes().to_vec()).expect("name");
    let with = |response: &str| {
        format!(
            "Digest username=\"{user}\", realm=\"{REALM}\", nonce=\"{nonce}\", uri=\"sip:example.org\", qop=auth, \
             nc={nc:08x}, cnonce=\"c\", algorithm={name}, response=\"{response}\""
        )
    };
    let text = with("");
    let ha1 = Hash::ha1(algorithm, user.as_bytes(), REALM.as_bytes(), password.as_bytes());
    let response = Credentials::parse(text.as_bytes()).expect("credentials").expected(&ha1, b"REGISTER");
    with(std::str::from_utf8(response.as_bytes()).expect("hex"))
}

#[test]
fn rfc8760_algorithms_are_offered_by_what_the_row_holds() {
    let guard = open(AuthMode::Digest, |_| ());
    let names = |user| guard.challenge(NOW, user).into_iter().map(|(algorithm, _)| algorithm).collect::<Vec<_>>();
    assert_eq!(names("alice"), [Algorithm::Md5], "only ha1 is stored");
    assert_eq!(names("bob"), [Algorithm::Sha256, Algorithm::Md5], "the strongest first");
    assert_eq!(names("nobody"), [Algorithm::Md5], "as if it existed");
    let all = open(AuthMode::Digest, |options| options.algorithms = vec![Algorithm::Sha512_256]);
    assert_eq!(all.challenge(NOW, "bob")[0].0, Algorithm::Sha512_256);
    let refused = answer("bob", "builder", Algorithm::Md5, &all.challenge(NOW, "bob")[0].1, 1);
    assert!(matches!(all.ask(NOW, register("bob", 2, "x", &refused)), Came::Challenged(_)), "MD5 was not offered");
}

#[test]
fn rfc3261_22_4_the_right_password_lets_in() {
    let guard = open(AuthMode::Digest, |_| ());
    for (user, name, password) in
        [("alice", "alice", "wonder"), ("alice", "alice@example.org", "wonder"), ("bob", "bob", "builder")]
    {
        let offered = guard.challenge(NOW, user).into_iter().map(|(algorithm, _)| algorithm);
        for algorithm in offered {
            let nonce = guard.challenge(NOW, user).remove(0).1;
            let right = answer(name, password, algorithm, &nonce, 1);
            assert_eq!(guard.ask(NOW, register(user, 2, "second", &right)), Came::In, "{name} {algorithm:?}");
            // The nonce lives on, its count rises.
            let next = answer(name, password, algorithm, &nonce, 2);
            assert_eq!(guard.ask(NOW + 100, register(user, 3, "third", &next)), Came::In);
            let wrong = answer(name, "wrong", algorithm, &nonce, 3);
            let Came::Challenged(text) = guard.ask(NOW, register(user, 4, "4", &wrong)) else { panic!("let in") };
            assert!(!text.contains("stale"), "{text}");
        }
    }
    // Asked for once each; no challenge above asked again.
    assert!(guard.registrar.counters().selects.get() <= 4, "{}", guard.registrar.counters().selects.get());
}

#[test]
fn rfc7616_3_3_stale_nonces() {
    let guard = open(AuthMode::Digest, |options| options.nonce_ttl = Duration::from_secs(10));
    let (algorithm, nonce) = guard.challenge(NOW, "alice").remove(0);
    let late = answer("alice", "wonder", algorithm, &nonce, 1);
    let Came::Challenged(text) = guard.ask(NOW + 11, register("alice", 2, "x", &late)) else { panic!("let in") };
    assert!(text.contains("stale=true"), "{text}");
    let fresh = answer("alice", "wonder", algorithm, &offers(&text)[0].1, 1);
    assert_eq!(guard.ask(NOW + 12, register("alice", 3, "y", &fresh)), Came::In);
    // A nonce that we never made is no reason to say stale.
    let foreign = answer("alice", "wonder", algorithm, &"0".repeat(nonce.len()), 1);
    let Came::Challenged(text) = guard.ask(NOW, register("alice", 4, "z", &foreign)) else { panic!("let in") };
    assert!(!text.contains("stale"), "{text}");
}

#[test]
fn rfc7616_5_12_a_replay_is_refused_and_a_retransmission_is_not_a_replay() {
    let guard = open(AuthMode::Digest, |_| ());
    let (algorithm, nonce) = guard.challenge(NOW, "alice").remove(0);
    let right = answer("alice", "wonder", algorithm, &nonce, 1);
    assert_eq!(guard.ask(NOW, register("alice", 2, "x", &right)), Came::In);
    // The same datagram again, while it may be: a question. Later, or as another request: a replay.
    assert_eq!(guard.ask(NOW + 5, register("alice", 2, "x", &right)), Came::Again);
    for replay in [register("alice", 3, "x", &right), register("alice", 2, "y", &right)] {
        let Came::Challenged(text) = guard.ask(NOW, replay) else { panic!("let in") };
        assert!(text.contains("stale=true"), "{text}");
    }
    assert!(matches!(guard.ask(NOW + 40, register("alice", 2, "x", &right)), Came::Challenged(_)));
}

#[test]
fn rfc3261_10_3_4_only_ones_own_address_of_record() {
    let guard = open(AuthMode::Digest, |_| ());
    let (algorithm, nonce) = guard.challenge(NOW, "bob").remove(0);
    // Alice knows bob's password? Then she is bob; with her own name she is not.
    let alice = answer("alice", "builder", algorithm, &nonce, 1);
    assert_eq!(guard.ask(NOW, register("bob", 2, "x", &alice)), Came::Rejected(403));
    let elsewhere = answer("bob@other.example", "builder", algorithm, &nonce, 1);
    assert_eq!(guard.ask(NOW, register("bob", 2, "x", &elsewhere)), Came::Rejected(403));
    let nobody = answer("nobody", "x", Algorithm::Md5, &guard.challenge(NOW, "nobody")[0].1, 1);
    assert!(matches!(guard.ask(NOW, register("nobody", 2, "x", &nobody)), Came::Challenged(_)));
}

#[test]
fn rfc7616_3_4_6_credentials_for_another_uri() {
    let guard = open(AuthMode::Digest, |_| ());
    let with_uri = |uri: &str, request_uri: &str, nc: u32| {
        let (_, nonce) = guard.challenge(NOW, "alice").remove(0);
        let text = format!(
            "Digest username=\"alice\", realm=\"{REALM}\", nonce=\"{nonce}\", uri=\"{uri}\", qop=auth, \
             nc={nc:08x}, cnonce=\"c\", response=\"\""
        );
        let ha1 = Hash::ha1(Algorithm::Md5, b"alice", REALM.as_bytes(), b"wonder");
        let response = Credentials::parse(text.as_bytes()).expect("credentials").expected(&ha1, b"REGISTER");
        let response = std::str::from_utf8(response.as_bytes()).expect("hex");
        let signed = text.replace("response=\"\"", &format!("response=\"{response}\""));
        let bytes = String::from_utf8(register("alice", 2, "x", &signed)).expect("text");
        guard.ask(NOW, bytes.replacen("sip:example.org SIP", &format!("{request_uri} SIP"), 1).into_bytes())
    };
    for bad in ["sip:elsewhere.example", "", "/", "tel:+1"] {
        assert_eq!(with_uri(bad, "sip:example.org", 1), Came::Rejected(400), "{bad}");
    }
    // User agents write it with or without port, user and parameters; a proxy may have written another Request-URI.
    for (uri, request_uri) in [
        ("sip:example.org:5060;transport=udp", "sip:example.org"),
        ("sips:EXAMPLE.org", "sip:example.org"),
        ("sip:alice@example.org", "sip:192.0.2.1:5060"),
        ("sip:192.0.2.1", "sip:192.0.2.1:5060"),
        ("odd:uri", "odd:uri"),
    ] {
        assert_eq!(with_uri(uri, request_uri, 1), Came::In, "{uri} {request_uri}");
    }
}

/// 32 digits are MD5, 64 are SHA-256; hashes go before the password.
#[test]
fn rfc8760_2_6_a_row_is_asked_for_what_its_hashes_are_of() {
    let guard = open(AuthMode::Digest, |_| ());
    let hash = |algorithm, name: &str| {
        let hash = Hash::ha1(algorithm, name.as_bytes(), REALM.as_bytes(), b"secret");
        String::from_utf8(hash.as_bytes().to_vec()).expect("hex")
    };
    let db = guard.file.connect();
    let insert = "INSERT INTO subscriber (username, domain, password, ha1, ha1b) VALUES (?, 'example.org', ?, ?, ?)";
    let (sha, md5) = (Algorithm::Sha256, Algorithm::Md5);
    db.execute(insert, ("sha", "", hash(sha, "sha"), hash(sha, "sha@example.org"))).expect("row");
    db.execute(insert, ("both", "", hash(sha, "both"), hash(md5, "both"))).expect("row");
    db.execute(insert, ("old", "secret", hash(md5, "old"), "")).expect("row");
    db.execute(insert, ("broken", "", "no hash", "")).expect("row");
    let names = |user| guard.challenge(NOW, user).into_iter().map(|(algorithm, _)| algorithm).collect::<Vec<_>>();
    assert_eq!(names("sha"), [sha]);
    assert_eq!(names("both"), [sha, md5]);
    assert_eq!(names("old"), [md5], "the password is there too, the hash decides");
    let came = |user: &str, name: &str, algorithm| {
        let nonce = guard.challenge(NOW, user).remove(0).1;
        guard.ask(NOW, register(user, 2, "x", &answer(name, "secret", algorithm, &nonce, 1)))
    };
    assert_eq!(came("sha", "sha", sha), Came::In);
    assert_eq!(came("sha", "sha@example.org", sha), Came::In);
    assert_eq!(came("both", "both", sha), Came::In);
    assert_eq!(came("old", "old", md5), Came::In);
    assert!(matches!(came("sha", "sha", md5), Came::Challenged(_)), "no material for MD5");
    assert!(matches!(came("old", "old", sha), Came::Challenged(_)), "not offered");
    assert_eq!(guard.challenge(NOW, "broken"), [], "nothing can let in");
}

#[test]
fn malformed_credentials_are_a_bad_request_and_others_are_none() {
    let guard = open(AuthMode::Digest, |_| ());
    assert_eq!(guard.ask(NOW, register("alice", 2, "x", "Digest username=\"alice")), Came::Rejected(400));
    for none in ["Basic YTpi", "Digest username=\"a\", realm=\"other\", nonce=\"n\", uri=\"sip:x\", response=\"\""] {
        assert!(matches!(guard.ask(NOW, register("alice", 2, "x", none)), Came::Challenged(_)), "{none}");
    }
}

#[test]
fn a_changed_password_is_known_without_waiting_for_the_cache() {
    let guard = open(AuthMode::Digest, |options| options.user_ttl = Duration::from_secs(3600));
    let (_, nonce) = guard.challenge(NOW, "bob").remove(0);
    let old = answer("bob", "builder", Algorithm::Md5, &nonce, 1);
    assert_eq!(guard.ask(NOW, register("bob", 2, "a", &old)), Came::In);
    guard.file.connect().execute("UPDATE subscriber SET password = 'new' WHERE username = 'bob'", []).expect("update");
    let new = answer("bob", "new", Algorithm::Md5, &nonce, 2);
    // Within a second of reading the row it is trusted; after that a response that does not fit reads it again.
    registrar_support::eventually("the new password", || guard.ask(NOW, register("bob", 3, "b", &new)) == Came::In);
    let again = answer("bob", "builder", Algorithm::Md5, &nonce, 3);
    assert!(matches!(guard.ask(NOW, register("bob", 4, "c", &again)), Came::Challenged(_)));
    guard.file.connect().execute("DELETE FROM subscriber WHERE username = 'bob'", []).expect("delete");
    guard.registrar.forget_user(b"bob@example.org");
    let gone = answer("bob", "new", Algorithm::Md5, &nonce, 4);
    assert!(matches!(guard.ask(NOW, register("bob", 5, "d", &gone)), Came::Challenged(_)));
}

#[test]
fn user_exists_asks_for_no_password() {
    let guard = open(AuthMode::UserExists, |_| ());
    assert_eq!(guard.ask(NOW, register("alice", 1, "x", "")), Came::In);
    for _ in 0..5 {
        assert_eq!(guard.ask(NOW, register("nobody", 1, "x", "")), Came::Rejected(404));
    }
    assert_eq!(guard.registrar.counters().selects.get(), 2, "who does not exist is remembered too");
    let guard = open(AuthMode::UserExists, |options| options.use_domain = false);
    assert_eq!(guard.ask(NOW, register("alice", 1, "x", "")), Came::In);
    let guard = open(AuthMode::None, |_| ());
    assert_eq!(guard.ask(NOW, register("nobody", 1, "x", "")), Came::In);
}

#[test]
fn authentication_needs_a_database_and_a_realm() {
    let refused = |options: Options| Registrar::open(options, NotingSink::default()).err().expect("an error").kind();
    assert_eq!(refused(Options { auth: AuthMode::Digest, ..Options::default() }), Kind::Config);
    let file = SqliteFile::new("realm");
    let options = Options { auth: AuthMode::Digest, use_domain: false, url: file.url(), ..Options::default() };
    assert_eq!(refused(options.clone()), Kind::Config);
    assert!(Registrar::<u64>::open(Options { realm: "r".into(), ..options }, NotingSink::default()).is_ok());
}
