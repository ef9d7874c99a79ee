//! Connections, for a program that brings its own protocol or wants to watch: six callbacks, and what may be done with the
//! connection that they are given.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use parking_lot::Mutex;

use super::engine::{engine, partyline_engine};
use super::plugin::{PARTYLINE_DONE, PARTYLINE_NEXT, PARTYLINE_PENDING};
use super::{PARTYLINE_OK, copy_out};
use crate::engine::{Watchers, not_sent};
use crate::ffi::{self, Code, Error, HandleTable, Kind, entry};
use crate::net::{CloseReason, Conn, CustomFramer, Framing, StreamEvents, Taken};

/// A TCP or TLS connection.
pub struct partyline_connection {
    _opaque: [u8; 0],
}

/// Why a connection has ended: its peer closed it.
pub const PARTYLINE_CLOSED_PEER: c_int = 1;
/// The peer or the network broke it.
pub const PARTYLINE_CLOSED_RESET: c_int = 2;
/// It could not be opened.
pub const PARTYLINE_CLOSED_CONNECT_FAILED: c_int = 3;
/// Opening it took longer than `tcp.connect_limit`.
pub const PARTYLINE_CLOSED_CONNECT_TIMEOUT: c_int = 4;
/// Nothing came within `tcp.first_bytes`.
pub const PARTYLINE_CLOSED_SILENT_TOO_LONG: c_int = 5;
/// A message took longer than `tcp.message_limit`.
pub const PARTYLINE_CLOSED_MESSAGE_TOO_SLOW: c_int = 6;
/// Nothing came for `tcp.idle`.
pub const PARTYLINE_CLOSED_IDLE: c_int = 7;
/// The peer did not read what was sent to it.
pub const PARTYLINE_CLOSED_SLOW_READER: c_int = 8;
/// No message could be found in what came.
pub const PARTYLINE_CLOSED_FRAMING: c_int = 9;
/// This program closed it, or stopped its engine.
pub const PARTYLINE_CLOSED_LOCAL: c_int = 10;
/// The TLS handshake failed, or a record could not be read.
pub const PARTYLINE_CLOSED_TLS: c_int = 11;
/// The TLS handshake took longer than `tls.handshake_limit`.
pub const PARTYLINE_CLOSED_TLS_TOO_SLOW: c_int = 12;

// A number that drifted would not compile.
const _: () = {
    assert!(PARTYLINE_CLOSED_PEER == CloseReason::Peer as c_int);
    assert!(PARTYLINE_CLOSED_RESET == CloseReason::Reset as c_int);
    assert!(PARTYLINE_CLOSED_CONNECT_FAILED == CloseReason::ConnectFailed as c_int);
    assert!(PARTYLINE_CLOSED_CONNECT_TIMEOUT == CloseReason::ConnectTimeout as c_int);
    assert!(PARTYLINE_CLOSED_SILENT_TOO_LONG == CloseReason::SilentTooLong as c_int);
    assert!(PARTYLINE_CLOSED_MESSAGE_TOO_SLOW == CloseReason::MessageTooSlow as c_int);
    assert!(PARTYLINE_CLOSED_IDLE == CloseReason::Idle as c_int);
    assert!(PARTYLINE_CLOSED_SLOW_READER == CloseReason::SlowReader as c_int);
    assert!(PARTYLINE_CLOSED_FRAMING == CloseReason::Framing as c_int);
    assert!(PARTYLINE_CLOSED_LOCAL == CloseReason::Local as c_int);
    assert!(PARTYLINE_CLOSED_TLS == CloseReason::Tls as c_int);
    assert!(PARTYLINE_CLOSED_TLS_TOO_SLOW == CloseReason::TlsTooSlow as c_int);
};

/// A connection is there: accepted, or opened by this program. The first call for a connection.
pub type partyline_connected = Option<unsafe extern "C" fn(user: *mut c_void, connection: *mut partyline_connection)>;
/// It has ended, for one of PARTYLINE_CLOSED_*. The last call for a connection, also for one that could not be opened.
pub type partyline_disconnected =
    Option<unsafe extern "C" fn(user: *mut c_void, connection: *mut partyline_connection, reason: c_int)>;
