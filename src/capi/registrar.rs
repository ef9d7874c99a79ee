//! Registrars: new, set, open, close, and what plugins ask of one.

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::PARTYLINE_OK;
use super::message::{self, partyline_message};
use super::plugin::{PARTYLINE_DONE, PARTYLINE_NEXT, PARTYLINE_PENDING};
use crate::engine::{self, Bindings, RegistrarOptions, Verdict};
use crate::ffi::{self, Code, Error, HandleTable, Kind, entry, fork::Birth};

/// Bindings in a cache over a database.
pub struct partyline_registrar {
    _opaque: [u8; 0],
}

/// A registrar as C holds it: options first, then opened once.
pub(super) struct Holder {
    options: Mutex<RegistrarOptions>,
    opened: OnceLock<Arc<Bindings>>,
    birth: Birth,
}

impl Holder {
    pub(super) fn opened(&self) -> Result<Arc<Bindings>, Error> {
        self.birth.check("registrar")?;
        self.opened.get().cloned().ok_or_else(|| {
            Error::new(Code::State, "the registrar is not open yet: call partyline_registrar_open first")
        })
    }
}

pub(super) static REGISTRARS: HandleTable<Arc<Holder>> = HandleTable::new(Kind::Registrar);

/// What a handle stands for, once it is open.
#[cfg_attr(not(osip2), allow(dead_code, reason = "for partysip's room, which needs osip2"))]
pub(crate) fn opened(handle: *const partyline_registrar) -> Result<Arc<Bindings>, Error> {
    REGISTRARS.get(handle as usize)?.opened()
}

/// Makes a registrar with default options; nothing is opened. Free it with partyline_registrar_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_new(registrar: *mut *mut partyline_registrar) -> c_int {
    entry("partyline_registrar_new", || {
        // SAFETY: an out-parameter.
        let out = unsafe { ffi::out(registrar, "registrar") }?;
        let holder =
            Holder { options: Mutex::new(RegistrarOptions::default()), opened: OnceLock::new(), birth: Birth::here() };
        out.write(REGISTRARS.insert(Arc::new(holder)) as *mut partyline_registrar);
        Ok(PARTYLINE_OK)
    })
}

/// Sets an option by name ("mode", "expires.max", ...; docs/options.md), before partyline_registrar_open().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_set(
    registrar: *mut partyline_registrar,
    name: *const c_char,
    value: *const c_char,
) -> c_int {
    entry("partyline_registrar_set", || {
        let holder = REGISTRARS.get(registrar as usize)?;
        // SAFETY: two strings that live during the call.
        let (name, value) = unsafe { (ffi::text(name, "name")?, ffi::text(value, "value")?) };
        if holder.opened.get().is_some() {
            return Err(Error::new(Code::State, "the registrar is open: options are set before"));
        }
        engine::set_registrar_option(&mut holder.options.lock(), name, value)?;
        Ok(PARTYLINE_OK)
    })
}

/// Opens the store: "sqlite:/var/lib/sip/location.db", "mysql://user:password@host:3306/database", or "memory:" for none.
/// Creates the tables where they are missing, checks their version, starts the threads that write, and (option `preload`)
/// reads the bindings in. A MySQL database that is away is no error: it is reached later, see docs/storage.md. PARTYLINE_EDB:
/// it does not let us in, or a SQLite file cannot be opened; PARTYLINE_ESCHEMA: tables of an unknown version.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_open(registrar: *mut partyline_registrar, url: *const c_char) -> c_int {
    entry("partyline_registrar_open", || {
        let holder = REGISTRARS.get(registrar as usize)?;
        holder.birth.check("registrar")?;
        // SAFETY: a string that lives during the call.
        let url = unsafe { ffi::text(url, "url") }?;
        // The options' lock is held while it opens, so that two threads do not open it twice.
        let options = holder.options.lock();
        if holder.opened.get().is_some() {
            return Err(Error::new(Code::State, "the registrar is open already"));
        }
        let _ = holder.opened.set(engine::open_registrar(options.clone(), url)?);
        Ok(PARTYLINE_OK)
    })
}

/// Writes out what is not written yet (mode write_back) and waits for it, at most `timeout_ms` milliseconds. Returns how
/// many bindings are still unwritten, or a negative code.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_flush(registrar: *mut partyline_registrar, timeout_ms: u32) -> c_int {
    entry("partyline_registrar_flush", || {
        let registrar = REGISTRARS.get(registrar as usize)?.opened()?;
        let left = engine::flush(&registrar, Duration::from_millis(timeout_ms.into()));
        Ok(c_int::try_from(left).unwrap_or(c_int::MAX))
    })
}

/// Lets go of the registrar. Its threads end, after writing out what waits, when no engine uses it any more. NULL does
/// nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_free(registrar: *mut partyline_registrar) -> c_int {
    entry("partyline_registrar_free", || {
        if registrar.is_null() {
            return Ok(PARTYLINE_OK);
        }
        let holder = REGISTRARS.take(registrar as usize)?;
        if holder.birth.check("registrar").is_err() {
            // In a forked child the threads that a drop would join are not there: what it holds is left to the parent.
            std::mem::forget(holder);
        }
        Ok(PARTYLINE_OK)
    })
}

