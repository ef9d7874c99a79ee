//! Who somebody is: digest authentication (RFC 8760, RFC 3261 section 22) against the cached rows of `subscriber`.
//!
//! Promises: no database round trip while the user's row is cached; a user without a row is challenged and refused exactly
//! as one with a wrong password, so nobody learns who exists; credentials count once, and a request that comes a second
//! time (UDP) is told from a replay by its branch, Call-ID and CSeq and let through as a question only.

use std::hash::{BuildHasher, Hasher};
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
use crate::sip::{HeaderName, KeyHasher, Message, ParseError};

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
    hasher: KeyHasher,
    seen: Box<[Mutex<Seen>]>,
}

/// The algorithm of a stored hash, by its length: 32 digits are MD5, as Kamailio stores them; 64 are SHA-256, or
/// SHA-512-256 where the options want that and not SHA-256.
fn algorithm_of(stored: &[u8], options: &Options) -> Option<Algorithm> {
    let long =
        if options.algorithms.contains(&Algorithm::Sha512_256) && !options.algorithms.contains(&Algorithm::Sha256) {
            Algorithm::Sha512_256
        } else {
            Algorithm::Sha256
        };
    [Algorithm::Md5, long].into_iter().find(|algorithm| Hash::from_hex(*algorithm, stored).is_some())
}

/// What a user can be asked for, in the order of [`Algorithm::ALL`]: what the row's hashes are of; the password alone
/// is good for all that the options name. A row that has both is held to its hashes: whoever filled in an MD5 hash has
/// user agents that want MD5, and several of them fail where more is offered.
fn offers(row: Option<&UserRow<'_>>, options: &Options) -> [bool; 3] {
    // Nobody knows whether the user exists: as for one with ha1.
    let Some(row) = row else { return Algorithm::ALL.map(|algorithm| algorithm == Algorithm::Md5) };
    let stored = [row.ha1, row.ha1b].map(|hash| algorithm_of(hash, options));
    if stored == [None, None] {
        return Algorithm::ALL.map(|algorithm| options.algorithms.contains(&algorithm) && !row.password.is_empty());
    }
    Algorithm::ALL.map(|algorithm| stored.contains(&Some(algorithm)))
}

/// The stored secret as HA1 of this algorithm. `ha1b` is that of a username with its domain.
fn secret(row: &UserRow<'_>, credentials: &Credentials<'_>, realm: &[u8], options: &Options) -> Option<Hash> {
    let stored = if credentials.username.contains(&b'@') { row.ha1b } else { row.ha1 };
    if algorithm_of(stored, options) == Some(credentials.algorithm) {
        return Hash::from_hex(credentials.algorithm, stored);
    }
    let password = Some(row.password).filter(|password| !password.is_empty());
    password.map(|password| Hash::ha1(credentials.algorithm, credentials.username, realm, password))
}

/// Whether the name in the credentials is that of the address-of-record: with or without its domain.
fn owns(username: &[u8], aor: Aor<'_>) -> bool {
    match username.strip_prefix(aor.user) {
        Some([]) => true,
        Some([b'@', domain @ ..]) => aor.domain.is_empty() || domain.eq_ignore_ascii_case(aor.domain),
        _ => false,
    }
}

/// Whether the credentials are for this request: their URI names the host of the Request-URI, or the domain of the
/// address-of-record, for a proxy on the way may have rewritten the Request-URI (RFC 3261 section 22.4). What else differs
/// (port, parameters) is left alone: user agents write the one with and the other without. RFC 7616 section 3.4.6 wants 400
/// for others.
fn is_for_us(credentials: &Credentials<'_>, message: &Message<'_>, aor: Aor<'_>) -> bool {
    if credentials.uri == message.uri() {
        return true;
    }
    let Ok(theirs) = Uri::parse(credentials.uri) else { return false };
    let same = |host: &[u8]| theirs.host.eq_ignore_ascii_case(host);
    message.request_uri().is_ok_and(|ours| same(ours.host)) || (!aor.domain.is_empty() && same(aor.domain))
}

impl Authenticator {
    /// `None` when nobody has to prove anything.
    pub fn new(options: &Options) -> Option<Authenticator> {
        (options.auth == AuthMode::Digest).then(|| Authenticator {
            nonces: NonceKey::random(),
            counter: NonceCounter::new(options.nonces),
            hasher: KeyHasher::new(),
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
                    && secret(row, &credentials, realm, options)
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
        let wrong = if !owns(credentials.username, parts) {
            Some(Rejection::Forbidden)
        } else if !is_for_us(&credentials, message, parts) {
            Some(Rejection::BadRequest(ParseError::BadUri))
        } else {
            None
        };
        if let Some(rejection) = wrong {
            refuse(&rejection, reply);
            return Verdict::Rejected(rejection);
        }
        // Without qop nothing is counted (RFC 3261 section 22.4 keeps that form for old user agents).
        let Some(auth) = credentials.auth else { return Verdict::Ok };
        let branch = message.via().ok().and_then(|via| via.branch).unwrap_or_default();
        let mut hash = self.hasher.build_hasher();
        for number in [id, auth.nc.into(), message.cseq_number().into()] {
            hash.write_u64(number);
        }
        for text in [message.call_id(), branch, credentials.response] {
            hash.write(text);
        }
        let request = hash.finish();
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
