//! The registrar for a hook of partysip's: REGISTER is decided on the caller's thread, which waits where the database has to
//! be read first. For libpsp_mysqlreg.so where other plugins hook REGISTER too; alone it lets the engine answer.

use std::net::SocketAddr;

use crate::engine::Bindings;
use crate::registrar::{Auth, BindingView, Outcome, Registration, ReplyWriter, system_clock};
use crate::sip::{HeaderName, Message};

/// Status, and the headers that the answer needs besides the bindings; each line ends in CRLF.
struct Said<'h> {
    status: u16,
    headers: &'h mut Vec<u8>,
}

impl ReplyWriter for Said<'_> {
    fn start(&mut self, status: u16, _: &str) {
        self.status = status;
        self.headers.clear();
    }

    fn contact(&mut self, _: &BindingView<'_>, _: u32) {}

    fn number(&mut self, name: HeaderName, value: u32) {
        self.header(name, value.to_string().as_bytes());
    }

    fn header(&mut self, name: HeaderName, value: &[u8]) {
        self.headers.extend_from_slice(name.as_bytes());
        self.headers.extend_from_slice(b": ");
        self.headers.extend_from_slice(value);
        self.headers.extend_from_slice(b"\r\n");
    }
}

/// Decides a REGISTER; returns the status of its answer. 503 where the database did not answer in time.
pub fn register(registrar: &Bindings, text: &mut [u8], source: Option<SocketAddr>, headers: &mut Vec<u8>) -> u16 {
    headers.clear();
    let Ok(message) = Message::parse(text) else { return 400 };
    let registration = match Registration::read(&message, registrar.options().use_domain) {
        Ok(registration) => registration,
        Err(rejection) => return rejection.answer().0,
    };
    let received = source.map_or_else(String::new, |source| format!("sip:{source}"));
    let request = registration.request(received.as_bytes(), b"");
    let mut said = Said { status: 0, headers };
    // Twice at most: what was read once is known.
    for _ in 0..3 {
        let now = system_clock();
        let request = match registrar.authorize(&message, registration.aor().as_bytes(), now, &mut said) {
            Auth::Ok => request,
            Auth::Again => request.as_query(),
            Auth::Challenge | Auth::Rejected(_) => return said.status,
            Auth::Miss(ticket) => match registrar.wait_for(ticket) {
                Ok(()) => continue,
                Err(_) => return 503,
            },
        };
        match registrar.register(&request, now, &mut said) {
            Outcome::Answered(_) | Outcome::Rejected(_) => return said.status,
            // The plugin opens the registrar in another mode where this runs.
            Outcome::Durable(_) => return 500,
            Outcome::Miss(ticket) => {
                if registrar.wait_for(ticket).is_err() {
                    return 503;
                }
            }
        }
    }
    503
}
