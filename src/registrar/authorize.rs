//! Who may change an address-of-record: the option `auth`, over the users' rows.

use std::time::Instant;

use super::auth::Verdict;
use super::loader::What;
use super::reply::{self, ReplyWriter};
use super::users::Known;
use super::{Auth, AuthMode, LoadTicket, Registrar, Rejection, request};
use crate::sip::{AorKey, HeaderName, Message};

impl<W: Send + 'static> Registrar<W> {
    /// Decides whether the sender of a REGISTER may change this address-of-record ([`Registration::aor`]), by the option
    /// `auth`. `now`: seconds since the epoch. Never blocks on a database.
    pub fn authorize<'a>(
        &self,
        message: &Message<'_>,
        aor: &'a [u8],
        now: u32,
        reply: &mut impl ReplyWriter,
    ) -> Auth<'a> {
        let shared = &*self.shared;
        // RFC 3261 section 10.3 step 2 comes before step 3.
        let understood = shared.options.understood();
        if message.has(HeaderName::Require) && request::unsupported(message, understood).next().is_some() {
            let rejection = Rejection::BadExtension { understood };
            reply::refuse(&rejection, reply);
            shared.counters.rejected.inc();
            return Auth::Rejected(rejection);
        }
        let miss = Auth::Miss(LoadTicket { what: What::User, key: aor });
        let Some(authenticator) = &shared.authenticator else {
            if shared.options.auth == AuthMode::None {
                return Auth::Ok;
            }
            return match shared.users.get(aor, Instant::now(), |_| ()) {
                Known::Nothing => miss,
                Known::Present(()) => Auth::Ok,
                Known::Absent => {
                    reply::refuse(&Rejection::UnknownUser, reply);
                    shared.counters.rejected.inc();
                    Auth::Rejected(Rejection::UnknownUser)
                }
            };
        };
        match authenticator.check(message, aor, now, &shared.users, &shared.options, reply) {
            Verdict::Ok => Auth::Ok,
            Verdict::Again => Auth::Again,
            Verdict::Miss => miss,
            Verdict::Challenged => {
                shared.counters.challenged.inc();
                Auth::Challenge
            }
            Verdict::Rejected(rejection) => {
                shared.counters.rejected.inc();
                Auth::Rejected(rejection)
            }
        }
    }

    /// The key of the user whose credentials a REGISTER for `to` has to bring: To's, or where third parties may register
    /// From's.
    pub fn authorizes(&self, message: &Message<'_>, to: &AorKey) -> Result<AorKey, Rejection> {
        if !self.shared.options.third_party {
            return Ok(*to);
        }
        request::from_key(message, self.shared.options.use_domain).map_err(Rejection::BadRequest)
    }

    /// Forgets what is cached about a user, whose row has changed.
    pub fn forget_user(&self, aor: &[u8]) {
        self.shared.users.forget(aor);
    }
}
