//! One TCP connection over the port.
//!
//! ```text
//!  number   5      6      7
//!         [read] [here] [in flight]     receives carry the number under which they were started; what is dequeued out of
//!                                       order waits in its place until the one before it is there
//! ```
//! The owner reads and writes as on a non-blocking socket: reading takes from what has come, writing copies into an
//! operation; 'would block' is followed by a finding when that changes.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mio::Token;
use parking_lot::Mutex;
use windows_sys::Win32::Networking::WinSock::{
    SO_UPDATE_CONNECT_CONTEXT, SOL_SOCKET, TF_REUSE_SOCKET, WSAENOTCONN, WSAGetLastError, WSARecv, WSASend, send,
    setsockopt,
};

use super::Close;
use super::extension::Extensions;
use super::op::{Op, PIECE, Task};
use super::port::{Closed, Found, Port, raw};

/// Receives that the system has at a time.
const RECEIVES: usize = 2;
/// Bytes that may be on their way out; more gets 'would block'.
const SENDING: usize = 64 * 1024;
const NOWHERE: usize = usize::MAX;

/// See the module.
pub struct Tcp {
    /// Taken out once, to be used again.
    socket: std::net::TcpStream,
    port: Arc<Port>,
    token: AtomicUsize,
    state: Mutex<State>,
    /// Operations in flight.
    pending: AtomicUsize,
    closed: Closed,
    /// Whether the end has begun: DisconnectEx, or nothing.
    ending: AtomicBool,
    accepted: bool,
    keep: AtomicBool,
}

#[derive(Default)]
struct State {
    next_start: u64,
    next_read: u64,
    /// Where the receives in flight lie, by which they are called back; number n stands at n % RECEIVES.
    flying: [usize; RECEIVES],
    /// What has come and was not read yet: number n stands at n % RECEIVES.
    here: [Option<Arrival>; RECEIVES],
    /// The stream has ended, well or not; said again to whoever reads.
    ended: Option<Option<i32>>,
    sending: usize,
    /// The owner was told 'would block' and waits to hear more.
    blocked: bool,
    send_error: Option<i32>,
    connect_error: Option<i32>,
}

struct Arrival {
    number: u64,
    outcome: Result<Box<Op>, Option<i32>>,
    taken: usize,
}

impl Tcp {
    pub fn new(socket: std::net::TcpStream, port: &Arc<Port>, accepted: bool) -> Arc<Tcp> {
        Arc::new(Tcp {
            socket,
            port: Arc::clone(port),
            token: AtomicUsize::new(NOWHERE),
            state: Mutex::new(State::default()),
            pending: AtomicUsize::new(0),
            closed: Closed::not_yet(port),
            ending: AtomicBool::new(false),
            accepted,
            keep: AtomicBool::new(false),
        })
    }

    pub fn socket(&self) -> &std::net::TcpStream {
        &self.socket
    }

    /// From now on `token` is told what happens.
    pub fn begin(self: &Arc<Self>, token: Token) {
        self.token.store(token.0, Ordering::SeqCst);
        self.receive(&mut self.state.lock());
    }

    /// Starts the connection; writable when that is decided.
    pub fn connect(self: &Arc<Self>, token: Token, peer: SocketAddr) -> io::Result<()> {
        self.token.store(token.0, Ordering::SeqCst);
        let connect = Extensions::get()?.connect;
        let mut op = self.port.ops.take(0);
        op.set_address(peer);
        op.task = Task::Connect(Arc::clone(self));
        self.pending.fetch_add(1, Ordering::SeqCst);
        let socket = raw(&self.socket);
        self.port.start(op, |op| {
            let (address, len) = ((&raw const op.address).cast(), op.address_len);
            // SAFETY: a bound socket; the address lies in the operation, which the system has until it ends.
            let done = unsafe { connect(socket, address, len, null(), 0, null_mut(), &mut op.overlapped) };
            if done != 0 { 0 } else { -1 }
        })
    }

