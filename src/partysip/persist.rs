//! The bindings of libppl's users in a database: `PARTYLINE_DB=sqlite:PATH` or `mysql://user:password@host:port/database`.
//!
//! A registrar of the room `registrar` stands between, in its mode `write_back`: `ppl_uinfo_store_bindings` compares what the
//! user has with what the registrar knows and gives it the differences; its writer brings them into the table `location`
//! in batches, within a second, and keeps them while the database is away. A user whom nobody has seen since the start is
//! looked up there, and made with the bindings that are found. partysip knows users by name alone, in any case: rows have
//! the lower-case name and an empty domain.

use core::ffi::CStr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::pool::os;
use crate::registrar::store::{Aor, NO_Q, StoreError};
use crate::registrar::{
    BindingView, Contact, Mode, Options, Outcome, RegisterRequest, Registrar, ReplyWriter, Sink, system_clock,
};
use crate::sip::HeaderName;
use crate::sip::uri::Uri;

/// Nobody waits for a commit here.
struct Nobody;

impl Sink<()> for Nobody {
    fn committed(&self, waiters: &mut Vec<()>, _: Result<(), &StoreError>) {
        waiters.clear();
    }
    fn loaded(&self, waiters: &mut Vec<()>, _: Result<(), &StoreError>) {
        waiters.clear();
    }
}

/// Takes an answer that nobody reads, but for its status.
struct Status(u16);

impl ReplyWriter for Status {
    fn start(&mut self, status: u16, _: &str) {
        self.0 = status;
    }
    fn contact(&mut self, _: &BindingView<'_>, _: u32) {}
    fn number(&mut self, _: HeaderName, _: u32) {}
    fn header(&mut self, _: HeaderName, _: &[u8]) {}
}

/// A binding, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub contact: Vec<u8>,
    pub path: Vec<u8>,
    /// Seconds since the epoch.
    pub when: u32,
    /// 0 to 1000, or [`NO_Q`].
    pub q: u16,
}

pub struct Persist {
    registrar: Registrar<()>,
    process: u32,
    /// Unlike that of every other run, so that the numbers below may begin anew.
    call_id: Vec<u8>,
    cseq: Mutex<u32>,
}

static OPEN: Mutex<Option<Arc<Persist>>> = Mutex::new(None);

/// Opens the database that the environment names, if it names one. One sentence where that fails.
pub fn open() -> Result<(), String> {
    let Some(url) = os::env(c"PARTYLINE_DB").filter(|url| !url.is_empty()) else { return Ok(()) };
    let url = core::str::from_utf8(url).map_err(|_| "PARTYLINE_DB is no text".to_owned())?;
    let options = Options {
        mode: Mode::WriteBack,
        url: url.to_owned(),
        min_expires: 1,
        max_expires: u32::MAX / 2,
        max_contacts: 1000,
        use_domain: false,
        ..Options::default()
    };
    let registrar = Registrar::open(options, Nobody).map_err(|error| error.to_string())?;
    let persist = Persist {
        registrar,
        process: std::process::id(),
        call_id: format!("partysip-{}-{}", std::process::id(), system_clock()).into_bytes(),
        cseq: Mutex::new(0),
    };
    *OPEN.lock() = Some(Arc::new(persist));
    Ok(())
}

/// The open database. A child of fork has none of the threads, and opens it again.
pub fn current() -> Option<Arc<Persist>> {
    let open = OPEN.lock().clone()?;
    if open.process == std::process::id() {
        return Some(open);
    }
    // The parent's threads are not here to be ended: what they own is left as it is.
    core::mem::forget(OPEN.lock().take());
    core::mem::forget(open);
    if let Err(error) = self::open() {
        tracing::error!(%error, "the database cannot be opened again after fork");
    }
    OPEN.lock().clone()
}

/// Writes what is not written yet and lets go.
pub fn close() {
    let Some(open) = OPEN.lock().take() else { return };
    if open.process == std::process::id() {
        open.registrar.close();
    } else {
        core::mem::forget(open);
    }
}

/// The key of a user: the name in lower case, without a domain.
fn key(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::new();
    Aor { user: &name.to_ascii_lowercase(), domain: b"" }.join(&mut key);
    key
}

/// `0.5` as 500.
pub fn q_of(text: Option<&CStr>) -> u16 {
    let value = text.and_then(|text| text.to_str().ok()).and_then(|text| text.trim().parse::<f32>().ok());
    value.filter(|q| (0.0..=1.0).contains(q)).map_or(NO_Q, |q| (q * 1000.0).round() as u16)
}

impl Persist {
    /// What is kept of a user, highest q first. Waits for the database where the cache does not know.
    pub fn load(&self, name: &[u8]) -> Vec<Kept> {
        let mut all = Vec::new();
        let found = self.registrar.lookup(&key(name), system_clock(), |binding| {
            all.push(Kept {
                contact: binding.contact.to_vec(),
                path: binding.path.to_vec(),
                when: binding.expires,
                q: binding.q,
            });
        });
        if let Err(error) = found {
            tracing::warn!(%error, "the bindings of a user cannot be read");
        }
        all
    }

    /// Keeps what the user has now.
    pub fn store(&self, name: &[u8], now_has: &[Kept]) {
        let known = self.load(name);
        let key = key(name);
        let now = system_clock();
        for gone in known.iter().filter(|known| !now_has.iter().any(|has| has.contact == known.contact)) {
            self.change(&key, gone, 0, now);
        }
        for has in now_has.iter().filter(|has| has.when > now && !known.contains(has)) {
            self.change(&key, has, has.when - now, now);
        }
    }

    fn change(&self, key: &[u8], binding: &Kept, expires: u32, now: u32) {
        let Ok(uri) = Uri::parse(&binding.contact) else { return };
        let cseq = {
            let mut cseq = self.cseq.lock();
            *cseq = cseq.wrapping_add(1) & 0x7fff_ffff;
            *cseq
        };
        let contact = Contact { expires: Some(expires), q: binding.q, ..Contact::of_uri(uri) };
        let contacts = [contact];
        let request = RegisterRequest {
            contacts: &contacts,
            path: &binding.path,
            ..RegisterRequest::query(key, &self.call_id, cseq)
        };
        let mut status = Status(0);
        if !matches!(self.registrar.register(&request, now, &mut status), Outcome::Answered(_)) {
            tracing::warn!(status = status.0, "a binding is not kept");
        }
    }
}