/// A system call on it failed with `error` (errno), or its stream could not be followed (`error` 0). `text` is valid
/// during the call.
pub type partyline_failed = Option<
    unsafe extern "C" fn(user: *mut c_void, connection: *mut partyline_connection, error: c_int, text: *const c_char),
>;
/// A whole message came; its bytes are valid during the call and end with no NUL. Returns PARTYLINE_NEXT: it is handled
/// as SIP; PARTYLINE_DONE: it is done with; PARTYLINE_PENDING: as DONE, and this program will answer it with
/// partyline_connection_send(), so the connection stays open for that when its peer has closed its side.
pub type partyline_received = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        connection: *mut partyline_connection,
        bytes: *const c_char,
        length: usize,
    ) -> c_int,
>;
/// The system has taken so many bytes more.
pub type partyline_sent =
    Option<unsafe extern "C" fn(user: *mut c_void, connection: *mut partyline_connection, bytes: usize)>;
/// Finds the end of a message, in place of SIP's framing. `bytes` begin where a message begins. Returns its length (1 to
/// `length`), 0 if more has to come first, or a negative number: this is no message, the connection is closed. It is
/// asked again with what it has seen already and more. A message longer than `max_message` closes the connection.
pub type partyline_framing = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        connection: *mut partyline_connection,
        bytes: *const c_char,
        length: usize,
    ) -> i64,
>;

/// Who watches an engine's connections. Set all to zero first, then `size`; any callback may be NULL.
///
/// All are called on the engine's threads (those that partyline_engine_stop() ends on the thread that stops): for one
/// connection one at a time, in the order in which things happened; for several connections at once. They may block:
/// that costs one thread and holds up nothing but their connection. What another thread does (a send, a close) is told by
/// an engine's thread afterwards.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct partyline_watch {
    /// sizeof(partyline_watch).
    pub size: usize,
    /// 1.
    pub version: u32,
    pub connected: partyline_connected,
    pub disconnected: partyline_disconnected,
    pub error: partyline_failed,
    pub received: partyline_received,
    pub sent: partyline_sent,
    /// NULL: SIP's framing.
    pub framing: partyline_framing,
    /// Passed to the callbacks. It has to live until partyline_engine_free().
    pub user: *mut c_void,
}

/// A connection as C holds it: by the library from its first callback to the end of its last, by the program as often as
/// it says.
struct Connection {
    conn: Conn,
    held: Mutex<Held>,
    user: AtomicPtr<c_void>,
}

struct Held {
    ours: bool,
    theirs: u32,
}

static CONNECTIONS: HandleTable<Arc<Connection>> = HandleTable::new(Kind::Connection);

/// The handle of a connection; made when the first callback is due. Called by who handles the connection, one at a time.
fn handle(conn: &Conn) -> *mut partyline_connection {
    let mut tag = conn.tag();
    if tag == 0 {
        tag = CONNECTIONS.insert(Arc::new(Connection {
            conn: conn.clone(),
            held: Mutex::new(Held { ours: true, theirs: 0 }),
            user: AtomicPtr::new(ptr::null_mut()),
        }));
        conn.set_tag(tag);
    }
    tag as *mut partyline_connection
}

struct Watch(partyline_watch);

// SAFETY: the user pointer is never used here, only handed back to the program's functions, which the header says are
// called on any of the engine's threads.
unsafe impl Send for Watch {}
// SAFETY: as for Send.
unsafe impl Sync for Watch {}

impl StreamEvents for Watch {
    fn connected(&self, conn: &Conn) {
        let handle = handle(conn);
        if let Some(call) = self.0.connected {
            // SAFETY: function and user pointer belong together (partyline_engine_watch); the handle is looked up when it
            // comes back. The same in the calls below.
            unsafe { call(self.0.user, handle) };
        }
    }

    fn disconnected(&self, conn: &Conn, reason: CloseReason) {
        let handle = handle(conn);
        if let Some(call) = self.0.disconnected {
            // SAFETY: as in connected().
            unsafe { call(self.0.user, handle, reason as c_int) };
        }
        if let Ok(connection) = CONNECTIONS.get(handle as usize) {
            let unused = {
                let mut held = connection.held.lock();
                held.ours = false;
                held.theirs == 0
            };
            if unused {
                let _ = CONNECTIONS.take(handle as usize);
            }
        }
    }

