//! Messages: what a plugin's callback may ask and say, in the callback or later.
//!
//! A `partyline_message *` is a token. In a callback it names the exchange that the calling thread has in hand; after
//! partyline_message_defer() it is the handle of a kept copy. Neither is ever dereferenced as the pointer it looks like.

use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::engine::{engine, partyline_engine};
use super::plugin::{PARTYLINE_DONE, PARTYLINE_NEXT};
use super::{PARTYLINE_OK, copy_out};
use crate::engine::{Exchange, Ticket, UriOf, Verdict};
use crate::ffi::{self, Code, Error, HandleTable, Kind, entry};

/// A request or response in the hands of a plugin.
pub struct partyline_message {
    _opaque: [u8; 0],
}

pub(super) static TICKETS: HandleTable<Arc<Ticket>> = HandleTable::new(Kind::Ticket);

thread_local! {
    static CURRENT: Cell<(usize, *mut Exchange<'static>)> = const { Cell::new((0, ptr::null_mut())) };
    static TOKENS: Cell<usize> = Cell::new(first_token());
}

/// Bit 0 and a top byte that no handle kind has, the thread's number above its own count: a token that outlives its
/// callback matches neither a later callback nor another thread's.
fn first_token() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    (0x4d << 56) | ((THREADS.fetch_add(1, Ordering::Relaxed) & 0xf_ffff) << 36) | 1
}

/// Calls `callback` with a token for `exchange`.
pub(super) fn lend<R>(exchange: &mut Exchange<'_>, callback: impl FnOnce(*mut partyline_message) -> R) -> R {
    struct Restore((usize, *mut Exchange<'static>));
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let token = TOKENS.get();
    TOKENS.set((token & !0xf_ffff_ffff) | (token.wrapping_add(2) & 0xf_ffff_ffff) | 1);
    let _restore = Restore(CURRENT.replace((token, ptr::from_mut(exchange).cast())));
    callback(token as *mut partyline_message)
}

/// Runs `body` on the exchange that the token names.
pub(super) fn with<R>(
    message: *const partyline_message,
    body: impl FnOnce(&mut Exchange<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    let (token, exchange) = CURRENT.get();
    if !message.is_null() && token == message as usize {
        // While the body runs no second call can reach the same exchange through its token.
        CURRENT.set((0, ptr::null_mut()));
        // SAFETY: lend() stored this pointer on this thread and takes it back before the exchange's borrow ends; by the
        // line above there is no second reference. The lifetime is cut to this call.
        let result = body(unsafe { &mut *exchange });
        CURRENT.set((token, exchange));
        return result;
    }
    match TICKETS.get(message as usize) {
        Ok(ticket) => ticket.with(body),
        Err(_) if message.is_null() => Err(Error::invalid("message is NULL")),
        Err(_) => Err(Error::invalid(
            "message is not valid here: it is used after its callback, on another thread, or was finished already",
        )),
    }
}

/// Hands a part of the message to the caller.
unsafe fn give(part: &[u8], bytes: *mut *const c_char, length: *mut usize) -> Result<c_int, Error> {
    // SAFETY: out-parameters, by the callers' comments.
    let (bytes, length) = unsafe { (ffi::out(bytes, "bytes")?, ffi::out(length, "length")?) };
    bytes.write(part.as_ptr().cast());
    length.write(part.len());
    Ok(PARTYLINE_OK)
}

/// The request's method, "REGISTER". As with all parts of a message: `bytes` receives a pointer into the message, without
/// a NUL at the end, valid as long as the message; PARTYLINE_ENOTFOUND: the message has no such part (a response has no
/// method).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_method(
    message: *mut partyline_message,
    bytes: *mut *const c_char,
    length: *mut usize,
) -> c_int {
    entry("partyline_message_method", || {
        with(message, |m| {
            let part = m.method().ok_or_else(absent("a response has no method"))?;
            // SAFETY: out-parameters, as the comment says (the same in the functions below).
            unsafe { give(part, bytes, length) }
        })
    })
}

/// The request URI.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_uri(
    message: *mut partyline_message,
    bytes: *mut *const c_char,
    length: *mut usize,
) -> c_int {
    entry("partyline_message_uri", || {
        with(message, |m| {
            let part = m.uri().ok_or_else(absent("a response has no request URI"))?;
            // SAFETY: as in partyline_message_method.
            unsafe { give(part, bytes, length) }
        })
    })
}

/// The value of header line number `index` (from 0) among those with this name, compact forms included; `name` in any
/// case. Folded lines come with their line breaks overwritten by spaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_header(
    message: *mut partyline_message,
    name: *const c_char,
    index: usize,
    bytes: *mut *const c_char,
    length: *mut usize,
) -> c_int {
    entry("partyline_message_header", || {
        // SAFETY: a string that lives during the call.
        let name = unsafe { ffi::text(name, "name") }?;
        // SAFETY: as in partyline_message_method.
        with(message, |m| unsafe {
            let value = m.header(name.as_bytes(), index);
            give(value.ok_or_else(absent("the message has no header of that name and index"))?, bytes, length)
        })
    })
}