    pub fn connected(self: &Arc<Self>, outcome: io::Result<usize>, found: &mut dyn FnMut(Found)) {
        match outcome {
            Ok(_) => {
                // SAFETY: no option value; makes getpeername and shutdown work.
                unsafe { setsockopt(raw(&self.socket), SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, null(), 0) };
                self.receive(&mut self.state.lock());
            }
            Err(error) => self.state.lock().connect_error = Some(error.raw_os_error().unwrap_or(-1)),
        }
        self.find(false, true, found);
        self.landed();
    }

    /// Why it could not be connected; once.
    pub fn take_error(&self) -> Option<io::Error> {
        self.state.lock().connect_error.take().map(io::Error::from_raw_os_error)
    }

    /// Has the system receive into as many buffers as it should. Under the lock, so that numbers are given in the order
    /// in which the system gets them.
    fn receive(self: &Arc<Self>, state: &mut State) {
        while state.ended.is_none() && !self.closed.is_set() && state.next_start < state.next_read + RECEIVES as u64 {
            let number = state.next_start;
            state.next_start += 1;
            let mut op = self.port.ops.take(PIECE);
            op.task = Task::Recv(Arc::clone(self), number);
            op.flags = 0;
            state.flying[number as usize % RECEIVES] = (&raw const op.overlapped).addr();
            self.pending.fetch_add(1, Ordering::SeqCst);
            let socket = raw(&self.socket);
            let started = self.port.start(op, |op| {
                let buffer = op.wsabuf(PIECE);
                // SAFETY: all that the system writes to lies in the operation, which it has until it ends.
                unsafe { WSARecv(socket, &buffer, 1, null_mut(), &mut op.flags, &mut op.overlapped, None) }
            });
            if started.is_err() {
                // It ends through the port, with its number and its error.
                return;
            }
        }
    }

    pub fn received(
        self: Arc<Self>,
        mut op: Box<Op>,
        number: u64,
        outcome: io::Result<usize>,
        found: &mut dyn FnMut(Found),
    ) {
        let mut state = self.state.lock();
        state.flying[number as usize % RECEIVES] = 0;
        if self.closed.is_set() || state.ended.is_some() {
            self.port.ops.give(op);
        } else {
            let outcome = match outcome {
                Ok(0) => {
                    self.port.ops.give(op);
                    Err(None)
                }
                Ok(len) => {
                    op.len = len;
                    Ok(op)
                }
                Err(error) => {
                    self.port.ops.give(op);
                    Err(Some(error.raw_os_error().unwrap_or(-1)))
                }
            };
            state.here[number as usize % RECEIVES] = Some(Arrival { number, outcome, taken: 0 });
        }
        // Else the one before it will say so.
        let readable = state.next_is_here();
        drop(state);
        if readable {
            self.find(true, false, found);
        }
        self.landed();
    }

    pub fn read(self: &Arc<Self>, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut state = self.state.lock();
        let mut copied = 0;
        while copied < buffer.len() && state.ended.is_none() && state.next_is_here() {
            let place = state.next_read as usize % RECEIVES;
            let Some(Arrival { outcome, taken, .. }) = &mut state.here[place] else { break };
            match outcome {
                Ok(op) => {
                    let len = (op.len - *taken).min(buffer.len() - copied);
                    buffer[copied..copied + len].copy_from_slice(&op.buffer[*taken..*taken + len]);
                    copied += len;
                    *taken += len;
                    if *taken < op.len {
                        break;
                    }
                    if let Some(Arrival { outcome: Ok(op), .. }) = state.here[place].take() {
                        self.port.ops.give(op);
                    }
                    state.next_read += 1;
                    self.receive(&mut state);
                }
                Err(error) => state.ended = Some(*error),
            }
        }
        match state.ended {
            _ if copied > 0 => Ok(copied),
            None => Err(io::ErrorKind::WouldBlock.into()),
            Some(None) => Ok(0),
            Some(Some(error)) => Err(io::Error::from_raw_os_error(error)),
        }
    }

