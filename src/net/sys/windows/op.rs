//! Operations: what the system works on, with the buffer and the object that it is for.
//!
//! ```text
//!   Ops (idle) ──take──► Op ──Port::start──► the system ──Port::wait──► complete ──► queue of its socket, or back
//! ```
//! An operation in flight belongs to the system and to nobody else. It comes back through the completion port, also
//! when it failed at once (`Port::start` posts it then), so there is one place where operations end: `Op::complete`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use socket2::SockAddr;
use windows_sys::Win32::Networking::WinSock::{SOCKADDR_STORAGE, WSABUF};
use windows_sys::Win32::System::IO::OVERLAPPED;

use super::accept::{Listener, Premade};
use super::port::Found;
use super::tcp::Tcp;
use super::udp::Udp;

/// A buffer for any datagram, and one byte by which a longer one is known.
pub const DATAGRAM: usize = 65_536;
/// A buffer for streams and for all common datagrams to be sent.
pub const PIECE: usize = 4096;
/// Idle operations kept per size.
const KEPT: [usize; 2] = [4096, 256];

/// What an operation is for. It keeps the socket's object alive until the system is done.
pub enum Task {
    Idle,
    UdpRecv(Arc<Udp>),
    UdpSend(Arc<Udp>),
    Recv(Arc<Tcp>, u64),
    Send(Arc<Tcp>, usize),
    Connect(Arc<Tcp>),
    Disconnect(Arc<Tcp>),
    Accept(Arc<Listener>, Premade),
}

/// See the module.
#[repr(C)]
pub struct Op {
    /// First: the system gives its address back.
    pub overlapped: OVERLAPPED,
    pub task: Task,
    pub buffer: Box<[u8]>,
    /// The system reads and writes these while it works, so they live here and not on anybody's stack.
    pub address: SOCKADDR_STORAGE,
    pub address_len: i32,
    pub flags: u32,
    /// Bytes that came.
    pub len: usize,
    /// Why it could not be started; 0 once it was.
    pub refused: i32,
}

// SAFETY: the pointers in OVERLAPPED and SOCKADDR_STORAGE are the system's while in flight and unused otherwise.
unsafe impl Send for Op {}

impl Op {
    fn new(size: usize) -> Box<Op> {
        Box::new(Op {
            overlapped: OVERLAPPED::default(),
            task: Task::Idle,
            buffer: vec![0; size].into_boxed_slice(),
            address: SOCKADDR_STORAGE::default(),
            address_len: 0,
            flags: 0,
            len: 0,
            refused: 0,
        })
    }

    /// The first `len` bytes of the buffer, as the system takes them.
    pub fn wsabuf(&mut self, len: usize) -> WSABUF {
        let len = len.min(self.buffer.len());
        WSABUF { len: len as u32, buf: self.buffer.as_mut_ptr() }
    }

    pub fn set_address(&mut self, to: SocketAddr) {
        let address = SockAddr::from(to);
        // SAFETY: SockAddr's storage is that many bytes, at most a SOCKADDR_STORAGE, of which any bytes are valid.
        unsafe {
            let from = address.as_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(from, (&raw mut self.address).cast(), address.len() as usize);
        }
        self.address_len = address.len();
    }

    /// The address that the system has filled in.
    pub fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: the closure copies a whole storage, and says how much of it is meant.
        let address = unsafe {
            SockAddr::try_init(|storage, len| {
                std::ptr::copy_nonoverlapping(
                    (&raw const self.address).cast::<u8>(),
                    storage.cast(),
                    size_of::<SOCKADDR_STORAGE>(),
                );
                *len = self.address_len;
                Ok(())
            })
        };
        address.ok()?.1.as_socket()
    }

    /// The system is done with this one: to its socket's queue, or back to the idle ones.
    pub fn complete(mut self: Box<Self>, outcome: io::Result<usize>, ops: &Ops, found: &mut dyn FnMut(Found)) {
        match std::mem::replace(&mut self.task, Task::Idle) {
            Task::Idle => ops.give(self),
            Task::UdpRecv(udp) => udp.received(self, outcome, found),
            Task::UdpSend(udp) => {
                ops.give(self);
                udp.sent(outcome);
            }
            Task::Recv(tcp, number) => tcp.received(self, number, outcome, found),
            Task::Send(tcp, len) => {
                ops.give(self);
                tcp.sent(len, outcome, found);
            }
            Task::Connect(tcp) => {
                ops.give(self);
                tcp.connected(outcome, found);
            }
            Task::Disconnect(tcp) => {
                ops.give(self);
                tcp.disconnected(outcome);
            }
            Task::Accept(listener, premade) => {
                ops.give(self);
                listener.arrived(premade, outcome, found);
            }
        }
    }
}

/// Operations that nobody uses, of two sizes, and how many the system has.
#[derive(Default)]
pub struct Ops {
    idle: [Mutex<Vec<Box<Op>>>; 2],
    pub in_flight: AtomicUsize,
}

impl Ops {
    /// One whose buffer holds `len` bytes (at most [`DATAGRAM`]).
    pub fn take(&self, len: usize) -> Box<Op> {
        let size = usize::from(len > PIECE);
        self.idle[size].lock().pop().unwrap_or_else(|| Op::new([PIECE, DATAGRAM][size]))
    }

    pub fn give(&self, mut op: Box<Op>) {
        op.task = Task::Idle;
        op.overlapped = OVERLAPPED::default();
        op.refused = 0;
        let size = usize::from(op.buffer.len() > PIECE);
        let mut idle = self.idle[size].lock();
        if idle.len() < KEPT[size] {
            idle.push(op);
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }
}
