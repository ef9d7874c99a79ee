//! Who somebody is: digest authentication (RFC 8760, RFC 3261 section 22) against the cached rows of `subscriber`.
//!
//! Promises: no database round trip while the user's row is cached; a user without a row is challenged and refused exactly
//! as one with a wrong password, so nobody learns who exists; credentials count once, and a request that comes a second
//! time (UDP) is told from a replay by its branch, Call-ID and CSeq and let through as a question only.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::options::{AuthMode, Options};
use super::reply::{ReplyWriter, refuse};
use super::rules::Rejection;
use super::store::{Aor, UserRow};
use super::users::{Known, Users};
use crate::sip::digest::{Algorithm, Credentials, CredentialsError, Hash, put_challenge};
use crate::sip::nonce::{NonceCounter, NonceKey, NonceState};
use crate::sip::uri::Uri;
use crate::sip::write::Cursor;
use crate::sip::{HeaderName, Message, ParseError};

/// What a request's credentials are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The user may change this address-of-record.
    Ok,
    /// The credentials were used by this very request before: answer with the state, change nothing.
    Again,
    /// 401 is written.
    Challenged,
    Rejected(Rejection),
    /// The user's row has to be read first.
    Miss,
}

/// How long a request may be sent again (RFC 3261 timer J).
const RETRANSMISSIONS: u32 = 32;
/// Requests remembered for that time; a newer one takes the place of an older with the same hash.
const REMEMBERED: usize = 1 << 14;
/// A row that does not fit the response is read again, but not more often than this.
const DOUBT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    request: u64,
    at: u32,
}

pub(super) struct Authenticator {
    nonces: NonceKey,
    counter: NonceCounter,
    hasher: RandomState,
    seen: Box<[Mutex<Seen>]>,
}

/// One algorithm, or none, per row: what a user can be asked for.
fn offers(row: Option<&UserRow<'_>>, options: &Options) -> [bool; 3] {
    Algorithm::ALL.map(|algorithm| {
        let wanted = options.algorithms.contains(&algorithm);
        match row {
            // Nobody knows whether the user exists: as for one with ha1.
            None => algorithm == Algorithm::Md5,
            Some(row) if row.password.is_empty() => algorithm == Algorithm::Md5,
            Some(_) => wanted,
        }
    })
}

/// The stored secret as HA1 of this algorithm. `ha1b` is that of a username with its domain.
fn secret(row: &UserRow<'_>, credentials: &Credentials<'_>, realm: &[u8]) -> Option<Hash> {
    if !row.password.is_empty() {
        return Some(Hash::ha1(credentials.algorithm, credentials.username, realm, row.password));
    }
    let stored = if credentials.username.contains(&b'@') { row.ha1b } else { row.ha1 };
    (credentials.algorithm == Algorithm::Md5).then(|| Hash::from_hex(Algorithm::Md5, stored)).flatten()
}

/// Whether the name in the credentials is that of the address-of-record: with or without its domain.
fn owns(username: &[u8], aor: Aor<'_>) -> bool {
    match username.strip_prefix(aor.user) {
        Some([]) => true,
        Some([b'@', domain @ ..]) => aor.domain.is_empty() || domain.eq_ignore_ascii_case(aor.domain),
        _ => false,
    }
}

/// A host that is another than the request's is a request for somebody else (RFC 7616 section 3.4.6).
fn same_host(credentials: &Credentials<'_>, message: &Message<'_>) -> bool {
    match (Uri::parse(credentials.uri), message.request_uri()) {
        (Ok(theirs), Ok(ours)) => theirs.host.eq_ignore_ascii_case(ours.host),
        _ => false,
    }
}

impl Authenticator {
    /// `None` when nobody has to prove anything.
    pub fn new(options: &Options) -> Option<Authenticator> {
        (options.auth == AuthMode::Digest).then(|| Authenticator {
            nonces: NonceKey::random(),
            counter: NonceCounter::new(options.nonces),
            hasher: RandomState::new(),
            seen: (0..REMEMBERED).map(|_| Mutex::default()).collect(),
        })
    }

