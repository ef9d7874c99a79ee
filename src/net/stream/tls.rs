//! TLS under a stream connection (RFC 3261 section 26.2.1): rustls without buffers of its own.
//!
//! ```text
//!  socket ─▶ wire (the reader's buffer) ─ digest ─▶ ring ─▶ framer          partial: the begun record, if any
//!  send ─▶ seal, in the order of the output queue ─▶ queue ─▶ socket        outgoing: records that reading has made
//! ```
//! Promises:
//! - Between messages a connection keeps its keys and nothing else: no plaintext, no record buffer.
//! - Records leave in the order in which they were sealed: who seals holds the lock of the output queue, and first takes
//!   what reading has left in `outgoing`.
//! - Certificates are read again by [`TlsServer::reload`]; connections that are there keep theirs.
//!
//! Both ends are the same from here on; how a connection that is opened from here knows its peer stands in `tls_client`.

use std::fmt;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};

use super::conn::Conn;
use super::output::SendFailed;
use super::table::flag;
use crate::net::sys::polling;

/// What a record's header, padding and seal may add to its contents.
const OVERHEAD: usize = 64;
/// Contents of one record (RFC 8446 section 5.1).
const RECORD: usize = 16_384;

/// The files of a server's certificate, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that lead to a root, the server's own first.
    pub certificate: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// What a TLS listener shows its peers.
pub struct TlsServer {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TlsServer {
    /// Reads the files; the error says which of them is wrong, and how.
    pub fn open(files: TlsFiles) -> io::Result<Arc<TlsServer>> {
        let config = RwLock::new(read(&files)?);
        Ok(Arc::new(TlsServer { files, config }))
    }

    /// Reads the files again, for connections from now on. On an error everything stays as it is.
    pub fn reload(&self) -> io::Result<()> {
        let fresh = read(&self.files)?;
        *self.config.write() = fresh;
        Ok(())
    }

    pub(super) fn session(&self) -> io::Result<Box<Tls>> {
        let session = UnbufferedServerConnection::new(Arc::clone(&self.config.read())).map_err(io::Error::other)?;
        Ok(Box::new(Tls::new(Session::Server(session))))
    }
}

/// A file that cannot be used.
pub(super) fn wrong_file(what: &str, path: &Path, why: &dyn fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} {}: {why}", path.display()))
}

/// All certificates of a file in PEM, at least one.
pub(super) fn certificates(what: &str, path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let read = read.map_err(|e| wrong_file(what, path, &e))?;
    if read.is_empty() {
        return Err(wrong_file(what, path, &"it holds no certificate in PEM"));
    }
    Ok(read)
}

fn read(files: &TlsFiles) -> io::Result<Arc<ServerConfig>> {
    let bad_key = |why: &dyn fmt::Display| wrong_file("key file", &files.key, why);
    let certificates = certificates("certificate file", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| bad_key(&e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|e| bad_key(&e))?;
    Ok(Arc::new(config))
}

/// Which end of the connection this is; rustls has a type for each.
pub(super) enum Session {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What both ends can do.
trait End {
    type Data;
    fn process<'c, 'i>(&'c mut self, wire: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn wants_to_write(&self) -> bool;
}

impl End for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, wire: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(wire)
    }
    fn wants_to_write(&self) -> bool {
        self.wants_write()
    }
}

impl End for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, wire: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(wire)
    }
    fn wants_to_write(&self) -> bool {
        self.wants_write()
    }
}

/// One connection's side of TLS.
pub(in crate::net) struct Tls {
    session: Session,
    flow: Flow,
}

/// What is on its way between the session, the reader and the output queue.
#[derive(Default)]
struct Flow {
    partial: Vec<u8>,
    outgoing: Vec<u8>,
    /// To be sealed when the handshake has ended.
    early: Vec<u8>,
    ready: bool,
    /// Broken: nothing is sealed any more.
    failed: bool,
}

/// What the peer's records meant.
struct Digest {
    /// The peer has said that nothing more comes.
    ended: bool,
    failed: Option<rustls::Error>,
}

impl Tls {
    pub(super) fn new(session: Session) -> Tls {
        Tls { session, flow: Flow::default() }
    }

    /// Something is to be sent when the handshake has ended.
    pub(super) fn waits(&self) -> bool {
        !self.flow.failed && !self.flow.early.is_empty()
    }

