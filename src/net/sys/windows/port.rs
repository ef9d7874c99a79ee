//! The completion port: where operations end and from where the leader takes them, many at a time.
//!
//! Only the thread that leads waits here. Windows wakes the thread that waited last; with one waiter that is the
//! leader, and the followers are the scheduler's.

use std::io;
use std::os::windows::io::{AsRawSocket, OwnedSocket, RawSocket};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mio::Token;
use parking_lot::Mutex;
use windows_sys::Win32::Foundation::{
    CloseHandle, GetLastError, HANDLE, INVALID_HANDLE_VALUE, NTSTATUS, RtlNtStatusToDosError, WAIT_TIMEOUT,
};
use windows_sys::Win32::Networking::WinSock::{WSA_IO_PENDING, WSAGetLastError};
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, GetQueuedCompletionStatusEx, OVERLAPPED, OVERLAPPED_ENTRY,
    PostQueuedCompletionStatus,
};

use super::op::{Op, Ops};
use super::tcp::Tcp;

/// Completions taken in one call.
const ENTRIES: usize = 256;
/// How long a socket that closes waits for its operations when nobody else takes them from the port any more.
const REAP: Duration = Duration::from_secs(2);
/// How long a socket rests on which an operation failed at once.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a closed connection may take to send what it has.
const LINGER: Duration = Duration::from_secs(20);
/// Sockets kept to be used again.
const REUSE: usize = 1024;

/// What a completion means to the reactor.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub token: Token,
    pub readable: bool,
    pub writable: bool,
}

/// See the module. Shared by everything that has operations on it.
pub struct Port {
    handle: HANDLE,
    pub ops: Ops,
    /// Somebody waits here, or will: operations that end are taken.
    pub attended: AtomicBool,
    /// Sockets that DisconnectEx gave back; they are associated with this port already.
    reuse: Mutex<Vec<OwnedSocket>>,
    /// False once the system has shown that it does not take them back.
    reuse_works: AtomicBool,
    pub reused: AtomicU64,
    pub send_errors: AtomicU64,
    /// Sockets that are closed, with operations that have not ended.
    pub leaving: AtomicUsize,
    later: Mutex<Todo>,
    has_later: AtomicBool,
}

#[derive(Default)]
struct Todo {
    list: Vec<(Instant, Later)>,
    /// Not before then, however often the leader comes by.
    next_look: Option<Instant>,
}

/// What is done after a while by whoever waits.
enum Later {
    /// A socket on which nothing could be started is tried again.
    Find(Token),
    /// A closed connection whose peer does not take what was sent is cut off.
    Cut(Weak<Tcp>),
    /// An operation that was refused, and that the port would not take either.
    Complete(Box<Op>),
}

/// A socket's mark that its owner is gone. It counts as leaving from then until its object is dropped, which is when the
/// last operation has ended.
pub struct Closed {
    port: Arc<Port>,
    closed: AtomicBool,
}