    /// Decides about a request for this address-of-record. `now`: seconds since the epoch.
    pub fn check(
        &self,
        message: &Message<'_>,
        aor: &[u8],
        now: u32,
        users: &Users,
        options: &Options,
        reply: &mut impl ReplyWriter,
    ) -> Verdict {
        let parts = Aor::split(aor);
        let realm = if options.realm.is_empty() { parts.domain } else { options.realm.as_bytes() };
        let mut ours = None;
        for value in message.headers(HeaderName::Authorization) {
            match Credentials::parse(value) {
                Ok(credentials) if credentials.realm == realm => ours = Some(credentials),
                // For another server, or of a kind that was not offered: as if there were none.
                Ok(_) | Err(CredentialsError::OtherScheme | CredentialsError::Unsupported) => {}
                Err(CredentialsError::Malformed) => {
                    let rejection = Rejection::BadRequest(ParseError::BadParameter);
                    refuse(&rejection, reply);
                    return Verdict::Rejected(rejection);
                }
            }
        }
        let state = ours.map(|c| self.nonces.check(c.nonce, now.into(), options.nonce_ttl.as_secs(), realm));
        let read = |row: &UserRow<'_>| {
            let right = ours.is_some_and(|credentials| {
                was_offered(row, &credentials, options)
                    && secret(row, &credentials, realm)
                        .is_some_and(|ha1| credentials.verify(&ha1, message.method().as_bytes()))
            });
            (right, offers(Some(row), options))
        };
        let (right, offered) = match users.get(aor, Instant::now(), read) {
            Known::Nothing => return Verdict::Miss,
            Known::Absent => (false, offers(None, options)),
            Known::Present(known) => known,
        };
        let (Some(credentials), Some(state)) = (ours, state) else {
            return self.challenge(realm, now, offered, false, reply);
        };
        if !right {
            // The password may have changed since the row was read.
            if state != NonceState::Foreign && users.forget_older(aor, DOUBT) {
                return Verdict::Miss;
            }
            return self.challenge(realm, now, offered, false, reply);
        }
        let NonceState::Fresh(id) = state else {
            return self.challenge(realm, now, offered, state == NonceState::Stale, reply);
        };
        if !owns(credentials.username, parts) || !same_host(&credentials, message) {
            refuse(&Rejection::Forbidden, reply);
            return Verdict::Rejected(Rejection::Forbidden);
        }
        // Without qop nothing is counted (RFC 3261 section 22.4 keeps that form for old user agents).
        let Some(auth) = credentials.auth else { return Verdict::Ok };
        let branch = message.via().ok().and_then(|via| via.branch).unwrap_or_default();
        let request =
            self.hasher.hash_one((id, auth.nc, message.call_id(), message.cseq_number(), branch, credentials.response));
        let mut seen = self.seen[request as usize % REMEMBERED].lock();
        if self.counter.take(id, auth.nc) {
            *seen = Seen { request, at: now };
            return Verdict::Ok;
        }
        if seen.request == request && now.abs_diff(seen.at) <= RETRANSMISSIONS {
            return Verdict::Again;
        }
        drop(seen);
        self.challenge(realm, now, offered, true, reply)
    }

    fn challenge(
        &self,
        realm: &[u8],
        now: u32,
        offered: [bool; 3],
        stale: bool,
        reply: &mut impl ReplyWriter,
    ) -> Verdict {
        let nonce = self.nonces.issue(now.into(), realm);
        reply.start(401, "Unauthorized");
        for (algorithm, _) in Algorithm::ALL.into_iter().zip(offered).filter(|(_, offered)| *offered) {
            let mut room = [0; 512];
            let mut value = Cursor::new(&mut room);
            put_challenge(&mut value, realm, nonce.as_bytes(), algorithm, stale);
            if let Some(value) = value.finish() {
                reply.header(HeaderName::WwwAuthenticate, value);
            }
        }
        Verdict::Challenged
    }
}

/// Whether these credentials use what the user was offered.
fn was_offered(row: &UserRow<'_>, credentials: &Credentials<'_>, options: &Options) -> bool {
    let offered = offers(Some(row), options);
    Algorithm::ALL.into_iter().zip(offered).any(|(algorithm, offered)| offered && algorithm == credentials.algorithm)
}
