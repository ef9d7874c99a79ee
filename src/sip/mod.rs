//! SIP messages as bytes: a view in place, addresses and URIs, responses, digest authentication. Knows no sockets and no
//! storage.
//!
//! Promises to the rooms above: nothing allocates; nothing panics on any input; every cost is linear in the bytes given
//! (comparing two URIs: in their product for at most 32 parameters); values borrow from the receive buffer, so a view
//! costs no copy. SIP is bytes, not UTF-8: names and values are `&[u8]`.
//!
//! ```text
//! match Message::parse(&mut buf) {                       // unfolds lines in place, checks what section 8.1.1 requires
//!     Ok(request) => {
//!         request.start()                                // Request { method, uri } | Response { status, reason }
//!         request.via()?.reply_to(source)                // where the answer goes (RFC 3261 18.2.2, RFC 3581)
//!         AorKey::new(&request.to()?.parsed_uri()?)?     // the AOR's key (10.3 step 5), inline, no allocation
//!         for contact in request.contacts() {            // all values of all Contact lines
//!             match contact? { Contact::Star => .., Contact::Address(c) => (c.uri, c.expires, c.q, c.instance) }
//!         }
//!         a.uri.matches(&b.uri)                          // RFC 3261 19.1.4
//!         let mut response = Response::new(out, &request, 200, Some(source), &tags);
//!         response.line(HeaderName::Contact, |out| { out.put(..).put_number(60); });
//!         response.finish()                              // Some(bytes), None when it did not fit
//!     }
//!     Err(ParseError::KeepAlive) => {}                   // drop
//!     Err(error) => match Message::salvage(&mut buf) {   // can it be answered?
//!         Some(request) => Response::with_reason(out, &request, error.status(), error.text().as_bytes(), ..),
//!         None => {}                                     // drop and count by error.text()
//!     },
//! }
//! ```
//!
//! Digest, for a request with an Authorization header:
//! ```text
//! let sent = Credentials::parse(value)?;                          // OtherScheme: as if none; Malformed: 400; Unsupported: 401
//! let state = nonces.check(sent.nonce, now, max_age, realm);      // NonceKey: signed and timed, no memory
//! if sent.verify(&ha1, request.method().as_bytes()) {             // ha1: Hash::from_hex(..) of the stored one, or Hash::ha1(..)
//!     match (state, sent.auth) {
//!         (NonceState::Fresh(id), Some(auth)) if counter.take(id, auth.nc) => accepted,
//!         (NonceState::Fresh(_), None) => accepted if the legacy form is allowed,
//!         _ => 401 with stale=true,
//!     }
//! }                                                               // else 401 (403 by policy)
//! response.line(HeaderName::WwwAuthenticate, |out| put_challenge(out, realm, nonce.as_bytes(), algorithm, stale));
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `message`, `lines` | [`Message`]: start line, index of headers, what a message must have; the loop over lines |
//! | `header` | [`HeaderName`], [`Method`] |
//! | `lex` | tokens, quoted strings, parameters, comma lists, numbers |
//! | `via` | [`Via`], where an answer goes |
//! | `uri` | [`Uri`] and its equality |
//! | `contact` | [`NameAddr`], [`Contact`] |
//! | `aor`, `hash` | [`AorKey`] and the seeded [`KeyHasher`] for it |
//! | `hint` | a datagram's address-of-record at a glance |
//! | `write`, `response` | [`Cursor`] into a caller's slice, [`Response`], [`Tags`] |
//! | `digest` | [`digest::Credentials`], [`digest::Hash`] (HA1, responses), challenges |
//! | `nonce` | [`nonce::NonceKey`]: signed, timed nonces; [`nonce::NonceCounter`]: their use |
#![deny(unsafe_code)]

pub mod aor;
pub mod contact;
pub mod digest;
mod error;
pub mod hash;
mod header;
pub mod hint;
pub mod lex;
mod lines;
mod message;
pub mod nonce;
pub mod response;
pub mod uri;
mod via;
pub mod write;

pub use aor::AorKey;
pub use contact::{Contact, ContactAddr, Contacts, NameAddr};
pub use error::ParseError;
pub use hash::KeyHasher;
pub use header::{HeaderName, Method};
pub use lex::{Param, Params};
pub use message::{Header, Headers, MAX_HEADER_SECTION, MAX_HEADERS, Message, Start};
pub use response::{Response, Tags};
pub use uri::{Scheme, Uri};
pub use via::{Rport, Via};
pub use write::Cursor;