    fn digest(&mut self, wire: &mut Vec<u8>, sink: impl FnMut(&[u8])) -> Digest {
        match &mut self.session {
            Session::Server(end) => self.flow.digest(end, wire, sink),
            Session::Client(end) => self.flow.digest(end, wire, sink),
        }
    }

    fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        match &mut self.session {
            Session::Server(end) => self.flow.seal(end, plain, out),
            Session::Client(end) => self.flow.seal(end, plain, out),
        }
    }

    fn goodbye(&mut self) -> Vec<u8> {
        match &mut self.session {
            Session::Server(end) => self.flow.goodbye(end),
            Session::Client(end) => self.flow.goodbye(end),
        }
    }
}

impl Flow {
    /// Reads whole records from `wire` and takes them out of it; contents go to `sink`.
    fn digest<E: End>(&mut self, end: &mut E, wire: &mut Vec<u8>, mut sink: impl FnMut(&[u8])) -> Digest {
        let mut used = 0;
        let mut digest = Digest { ended: false, failed: None };
        loop {
            let UnbufferedStatus { discard, state } = end.process(&mut wire[used..]);
            used += discard;
            let more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        used += record.discard;
                        sink(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |room| data.encode(room));
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    self.ready = true;
                    let early = mem::take(&mut self.early);
                    if !early.is_empty() && !seal(&mut traffic, &early, &mut self.outgoing) {
                        digest.failed = Some(rustls::Error::EncryptError);
                    }
                    false
                }
                Ok(ConnectionState::BlockedHandshake) => false,
                Ok(ConnectionState::PeerClosed) => {
                    digest.ended = true;
                    true
                }
                Ok(_) => {
                    digest.ended = true;
                    false
                }
                Err(error) => {
                    digest.failed = Some(error);
                    false
                }
            };
            if !more {
                break;
            }
        }
        wire.drain(..used.min(wire.len()));
        if digest.failed.is_some() {
            self.failed = true;
            self.take_alerts(end);
        }
        digest
    }

    /// After an error: what tells the peer of it. Nothing more is read, for rustls does not expect that after an alert.
    fn take_alerts<E: End>(&mut self, end: &mut E) {
        while end.wants_to_write() {
            match end.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut self.outgoing, |room| data.encode(room)),
                _ => break,
            }
        }
    }

    /// Seals `plain` behind what reading has left, at the end of `out`. False: nothing can be sent any more.
    fn seal<E: End>(&mut self, end: &mut E, plain: &[u8], out: &mut Vec<u8>) -> bool {
        self.take_outgoing(out);
        if self.failed {
            return false;
        }
        if !self.ready {
            self.early.extend_from_slice(plain);
            return true;
        }
        loop {
            // What is read has been digested, so this only asks for the right to write.
            let UnbufferedStatus { discard, state } = end.process(&mut self.partial);
            let sealed = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(seal(&mut traffic, plain, out)),
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(out, |room| data.encode(room));
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => None,
                _ => Some(false),
            };
            self.partial.drain(..discard.min(self.partial.len()));
            if let Some(sealed) = sealed {
                return sealed;
            }
        }
    }

    fn take_outgoing(&mut self, out: &mut Vec<u8>) {
        // The memory goes with it: nothing of it stays with an idle connection.
        let made = mem::take(&mut self.outgoing);
        if out.is_empty() {
            *out = made;
        } else {
            out.extend_from_slice(&made);
        }
    }

    /// A record that says that nothing more comes.
    fn goodbye<E: End>(&mut self, end: &mut E) -> Vec<u8> {
        let mut out = Vec::new();
        if self.ready && !self.failed {
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) = end.process(&mut self.partial).state {
                out.resize(OVERHEAD, 0);
                let written = traffic.queue_close_notify(&mut out).unwrap_or(0);
                out.truncate(written);
            }
        }
        out
    }
}

fn encode(out: &mut Vec<u8>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let start = out.len();
    let mut room = 4096;
    loop {
        out.resize(start + room, 0);
        match encode(&mut out[start..]) {
            Ok(written) => return out.truncate(start + written),
            Err(EncodeError::InsufficientSize(needs)) if needs.required_size > room => room = needs.required_size,
            Err(_) => return out.truncate(start),
        }
    }
}