    fn error(&self, conn: &Conn, error: &io::Error) {
        if let Some(call) = self.0.error {
            let handle = handle(conn);
            let text = CString::new(error.to_string()).unwrap_or_default();
            // SAFETY: as in connected(); the text lives until the call returns.
            unsafe { call(self.0.user, handle, error.raw_os_error().unwrap_or(0), text.as_ptr()) };
        }
    }

    fn received(&self, conn: &Conn, message: &[u8]) -> Taken {
        let Some(call) = self.0.received else { return Taken::Pass };
        // SAFETY: as in connected(); the bytes live until the call returns.
        match unsafe { call(self.0.user, handle(conn), message.as_ptr().cast(), message.len()) } {
            PARTYLINE_NEXT => Taken::Pass,
            PARTYLINE_DONE => Taken::Done,
            PARTYLINE_PENDING => Taken::Owed,
            other => {
                tracing::warn!(code = other, "`received` returned a code that is none of NEXT, DONE, PENDING");
                Taken::Done
            }
        }
    }

    fn sent(&self, conn: &Conn, bytes: usize) {
        if let Some(call) = self.0.sent {
            // SAFETY: as in connected().
            unsafe { call(self.0.user, handle(conn), bytes) };
        }
    }
}

impl CustomFramer for Watch {
    fn frame(&self, conn: &Conn, data: &[u8]) -> Framing {
        let Some(call) = self.0.framing else { return Framing::Refused };
        // SAFETY: as in StreamEvents::received().
        match unsafe { call(self.0.user, handle(conn), data.as_ptr().cast(), data.len()) } {
            0 => Framing::More,
            length => match usize::try_from(length) {
                Ok(length) if length <= data.len() => Framing::Message(length),
                _ => Framing::Refused,
            },
        }
    }
}

fn connection(handle: *const partyline_connection) -> Result<Arc<Connection>, Error> {
    CONNECTIONS.get(handle as usize)
}

/// Has an engine's connections watched, before partyline_engine_start(). The struct is copied. PARTYLINE_EINVAL: a size
/// or version that is not known, no callback at all; PARTYLINE_ESTATE: somebody watches already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_watch(engine: *mut partyline_engine, watch: *const partyline_watch) -> c_int {
    entry("partyline_engine_watch", || {
        let engine = self::engine(engine)?;
        if watch.is_null() {
            return Err(Error::invalid("watch is NULL"));
        }
        // SAFETY: not NULL, and its first field can be read whatever the version.
        let size = unsafe { (*watch).size };
        if size != size_of::<partyline_watch>() {
            let known = size_of::<partyline_watch>();
            return Err(Error::invalid(format!("watch.size is {size}, this library knows {known}")));
        }
        // SAFETY: it has the size of the struct, so it was compiled against this header.
        let watch = unsafe { watch.read() };
        if watch.version != 1 {
            return Err(Error::invalid(format!("watch.version is {}, this library knows 1", watch.version)));
        }
        let watches = watch.connected.is_some()
            || watch.disconnected.is_some()
            || watch.error.is_some()
            || watch.received.is_some()
            || watch.sent.is_some()
            || watch.framing.is_some();
        if !watches {
            return Err(Error::invalid("watch has no callback"));
        }
        let frames = watch.framing.is_some();
        let watch = Arc::new(Watch(watch));
        engine.watch(Watchers {
            framer: frames.then(|| Arc::clone(&watch) as Arc<dyn CustomFramer>),
            events: Some(watch),
        })?;
        Ok(PARTYLINE_OK)
    })
}

/// Sends bytes over a connection, behind what was sent before. What the system does not take at once waits, up to the
/// option `tcp.outbound`; never blocks. From any thread, in any callback. PARTYLINE_EIO: the connection has closed;
/// PARTYLINE_EFULL: its peer reads too slowly, and it is being closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_connection_send(
    connection: *mut partyline_connection,
    bytes: *const c_char,
    length: usize,
) -> c_int {
    entry("partyline_connection_send", || {
        let connection = self::connection(connection)?;
        // SAFETY: `bytes` has `length` bytes, as the comment says.
        let bytes = unsafe { ffi::bytes(bytes.cast(), length, "bytes") }?;
        if bytes.is_empty() {
            return Err(Error::invalid("there is nothing to send"));
        }
        connection.conn.send(bytes).map_err(|why| not_sent(connection.conn.peer(), why))?;
        Ok(PARTYLINE_OK)
    })
}