fn code(verdict: Verdict) -> c_int {
    match verdict {
        Verdict::Next => PARTYLINE_NEXT,
        Verdict::Done => PARTYLINE_DONE,
        Verdict::Pending => PARTYLINE_PENDING,
    }
}

/// For a plugin's callback: does for a REGISTER all of RFC 3261 section 10.3 and answers it, in the mode write_through after
/// the commit. Returns PARTYLINE_DONE; PARTYLINE_PENDING when the bindings have to be read from the database first: the
/// callback returns that, and is called again for the message when they are there; PARTYLINE_NEXT if the message is no
/// REGISTER; or a negative code. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_handle(
    registrar: *mut partyline_registrar,
    message: *mut partyline_message,
) -> c_int {
    entry("partyline_registrar_handle", || {
        let registrar = REGISTRARS.get(registrar as usize)?.opened()?;
        message::with(message, |m| m.register(&registrar)).map(code)
    })
}

/// For a plugin's callback: checks the user by the registrar's option `auth`: `none` lets everybody pass, `user` wants the
/// user in the table subscriber (else 404), `digest` wants credentials (else 401 with a challenge, 403). Returns
/// PARTYLINE_NEXT when the user may pass, PARTYLINE_DONE when the request was answered, PARTYLINE_PENDING when the user has
/// to be read from the database first: the callback returns that and is called again; or a negative code. Never waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_authorize(
    registrar: *mut partyline_registrar,
    message: *mut partyline_message,
) -> c_int {
    entry("partyline_registrar_authorize", || {
        let registrar = REGISTRARS.get(registrar as usize)?.opened()?;
        message::with(message, |m| m.authorize(&registrar)).map(code)
    })
}

/// Forgets what is cached about the user of an address-of-record ("sip:alice@example.test"), whose row in the table subscriber
/// has changed: a new password counts at once, and an old one no longer. From any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_forget_user(
    registrar: *mut partyline_registrar,
    aor: *const c_char,
) -> c_int {
    entry("partyline_registrar_forget_user", || {
        let registrar = REGISTRARS.get(registrar as usize)?.opened()?;
        // SAFETY: a string that lives during the call.
        let aor = unsafe { ffi::text(aor, "aor") }?;
        engine::forget_user(&registrar, aor)?;
        Ok(PARTYLINE_OK)
    })
}

/// One binding, as partyline_registrar_lookup() shows it. The strings end in NUL and live during the callback.
#[repr(C)]
pub struct partyline_binding {
    /// sizeof(partyline_binding), set by the library: a later library may append fields.
    pub size: usize,
    pub version: u32,
    /// Seconds until it ends.
    pub expires: u32,
    /// Preference, 0 to 1000.
    pub q: u32,
    pub cseq: u32,
    /// The contact's URI.
    pub contact: *const c_char,
    pub call_id: *const c_char,
    /// "" where there is none.
    pub user_agent: *const c_char,
    /// Where the REGISTER came from, if that differs from the contact: "sip:192.0.2.1:40000"; else "".
    pub received: *const c_char,
    /// Path header values; "" where there are none.
    pub path: *const c_char,
}

/// Sees one binding; 0 goes on, anything else ends the look-up.
pub type partyline_binding_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, binding: *const partyline_binding) -> c_int>;

/// Calls `callback` for each binding of an address-of-record ("sip:alice@example.test"), best q first. Returns how many it
/// was called for. Reads the database, and waits for it, if the cache does not know the address-of-record.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_registrar_lookup(
    registrar: *mut partyline_registrar,
    aor: *const c_char,
    callback: partyline_binding_callback,
    user: *mut c_void,
) -> c_int {
    entry("partyline_registrar_lookup", || {
        let registrar = REGISTRARS.get(registrar as usize)?.opened()?;
        // SAFETY: a string that lives during the call.
        let aor = unsafe { ffi::text(aor, "aor") }?;
        let callback = callback.ok_or_else(|| Error::invalid("callback is NULL"))?;
        // Copied first: the callback is not called while a shard is locked.
        let found = engine::lookup(&registrar, aor)?;
        let c = |bytes: &[u8]| CString::new(bytes.iter().copied().filter(|b| *b != 0).collect::<Vec<u8>>());
        let mut seen = 0;
        for b in &found {
            let (Ok(contact), Ok(call_id), Ok(user_agent), Ok(received), Ok(path)) =
                (c(&b.contact), c(&b.call_id), c(&b.user_agent), c(&b.received), c(&b.path))
            else {
                continue;
            };
            let binding = partyline_binding {
                size: size_of::<partyline_binding>(),
                version: 1,
                expires: b.expires_in,
                q: b.q,
                cseq: b.cseq,
                contact: contact.as_ptr(),
                call_id: call_id.as_ptr(),
                user_agent: user_agent.as_ptr(),
                received: received.as_ptr(),
                path: path.as_ptr(),
            };
            seen += 1;
            // SAFETY: the caller's function with the caller's user pointer; the strings live until the end of this turn.
            if unsafe { callback(user, &binding) } != 0 {
                break;
            }
        }
        Ok(seen)
    })
}