/// The parts of a URI, pointers into the message with their lengths; an absent part is NULL, 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct partyline_uri {
    /// sizeof(partyline_uri), set by the caller.
    pub size: usize,
    pub scheme: *const c_char,
    pub scheme_length: usize,
    pub user: *const c_char,
    pub user_length: usize,
    /// An IPv6 address with its brackets.
    pub host: *const c_char,
    pub host_length: usize,
    /// 0 where none is written.
    pub port: u16,
}

/// The request URI.
pub const PARTYLINE_URI_REQUEST: c_int = 0;
/// The URI of the To header.
pub const PARTYLINE_URI_TO: c_int = 1;
/// The URI of the From header.
pub const PARTYLINE_URI_FROM: c_int = 2;

/// Takes one of the message's URIs apart; `which` is PARTYLINE_URI_REQUEST and so on, and `uri->size` is set by the caller.
/// PARTYLINE_ENOTFOUND: there is none, or it cannot be read. Of a URI that is neither sip nor sips only the scheme is
/// given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_uri_parts(
    message: *mut partyline_message,
    which: c_int,
    uri: *mut partyline_uri,
) -> c_int {
    entry("partyline_message_uri_parts", || {
        if uri.is_null() {
            return Err(Error::invalid("uri is NULL"));
        }
        // SAFETY: not NULL, and the caller has set its first field.
        let size = unsafe { (*uri).size };
        if size != size_of::<partyline_uri>() {
            let known = size_of::<partyline_uri>();
            return Err(Error::invalid(format!("uri.size is {size}, this library knows {known}")));
        }
        with(message, |m| {
            let (what, text) = match which {
                PARTYLINE_URI_REQUEST => ("there is no request URI, or it cannot be read", m.uri_parts(UriOf::Request)),
                PARTYLINE_URI_TO => ("the URI in To cannot be read", m.uri_parts(UriOf::To)),
                PARTYLINE_URI_FROM => ("the URI in From cannot be read", m.uri_parts(UriOf::From)),
                other => return Err(Error::invalid(format!("which is {other}"))),
            };
            let parts = text.ok_or_else(absent(what))?;
            let part =
                |bytes: &[u8]| if bytes.is_empty() { (ptr::null(), 0) } else { (bytes.as_ptr().cast(), bytes.len()) };
            let [scheme, user, host] = [parts.scheme, parts.user, parts.host].map(part);
            // SAFETY: the caller's struct has the size of ours.
            unsafe {
                uri.write(partyline_uri {
                    size,
                    scheme: scheme.0,
                    scheme_length: scheme.1,
                    user: user.0,
                    user_length: user.1,
                    host: host.0,
                    host_length: host.1,
                    port: parts.port,
                });
            }
            Ok(PARTYLINE_OK)
        })
    })
}

/// The body; length 0 if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_body(
    message: *mut partyline_message,
    bytes: *mut *const c_char,
    length: *mut usize,
) -> c_int {
    // SAFETY: as in partyline_message_method.
    entry("partyline_message_body", || with(message, |m| unsafe { give(m.body(), bytes, length) }))
}

/// The whole message as it came, but for folded lines; what osip_message_parse() takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_text(
    message: *mut partyline_message,
    bytes: *mut *const c_char,
    length: *mut usize,
) -> c_int {
    // SAFETY: as in partyline_message_method.
    entry("partyline_message_text", || with(message, |m| unsafe { give(m.raw(), bytes, length) }))
}

/// Where the message came from: the numeric address into `host` (46 bytes are always enough), the port into `port` (may
/// be NULL).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_source(
    message: *mut partyline_message,
    host: *mut c_char,
    capacity: usize,
    port: *mut u16,
) -> c_int {
    entry("partyline_message_source", || {
        with(message, |m| {
            let source = m.source();
            // SAFETY: `host` holds `capacity` bytes, as the comment says.
            unsafe { copy_out(source.ip().to_string().as_bytes(), host, capacity, ptr::null_mut()) }?;
            // SAFETY: NULL, or an out-parameter.
            if let Some(port) = unsafe { port.as_mut() } {
                *port = source.port();
            }
            Ok(PARTYLINE_OK)
        })
    })
}