    pub fn write(self: &Arc<Self>, data: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if let Some(error) = state.send_error {
            return Err(io::Error::from_raw_os_error(error));
        }
        if state.sending >= SENDING {
            state.blocked = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = data.len().min(PIECE);
        let mut op = self.port.ops.take(len);
        op.buffer[..len].copy_from_slice(&data[..len]);
        op.task = Task::Send(Arc::clone(self), len);
        state.sending += len;
        self.pending.fetch_add(1, Ordering::SeqCst);
        let socket = raw(&self.socket);
        // Under the lock: two writers' pieces leave in the order in which they were taken.
        self.port.start(op, |op| {
            let buffer = op.wsabuf(len);
            // SAFETY: the buffer lies in the operation, which the system has until it ends.
            unsafe { WSASend(socket, &buffer, 1, null_mut(), 0, &mut op.overlapped, None) }
        })?;
        Ok(len)
    }

    pub fn sent(self: &Arc<Self>, len: usize, outcome: io::Result<usize>, found: &mut dyn FnMut(Found)) {
        let mut state = self.state.lock();
        state.sending -= len;
        if let Err(error) = outcome {
            state.send_error = Some(error.raw_os_error().unwrap_or(-1));
        }
        let writable = std::mem::take(&mut state.blocked);
        drop(state);
        if writable {
            self.find(false, true, found);
        }
        self.landed();
    }

    fn find(&self, readable: bool, writable: bool, found: &mut dyn FnMut(Found)) {
        let token = self.token.load(Ordering::SeqCst);
        if token != NOWHERE && !self.closed.is_set() {
            found(Found { token: Token(token), readable, writable });
        }
    }

    /// The end of what we say follows the sends in flight. The receiving side is closed for its owner alone: Winsock would
    /// reset the connection with the next byte that the peer sends, and what is still on its way to it would be lost.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Write {
            self.state.lock().ended.get_or_insert(None);
        }
        match how {
            Shutdown::Read => Ok(()),
            Shutdown::Write | Shutdown::Both => self.socket.shutdown(Shutdown::Write),
        }
    }

    /// An operation has ended; with the last one of a closed connection the socket is given back.
    fn landed(self: &Arc<Self>) {
        let last = self.pending.fetch_sub(1, Ordering::SeqCst) == 1;
        if !last || !self.closed.is_set() || self.ending.swap(true, Ordering::SeqCst) {
            return;
        }
        // Sockets that AcceptEx has filled can take part in it again.
        if !self.accepted || !self.port.wants_used() {
            return;
        }
        let Ok(extensions) = Extensions::get() else { return };
        let disconnect = extensions.disconnect;
        let mut op = self.port.ops.take(0);
        op.task = Task::Disconnect(Arc::clone(self));
        self.pending.fetch_add(1, Ordering::SeqCst);
        let socket = raw(&self.socket);
        // A refusal comes back through the port and closes the socket.
        let _ = self.port.start(op, |op| {
            // SAFETY: a connected socket on which nothing is in flight.
            let done = unsafe { disconnect(socket, &mut op.overlapped, TF_REUSE_SOCKET, 0) };
            if done != 0 { 0 } else { -1 }
        });
    }

    pub fn disconnected(self: Arc<Self>, outcome: io::Result<usize>) {
        self.pending.fetch_sub(1, Ordering::SeqCst);
        if outcome.is_ok() && self.is_fresh() {
            self.keep.store(self.port.wants_used(), Ordering::SeqCst);
        } else {
            self.port.reuse_failed(&outcome.err().unwrap_or_else(io::Error::last_os_error));
        }
        // This was the last operation, and the owner is gone: into_inner succeeds, or the owner is still in `close`, and
        // then the socket closes with it.
        if let Some(tcp) = Arc::into_inner(self) {
            tcp.give_back();
        }
    }

    /// Whether the socket is as if it were new. A system that calls DisconnectEx done without having done it (Wine 8) still
    /// has it shut down, and would lose the next peer.
    fn is_fresh(&self) -> bool {
        // SAFETY: no bytes are sent.
        let sent = unsafe { send(raw(&self.socket), null(), 0, 0) };
        // SAFETY: this thread's last error.
        sent != 0 && unsafe { WSAGetLastError() } == WSAENOTCONN
    }

    fn give_back(self) {
        if self.keep.load(Ordering::SeqCst) {
            self.port.give_used(self.socket.into());
        }
    }
}

