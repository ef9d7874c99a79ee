//! What libpsp_udp.so needs beyond `partyline.h`: datagrams that leave with others.
//!
//! While a turn of the loops runs, what its thread sends is collected, and leaves when the turn ends or 64 are there;
//! without such a turn (partysip not relinked) each datagram leaves at once.

use std::cell::RefCell;
use std::net::SocketAddr;

use super::counts::{COUNTS, bump};
use crate::engine::Engine;
use crate::ffi::Error;
use crate::net::{SendBatch, UdpRoute};

struct Collected {
    /// How deep turns are nested; 0: none.
    open: u32,
    batch: Option<SendBatch>,
}

thread_local! {
    static COLLECTED: RefCell<Collected> = const { RefCell::new(Collected { open: 0, batch: None }) };
}

/// A turn begins on this thread.
pub fn begin() {
    COLLECTED.with_borrow_mut(|collected| collected.open += 1);
}

/// It has ended.
pub fn end() {
    COLLECTED.with_borrow_mut(|collected| {
        collected.open = collected.open.saturating_sub(1);
        if collected.open == 0 {
            if let Some(batch) = collected.batch.as_mut().filter(|batch| !batch.is_empty()) {
                bump(&COUNTS.batches);
                batch.flush();
            }
        }
    });
}

/// Sends a datagram from the engine's listener of the peer's address family. Delivery is not confirmed.
pub fn send(engine: &Engine, peer: SocketAddr, bytes: &[u8]) -> Result<(), Error> {
    bump(&COUNTS.datagrams);
    let collect = COLLECTED.with_borrow(|collected| collected.open > 0);
    if !collect {
        return engine.send_datagram(peer, bytes);
    }
    let listener = engine.datagram_listener(peer)?;
    COLLECTED.with_borrow_mut(|collected| {
        let batch = collected.batch.get_or_insert_with(SendBatch::new);
        batch.push_udp(&listener, &UdpRoute { peer, local: None }, |arena| arena.extend_from_slice(bytes));
    });
    Ok(())
}