/// Answers a request: Via (with received and rport), From, To (with a tag), Call-ID and CSeq come from it. `reason` NULL:
/// the status code's own phrase. `headers` NULL, or lines that each end in CRLF. `body` of `length` bytes may be NULL, 0.
/// The answer leaves with the batch of the calling thread, or at once where there is none. A message is answered once:
/// PARTYLINE_ESTATE for a second final answer. A deferred message is finished by its final answer: the handle is not
/// valid any more. PARTYLINE_EINVAL: a status outside 100 to 699, a header line that does not end, a response.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_reply(
    message: *mut partyline_message,
    status: c_int,
    reason: *const c_char,
    headers: *const c_char,
    body: *const c_char,
    length: usize,
) -> c_int {
    entry("partyline_reply", || {
        let status = u16::try_from(status)
            .ok()
            .filter(|s| (100..=699).contains(s))
            .ok_or_else(|| Error::invalid(format!("status {status} is not one from 100 to 699")))?;
        // SAFETY: NULL or strings that live during the call.
        let (reason, headers) = unsafe {
            (
                if reason.is_null() { None } else { Some(ffi::text(reason, "reason")?) },
                if headers.is_null() { "" } else { ffi::text(headers, "headers")? },
            )
        };
        // SAFETY: `body` has `length` bytes, as the comment says.
        let body = unsafe { ffi::bytes(body.cast(), length, "body") }?;
        with(message, |m| m.reply(status, reason, headers.as_bytes(), body))?;
        if status >= 200 {
            // A deferred message ends here; one of a callback is not in the table.
            let _ = TICKETS.take(message as usize);
        }
        Ok(PARTYLINE_OK)
    })
}

/// Keeps a copy of the message for later. The callback then returns PARTYLINE_PENDING. `later` is valid on any thread; it
/// has to be finished by a final partyline_reply(), by partyline_message_resume() or by partyline_message_drop().
/// PARTYLINE_EFULL: as many are kept as the option `deferred_limit` allows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_defer(
    message: *mut partyline_message,
    later: *mut *mut partyline_message,
) -> c_int {
    entry("partyline_message_defer", || {
        // SAFETY: an out-parameter.
        let out = unsafe { ffi::out(later, "later") }?;
        if TICKETS.get(message as usize).is_ok() {
            return Err(Error::new(Code::State, "this message is deferred already"));
        }
        let ticket = with(message, |m| m.defer())?;
        let handle = TICKETS.insert(Arc::clone(&ticket));
        ticket.set_name(handle);
        out.write(handle as *mut partyline_message);
        Ok(PARTYLINE_OK)
    })
}

/// Finishes a deferred message as its callback would have: `verdict` PARTYLINE_NEXT passes it on to the next plugin,
/// PARTYLINE_DONE ends it. The handle is not valid any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_resume(later: *mut partyline_message, verdict: c_int) -> c_int {
    entry("partyline_message_resume", || {
        let verdict = match verdict {
            PARTYLINE_NEXT => Verdict::Next,
            PARTYLINE_DONE => Verdict::Done,
            other => {
                return Err(Error::invalid(format!("verdict {other} is neither PARTYLINE_NEXT nor PARTYLINE_DONE")));
            }
        };
        TICKETS.take(later as usize)?.resume(verdict)?;
        Ok(PARTYLINE_OK)
    })
}

/// Lets go of a deferred message without an answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_message_drop(later: *mut partyline_message) -> c_int {
    // SAFETY: a handle, which may be anything.
    unsafe { partyline_message_resume(later, PARTYLINE_DONE) }
}

/// Sends bytes as they are: to "udp:192.0.2.1:5060" from the engine's first UDP listener; to "tcp:192.0.2.1:5060" over an
/// open connection with that peer, whoever opened it, else over a new one; to "tls:192.0.2.1:5061;domain=example.org" over
/// one that was opened for that domain, else over a new one on which the peer has to show a certificate of example.org
/// (options `tls.client.*`; without a domain: a certificate of the address). The address is numeric: nothing here looks up
/// names. Waits for nothing, and delivery is not confirmed. PARTYLINE_EFULL: the peer has not read as much as the option
/// `tcp.outbound` allows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_send(
    engine: *mut partyline_engine,
    address: *const c_char,
    bytes: *const c_char,
    length: usize,
) -> c_int {
    entry("partyline_send", || {
        let engine = self::engine(engine)?;
        // SAFETY: a string and a byte range that live during the call.
        let (address, bytes) = unsafe { (ffi::text(address, "address")?, ffi::bytes(bytes.cast(), length, "bytes")?) };
        engine.send(address, bytes)?;
        Ok(PARTYLINE_OK)
    })
}

/// Static texts, for plugins ask for headers that are mostly not there.
fn absent(text: &'static str) -> impl Fn() -> Error {
    move || Error::new(Code::NotFound, text)
}