impl Closed {
    pub fn not_yet(port: &Arc<Port>) -> Closed {
        Closed { port: Arc::clone(port), closed: AtomicBool::new(false) }
    }

    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            self.port.leaving.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub fn is_set(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        if self.is_set() {
            self.port.leaving.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

// SAFETY: a completion port is made to be used from several threads.
unsafe impl Send for Port {}
// SAFETY: as above.
unsafe impl Sync for Port {}

impl Port {
    pub fn new() -> io::Result<Arc<Port>> {
        // SAFETY: makes a new port.
        let handle = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, null_mut(), 0, 0) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(Arc::new(Port {
            handle,
            ops: Ops::default(),
            attended: AtomicBool::new(true),
            reuse: Mutex::new(Vec::new()),
            reuse_works: AtomicBool::new(true),
            reused: AtomicU64::new(0),
            send_errors: AtomicU64::new(0),
            leaving: AtomicUsize::new(0),
            later: Mutex::new(Todo::default()),
            has_later: AtomicBool::new(false),
        }))
    }

    /// The socket's operations end here from now on, once and for all.
    pub fn associate(&self, socket: RawSocket) -> io::Result<()> {
        // SAFETY: the caller's socket and our port.
        let got = unsafe { CreateIoCompletionPort(socket as usize as HANDLE, self.handle, 0, 0) };
        if got.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Ends the current wait, or the next one.
    pub fn wake(&self) -> io::Result<()> {
        // SAFETY: a completion without an operation.
        let posted = unsafe { PostQueuedCompletionStatus(self.handle, 0, 0, null()) };
        if posted == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Hands `op` to the system by `call`, whose answer is Winsock's (0, or an error that WSAGetLastError has). An error
    /// other than 'pending' is returned, and the operation comes back through the port all the same.
    pub fn start(&self, op: Box<Op>, call: impl FnOnce(&mut Op) -> i32) -> io::Result<()> {
        self.ops.in_flight.fetch_add(1, Ordering::SeqCst);
        let op = Box::into_raw(op);
        // SAFETY: ours until the call is made. It may be done and gone when the call returns, which `call` knows: it
        // touches nothing afterwards.
        if call(unsafe { &mut *op }) == 0 {
            return Ok(());
        }
        // SAFETY: this thread's last error.
        let error = unsafe { WSAGetLastError() };
        if error == WSA_IO_PENDING {
            return Ok(());
        }
        // SAFETY: refused, so the system does not have it, and nothing will come for it but what is posted here.
        unsafe {
            (*op).refused = error;
            if PostQueuedCompletionStatus(self.handle, 0, 0, (&raw const (*op).overlapped).cast()) == 0 {
                self.remember(AGAIN, Later::Complete(Box::from_raw(op)));
            }
        }
        Err(io::Error::from_raw_os_error(error))
    }

    /// Asks the system to give up what it does on a socket; each operation still ends through the port.
    pub fn cancel(&self, socket: RawSocket) {
        self.cancel_one(socket, null());
    }

    /// The same for one operation; null: for all of them. The address is compared and not looked into.
    pub fn cancel_one(&self, socket: RawSocket, overlapped: *const OVERLAPPED) {
        // SAFETY: the caller's socket; where nothing is in flight it fails, which is what was wanted.
        unsafe { CancelIoEx(socket as usize as HANDLE, overlapped) };
    }

    /// Has the socket of `token` found after a while, so that it tries again what failed. At once, it would spin.
    pub fn retry(&self, token: Token) {
        self.remember(AGAIN, Later::Find(token));
    }

    /// Cuts a closed connection off if its sends have not ended by then.
    pub fn cut_later(&self, tcp: Weak<Tcp>) {
        self.remember(LINGER, Later::Cut(tcp));
    }

    fn remember(&self, wait: Duration, what: Later) {
        let mut later = self.later.lock();
        if let Later::Find(token) = &what {
            if later.list.iter().any(|(_, known)| matches!(known, Later::Find(known) if known == token)) {
                return;
            }
        }
        later.list.push((Instant::now() + wait, what));
        // The leader may be asleep with a longer timeout.
        if !self.has_later.swap(true, Ordering::SeqCst) {
            let _ = self.wake();
        }
    }

    fn do_what_is_due(&self, now: Instant, found: &mut dyn FnMut(Found)) {
        let mut later = self.later.lock();
        if later.next_look.is_some_and(|at| now < at) {
            return;
        }
        later.next_look = Some(now + AGAIN);
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut later.list)
            .into_iter()
            .filter(|(_, what)| !matches!(what, Later::Cut(tcp) if tcp.strong_count() == 0))
            .partition(|(at, _)| *at <= now);
        later.list = rest;
        self.has_later.store(!later.list.is_empty(), Ordering::SeqCst);
        // What is done now may ask for more later.
        drop(later);
        for (_, what) in due {
            match what {
                Later::Find(token) => found(Found { token, readable: true, writable: false }),
                Later::Cut(tcp) => {
                    if let Some(tcp) = tcp.upgrade() {
                        self.cancel(raw(tcp.socket()) as _);
                    }
                }
                Later::Complete(op) => self.end(op, 0, found),
            }
        }
    }

    /// Cuts off what would be cut off later.
    pub fn cut_all(&self) {
        self.do_what_is_due(Instant::now() + LINGER + AGAIN, &mut |_| {});
    }

    /// Waits for completions, at most `timeout` (`None`: without limit), and completes what came.
    pub fn wait(&self, timeout: Option<Duration>, found: &mut dyn FnMut(Found)) -> io::Result<usize> {
        let timeout = match self.has_later.load(Ordering::SeqCst) {
            true => Some(timeout.map_or(AGAIN, |limit| limit.min(AGAIN))),
            false => timeout,
        };
        // Rounded up, so that a short wait does not become none and spin.
        let millis = timeout.map_or(u32::MAX, |limit| {
            u32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX - 1).min(u32::MAX - 1)
        });
        let mut entries = [OVERLAPPED_ENTRY::default(); ENTRIES];
        let mut count = 0;
        // SAFETY: room for that many entries.
        let got = unsafe {
            GetQueuedCompletionStatusEx(self.handle, entries.as_mut_ptr(), ENTRIES as u32, &mut count, millis, 0)
        };
        // SAFETY: this thread's last error.
        let error = unsafe { GetLastError() };
        if self.has_later.load(Ordering::SeqCst) {
            self.do_what_is_due(Instant::now(), found);
        }
        if got == 0 {
            return if error == WAIT_TIMEOUT { Ok(0) } else { Err(io::Error::from_raw_os_error(error as i32)) };
        }
        for entry in &entries[..count as usize] {
            if entry.lpOverlapped.is_null() {
                continue;
            }
            // SAFETY: only `start` hands operations out, each comes back once, and OVERLAPPED is its first field.
            let op = unsafe { Box::from_raw(entry.lpOverlapped.cast::<Op>()) };
            self.end(op, entry.dwNumberOfBytesTransferred as usize, found);
        }
        Ok(count as usize)
    }

    /// The one place where operations end: that of the thread that took the completion.
    fn end(&self, op: Box<Op>, bytes: usize, found: &mut dyn FnMut(Found)) {
        self.ops.in_flight.fetch_sub(1, Ordering::SeqCst);
        let outcome = match (op.refused, op.overlapped.Internal as NTSTATUS) {
            (0, 0) => Ok(bytes),
            // SAFETY: maps one number to another.
            (0, status) => Err(io::Error::from_raw_os_error(unsafe { RtlNtStatusToDosError(status) } as i32)),
            (refused, _) => Err(io::Error::from_raw_os_error(refused)),
        };
        op.complete(outcome, &self.ops, found);
    }

    /// For a socket that closes when the reactor is gone: takes what ends until `done`, so that nothing stays behind.
    pub fn reap(&self, done: impl Fn() -> bool) {
        if self.attended.load(Ordering::SeqCst) {
            return;
        }
        let until = Instant::now() + REAP;
        while !done() && Instant::now() < until {
            if self.wait(Some(Duration::from_millis(20)), &mut |_| {}).is_err() {
                return;
            }
        }
    }

    /// A socket for the next AcceptEx that was used before.
    pub fn take_used(&self) -> Option<OwnedSocket> {
        let socket = self.reuse.lock().pop()?;
        self.reused.fetch_add(1, Ordering::Relaxed);
        Some(socket)
    }

    pub fn wants_used(&self) -> bool {
        self.attended.load(Ordering::SeqCst)
            && self.reuse_works.load(Ordering::Relaxed)
            && self.reuse.lock().len() < REUSE
    }

    pub fn give_used(&self, socket: OwnedSocket) {
        self.reuse.lock().push(socket);
    }

    /// The system did not take a used socket: none will be offered again.
    pub fn reuse_failed(&self, error: &io::Error) {
        if self.reuse_works.swap(false, Ordering::Relaxed) {
            tracing::info!(%error, "this system does not take closed sockets back (TF_REUSE_SOCKET): new ones are made");
        }
        self.reuse.lock().clear();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // SAFETY: the last one: every operation in flight holds a socket's object, which holds this.
        unsafe { CloseHandle(self.handle) };
    }
}

/// The number that the system knows a socket by.
pub fn raw(socket: &impl AsRawSocket) -> usize {
    socket.as_raw_socket() as usize
}
