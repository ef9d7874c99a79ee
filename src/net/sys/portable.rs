//! The contract over mio alone: one system call per datagram, no packet information. For every system without a file of
//! its own, and for tests that compare.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::polling::UdpSocket;
use super::{Datagram, Os, Outgoing, Received, RecvSlots, SendSlots};

/// See the module.
pub struct Portable;

impl Os for Portable {
    type Recv = Slots;
    type Send = Sender;

    fn enable_pktinfo(_: &socket2::Socket, _: bool) -> io::Result<bool> {
        Ok(false)
    }

    #[cfg(unix)]
    fn share_port(socket: &socket2::Socket) -> io::Result<()> {
        socket.set_reuse_port(true)
    }

    #[cfg(not(unix))]
    fn share_port(_: &socket2::Socket) -> io::Result<()> {
        // Windows' SO_REUSEADDR lets a second socket steal the port instead of sharing it.
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system cannot share one port between sockets"))
    }

    fn own_groups_only(_: &socket2::Socket) -> io::Result<()> {
        // Elsewhere than on Linux that is how sockets are.
        Ok(())
    }

    fn receive_drops(_: &UdpSocket) -> Option<u64> {
        None
    }

    fn wait_writable(_: &UdpSocket, _: Duration) {
        std::thread::yield_now();
    }
}

/// Slots in one allocation; `filled` has what landed in each.
pub struct Slots {
    memory: Vec<u8>,
    slot_len: usize,
    slots: usize,
    filled: Vec<(usize, SocketAddr)>,
}

impl RecvSlots for Slots {
    fn new(slots: usize, slot_len: usize) -> Self {
        // One byte more than promised per slot: a datagram that reaches it was too long, which recv_from does not say.
        Slots { memory: vec![0; slots * (slot_len + 1)], slot_len, slots, filled: Vec::with_capacity(slots) }
    }

    fn recv(&mut self, socket: &UdpSocket) -> io::Result<Received> {
        self.filled.clear();
        let mut received = Received { count: 0, bytes: 0, truncated: 0, drained: false };
        for slot in self.memory.chunks_exact_mut(self.slot_len + 1).take(self.slots) {
            let got = loop {
                match socket.recv_from(slot) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            match got {
                Ok((len, peer)) => {
                    self.filled.push((len, peer));
                    received.count += 1;
                    received.bytes += len.min(self.slot_len) as u64;
                    received.truncated += u64::from(len > self.slot_len);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    received.drained = true;
                    break;
                }
                // Reported again, or gone, when the rest is read.
                Err(_) if received.count > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(received)
    }

    fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let limit = self.slot_len;
        self.memory.chunks_exact_mut(limit + 1).zip(&self.filled).map(move |(slot, &(len, peer))| Datagram {
            data: &mut slot[..len.min(limit)],
            peer,
            local: None,
            truncated: len > limit,
        })
    }
}

impl Slots {
    /// The datagrams of the last read are gone.
    #[cfg(windows)]
    pub fn forget(&mut self) {
        self.filled.clear();
    }
}

/// Sends one by one; has nothing to keep.
pub struct Sender;

impl SendSlots for Sender {
    fn new(_: usize) -> Self {
        Sender
    }

    fn send(&mut self, socket: &UdpSocket, arena: &[u8], batch: &[Outgoing]) -> io::Result<usize> {
        for (i, out) in batch.iter().enumerate() {
            let data = &arena[out.start as usize..(out.start + out.len) as usize];
            match socket.send_to(data, out.to) {
                Ok(_) => {}
                Err(e) if i == 0 => return Err(e),
                Err(_) => return Ok(i),
            }
        }
        Ok(batch.len())
    }
}