impl State {
    fn next_is_here(&self) -> bool {
        matches!(&self.here[self.next_read as usize % RECEIVES], Some(arrival) if arrival.number == self.next_read)
    }
}

impl Close for Tcp {
    /// The owner lets go: receives are called back. What was written still leaves, as from other systems' buffers, if the
    /// peer takes it in time; the socket closes with the last of it.
    fn close(self: &Arc<Self>) {
        self.closed.close();
        let mut state = self.state.lock();
        for arrival in &mut state.here {
            if let Some(Arrival { outcome: Ok(op), .. }) = arrival.take() {
                self.port.ops.give(op);
            }
        }
        let (flying, sending) = (state.flying, state.sending > 0);
        drop(state);
        let socket = raw(&self.socket) as _;
        if sending && self.port.attended.load(Ordering::SeqCst) {
            for address in flying.into_iter().filter(|&address| address != 0) {
                self.port.cancel_one(socket, std::ptr::without_provenance(address));
            }
            self.port.cut_later(Arc::downgrade(self));
        } else {
            self.port.cancel(socket);
        }
        // As if one more had landed, for there may be none.
        self.pending.fetch_add(1, Ordering::SeqCst);
        self.landed();
        self.port.reap(|| self.pending.load(Ordering::SeqCst) == 0);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::super::Owned;
    use super::*;

    /// A connection whose first receives the test completes itself.
    fn connection(started: u64) -> (TcpStream, Owned<Tcp>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let port = Port::new().unwrap();
        // Closing takes its operations from the port itself.
        port.attended.store(false, Ordering::SeqCst);
        port.associate(raw(&socket) as _).unwrap();
        let tcp = Tcp::new(socket, &port, false);
        tcp.token.store(7, Ordering::SeqCst);
        tcp.pending.store(started as usize, Ordering::SeqCst);
        tcp.state.lock().next_start = started;
        (peer, Owned(tcp))
    }

    /// Number `number` ends; returns whether the owner hears of it.
    fn ends(tcp: &Arc<Tcp>, number: u64, outcome: io::Result<&[u8]>) -> bool {
        let mut op = tcp.port.ops.take(PIECE);
        if let Ok(data) = &outcome {
            op.buffer[..data.len()].copy_from_slice(data);
        }
        let mut heard = false;
        Arc::clone(tcp).received(op, number, outcome.map(<[u8]>::len), &mut |found| {
            assert!(found.token == Token(7) && found.readable);
            heard = true;
        });
        heard
    }

    fn reads(tcp: &Arc<Tcp>, most: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; most];
        let count = tcp.read(&mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }

    #[test]
    fn what_is_dequeued_out_of_order_is_read_in_order() {
        let (_peer, tcp) = connection(2);
        assert!(!ends(&tcp, 1, Ok(b"second")));
        assert_eq!(reads(&tcp, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(ends(&tcp, 0, Ok(b"first")));
        assert_eq!(reads(&tcp, 3).unwrap(), b"fir");
        assert_eq!(reads(&tcp, 4).unwrap(), b"stse");
        assert_eq!(reads(&tcp, 100).unwrap(), b"cond");
        assert_eq!(reads(&tcp, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_end_that_overtakes_data_waits_for_it() {
        let reset = windows_sys::Win32::Networking::WinSock::WSAECONNRESET;
        for (outcome, error) in [(Ok(b"".as_slice()), None), (Err(reset), Some(reset))] {
            let (_peer, tcp) = connection(2);
            assert!(!ends(&tcp, 1, outcome.map_err(io::Error::from_raw_os_error)));
            assert_eq!(reads(&tcp, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(ends(&tcp, 0, Ok(b"data")));
            assert_eq!(reads(&tcp, 100).unwrap(), b"data");
            // Said again to whoever reads.
            for _ in 0..2 {
                match (reads(&tcp, 100), error) {
                    (Ok(end), None) => assert!(end.is_empty()),
                    (Err(got), Some(code)) => assert_eq!(got.raw_os_error(), Some(code)),
                    (other, _) => panic!("{other:?}"),
                }
            }
        }
    }
}