fn seal<D>(traffic: &mut WriteTraffic<'_, D>, plain: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let mut room = plain.len() + (plain.len() / RECORD + 1) * OVERHEAD;
    loop {
        out.resize(start + room, 0);
        match traffic.encrypt(plain, &mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return true;
            }
            Err(EncryptError::InsufficientSize(needs)) if needs.required_size > room => room = needs.required_size,
            Err(_) => {
                out.truncate(start);
                return false;
            }
        }
    }
}

/// What one read of the socket brought.
pub(super) struct Pulled {
    /// Bytes for the framer.
    pub bytes: usize,
    /// The socket had less than there was room for.
    pub short: bool,
    pub ended: bool,
}

impl Conn {
    pub(super) fn is_secure(&self) -> bool {
        self.slot().flags.load(Ordering::SeqCst) & flag::SECURE != 0
    }

    pub(super) fn is_shaking(&self) -> bool {
        self.slot().flags.load(Ordering::SeqCst) & flag::SHAKING != 0
    }

    /// Reads records, with `wire` as the buffer, and gives what is in them to `sink`.
    pub(super) fn pull_tls(
        &self,
        wire: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
        sink: impl FnMut(&[u8]),
    ) -> io::Result<Pulled> {
        const ROOM: usize = RECORD + 512;
        let slot = self.slot();
        let mut guard = slot.tls.lock();
        let Some(tls) = guard.as_deref_mut() else { return Err(io::ErrorKind::WouldBlock.into()) };
        wire.clear();
        wire.extend_from_slice(&tls.flow.partial);
        let kept = wire.len();
        wire.resize(kept + ROOM, 0);
        let count = read(&mut wire[kept..])?;
        wire.truncate(kept + count);
        let mut bytes = 0;
        let mut sink = sink;
        let digest = tls.digest(wire, |plain| {
            bytes += plain.len();
            sink(plain);
        });
        // As much as there is of the record that has begun, and no more.
        tls.flow.partial = wire.as_slice().into();
        let (ready, answers) = (tls.flow.ready, !tls.flow.outgoing.is_empty());
        drop(guard);
        if answers {
            self.flush_tls();
        }
        if let Some(error) = digest.failed {
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if ready && self.is_shaking() {
            slot.flags.fetch_and(!flag::SHAKING, Ordering::SeqCst);
            self.handshake_ended();
        }
        Ok(Pulled { bytes, short: count < ROOM, ended: digest.ended || count == 0 })
    }

    /// The other end has been reached: this one, which opened the connection, says hello.
    pub(super) fn greet(&self) {
        if let Some(tls) = self.slot().tls.lock().as_deref_mut() {
            // Nothing can be wrong yet: nothing was read.
            tls.digest(&mut Vec::new(), |_| {});
        }
        self.flush_tls();
    }

    /// Puts `plain` into the output queue as records; how many bytes they are. Full: more than `bound` waits for the
    /// handshake already.
    pub(super) fn seal_into(&self, plain: &[u8], queue: &mut Vec<u8>, bound: usize) -> Result<usize, SendFailed> {
        let before = queue.len();
        let mut guard = self.slot().tls.lock();
        let tls = guard.as_deref_mut().ok_or(SendFailed::Closed)?;
        if tls.flow.early.len() > bound {
            return Err(SendFailed::Full);
        }
        if !tls.seal(plain, queue) {
            return Err(SendFailed::Closed);
        }
        Ok(queue.len() - before)
    }

    /// Sends what reading has made: handshake, alerts.
    fn flush_tls(&self) {
        let chunk = {
            let mut output = self.slot().output.lock();
            let idle = output.queue_for_records(|queue| {
                if let Some(tls) = self.slot().tls.lock().as_deref_mut() {
                    tls.flow.take_outgoing(queue);
                }
            });
            match idle {
                Some(chunk) => chunk,
                None => return,
            }
        };
        self.write_out(chunk);
    }

    /// Tells the peer that nothing more comes, if that can be done at once.
    pub(super) fn say_goodbye(&self) {
        let slot = self.slot();
        let Some(output) = slot.output.try_lock() else { return };
        if !output.is_idle() {
            return;
        }
        let record = slot.tls.try_lock().and_then(|mut tls| tls.as_deref_mut().map(Tls::goodbye)).unwrap_or_default();
        if let Some(stream) = &*slot.stream.read() {
            // It is a courtesy: the peer sees the end of the connection in any case.
            let _ = polling::write(stream, &record);
        }
    }
}