/// Closes a connection; what waits to be sent is lost. `disconnected` follows, on one of the engine's threads. Closing
/// one that has closed is no error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_connection_close(connection: *mut partyline_connection) -> c_int {
    entry("partyline_connection_close", || {
        self::connection(connection)?.conn.disconnect();
        Ok(PARTYLINE_OK)
    })
}

/// The peer's address, as text with a NUL ("127.0.0.1", "::1"), and its port (may be NULL). PARTYLINE_ETOOSMALL: 46 bytes
/// are always enough.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_connection_peer(
    connection: *mut partyline_connection,
    host: *mut c_char,
    capacity: usize,
    port: *mut u16,
) -> c_int {
    entry("partyline_connection_peer", || {
        let peer = self::connection(connection)?.conn.peer();
        // SAFETY: `host` holds `capacity` bytes, as the comment says.
        unsafe { copy_out(peer.ip().to_string().as_bytes(), host, capacity, ptr::null_mut()) }?;
        // SAFETY: NULL, or an out-parameter.
        if let Some(port) = unsafe { port.as_mut() } {
            *port = peer.port();
        }
        Ok(PARTYLINE_OK)
    })
}

/// Holds a connection's handle, once more at each call: it stays valid, and no other connection gets it, until
/// partyline_connection_free() was called as often. Without that a handle is valid from `connected` until `disconnected`
/// has returned. A held connection closes like any other: sending then gives PARTYLINE_EIO.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_connection_hold(connection: *mut partyline_connection) -> c_int {
    entry("partyline_connection_hold", || {
        let connection = self::connection(connection)?;
        let mut held = connection.held.lock();
        if !held.ours && held.theirs == 0 {
            return Err(Error::invalid("the connection's handle is not valid any more"));
        }
        held.theirs = held.theirs.checked_add(1).ok_or_else(|| Error::new(Code::Full, "held too often"))?;
        Ok(PARTYLINE_OK)
    })
}

/// Lets a handle go that partyline_connection_hold() has held. Does not close the connection. NULL does nothing.
/// PARTYLINE_EINVAL: it is not held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_connection_free(connection: *mut partyline_connection) -> c_int {
    entry("partyline_connection_free", || {
        if connection.is_null() {
            return Ok(PARTYLINE_OK);
        }
        let known = self::connection(connection)?;
        let unused = {
            let mut held = known.held.lock();
            held.theirs = held.theirs.checked_sub(1).ok_or_else(|| Error::invalid("the connection is not held"))?;
            held.theirs == 0 && !held.ours
        };
        if unused {
            let _ = CONNECTIONS.take(connection as usize);
        }
        Ok(PARTYLINE_OK)
    })
}

/// Leaves a pointer of the program's with the connection; the library does not look at it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_connection_set_user(
    connection: *mut partyline_connection,
    user: *mut c_void,
) -> c_int {
    entry("partyline_connection_set_user", || {
        self::connection(connection)?.user.store(user, Ordering::Release);
        Ok(PARTYLINE_OK)
    })
}

/// The pointer that was left with the connection; NULL at first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_connection_user(
    connection: *mut partyline_connection,
    user: *mut *mut c_void,
) -> c_int {
    entry("partyline_connection_user", || {
        // SAFETY: an out-parameter, as the comment says.
        let out = unsafe { ffi::out(user, "user") }?;
        out.write(self::connection(connection)?.user.load(Ordering::Acquire));
        Ok(PARTYLINE_OK)
    })
}

/// Reads the certificate files of the engine's TLS addresses again (options `tls.certificate`, `tls.key`), and those for the
/// TLS connections that it opens (`tls.client.*`); connections that are opened from now on get the new ones, nothing
/// restarts. PARTYLINE_ECONFIG: they cannot be used, and the old ones stay; PARTYLINE_ESTATE: the engine has neither.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn partyline_engine_reload_certificates(engine: *mut partyline_engine) -> c_int {
    entry("partyline_engine_reload_certificates", || {
        self::engine(engine)?.reload_certificates()?;
        Ok(PARTYLINE_OK)
    })
}
