//! How an answer is written. The rules say what it holds; a [`ReplyWriter`] puts it where it is sent from.

use std::net::SocketAddr;

use super::cache::BindingView;
use super::request::{Extensions, unsupported};
use super::rules::{Extra, Rejection};
use super::store::NO_Q;
use crate::sip::{Cursor, HeaderName, Message, Response, Scheme, Tags};

/// Takes one answer: first [`ReplyWriter::start`], then its headers in order. Called under the lock of one shard, so it
/// only writes memory. What does not fit is the writer's to notice.
pub trait ReplyWriter {
    fn start(&mut self, status: u16, reason: &str);
    /// A Contact with the seconds that it has left.
    fn contact(&mut self, binding: &BindingView<'_>, remaining: u32);
    fn number(&mut self, name: HeaderName, value: u32);
    fn header(&mut self, name: HeaderName, value: &[u8]);
    /// All headers of this name, as the request has them.
    fn copy(&mut self, _name: HeaderName) {}
    /// Contacts that follow are told with their public GRUU, where they have an instance (RFC 5627 section 5.3).
    fn tell_gruu(&mut self) {}
    /// Unsupported, with the tags of the request's Require that are not among these.
    fn unsupported(&mut self, _understood: Extensions) {}
}

/// Writes a refusal, by the table of [`Rejection::answer`]; returns its status.
pub(crate) fn refuse(rejection: &Rejection, reply: &mut impl ReplyWriter) -> u16 {
    let (status, reason, extra) = rejection.answer();
    reply.start(status, reason);
    match extra {
        Extra::None => {}
        Extra::MinExpires(seconds) => reply.number(HeaderName::MinExpires, seconds),
        Extra::RetryAfter(seconds) => reply.number(HeaderName::RetryAfter, seconds),
        Extra::Unsupported(understood) => reply.unsupported(understood),
        Extra::UnsupportedTag(tag) => reply.header(HeaderName::Unsupported, tag.as_bytes()),
    }
    status
}

/// Writes an answer into a send buffer.
pub struct SipReply<'b, 'm, 'a> {
    buf: Option<&'b mut [u8]>,
    request: &'m Message<'a>,
    source: Option<SocketAddr>,
    tags: &'m Tags,
    response: Option<Response<'b>>,
    gruu: bool,
}

impl<'b, 'm, 'a> SipReply<'b, 'm, 'a> {
    /// `source` is where the request came from; see [`Response::new`].
    pub fn new(buf: &'b mut [u8], request: &'m Message<'a>, source: Option<SocketAddr>, tags: &'m Tags) -> Self {
        SipReply { buf: Some(buf), request, source, tags, response: None, gruu: false }
    }

    /// The answer's bytes; `None` when none was started or it did not fit.
    pub fn finish(self) -> Option<&'b mut [u8]> {
        self.response?.finish()
    }
}

impl ReplyWriter for SipReply<'_, '_, '_> {
    fn start(&mut self, status: u16, reason: &str) {
        if let Some(buf) = self.buf.take() {
            let response = Response::with_reason(buf, self.request, status, reason.as_bytes(), self.source, self.tags);
            self.response = Some(response);
        }
    }

    fn contact(&mut self, binding: &BindingView<'_>, remaining: u32) {
        let Some(response) = &mut self.response else { return };
        response.line(HeaderName::Contact, |out| {
            out.put(b"<").put_line_text(binding.contact).put(b">;expires=").put_number(u64::from(remaining));
            if binding.q != NO_Q {
                let q = binding.q.min(1000);
                let digits = [b'0' + (q / 1000) as u8, b'.', b'0' + (q / 100 % 10) as u8, b'0' + (q / 10 % 10) as u8];
                out.put(b";q=").put(&digits);
                if q % 10 != 0 {
                    out.put(&[b'0' + (q % 10) as u8]);
                }
            }
            if !binding.instance.is_empty() {
                out.put(b";+sip.instance=\"").put_line_text(binding.instance).put(b"\"");
            }
            if binding.reg_id != 0 {
                out.put(b";reg-id=").put_number(u64::from(binding.reg_id));
            }
            if self.gruu {
                put_gruu(out, self.request, binding.instance);
            }
        });
    }

    fn copy(&mut self, name: HeaderName) {
        if let Some(response) = &mut self.response {
            response.copy(name, self.request);
        }
    }

    fn tell_gruu(&mut self) {
        self.gruu = true;
    }

    fn unsupported(&mut self, understood: Extensions) {
        let Some(response) = &mut self.response else { return };
        response.line(HeaderName::Unsupported, |out| {
            for (i, tag) in unsupported(self.request, understood).enumerate() {
                out.put(if i > 0 { b", " } else { b"" }).put_line_text(tag);
            }
        });
    }

    fn number(&mut self, name: HeaderName, value: u32) {
        if let Some(response) = &mut self.response {
            response.number(name, u64::from(value));
        }
    }

    fn header(&mut self, name: HeaderName, value: &[u8]) {
        if let Some(response) = &mut self.response {
            response.header(name, value);
        }
    }
}

/// The address-of-record with the instance as its `gr` (RFC 5627 section 3.2). An instance that would not stand in a URI
/// gets none.
fn put_gruu(out: &mut Cursor<'_>, request: &Message<'_>, instance: &[u8]) {
    let Ok(aor) = request.to().and_then(|to| to.parsed_uri()) else { return };
    let Some(id) = instance.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">")) else { return };
    if id.is_empty() || !id.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~:+!*'()/[]&$".contains(b)) {
        return;
    }
    let scheme: &[u8] = if aor.scheme == Scheme::Sips { b"sips:" } else { b"sip:" };
    out.put(b";pub-gruu=\"").put(scheme);
    if let Some(user) = aor.user.filter(|user| !user.contains(&b'\\')) {
        out.put(user).put(b"@");
    }
    out.put(aor.host).put(b";gr=").put(id).put(b"\"");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::cache::State;

    #[test]
    fn contacts_are_written_with_what_they_registered() {
        let mut bytes = b"REGISTER sip:d SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\nFrom: <sip:a@d>;tag=1\r\n\
            To: <sip:a@d>;tag=2\r\nCall-ID: c\r\nCSeq: 1 REGISTER\r\n\r\n"
            .to_vec();
        let request = Message::parse(&mut bytes).expect("message");
        let tags = Tags::new();
        let mut buf = [0; 1000];
        let mut reply = SipReply::new(&mut buf, &request, None, &tags);
        reply.start(200, "OK");
        let mut view = BindingView {
            contact: b"sip:a@h;x=y",
            call_id: b"c",
            received: b"",
            path: b"",
            instance: b"<urn:i>",
            socket: b"",
            user_agent: b"",
            expires: 0,
            modified: 0,
            cseq: 1,
            reg_id: 3,
            q: 705,
            state: State::New,
        };
        reply.contact(&view, 60);
        (view.instance, view.reg_id, view.q) = (b"", 0, 1000);
        reply.contact(&view, 0);
        view.q = NO_Q;
        reply.contact(&view, 7);
        let text = String::from_utf8(reply.finish().expect("fits").to_vec()).expect("text");
        assert!(text.starts_with("SIP/2.0 200 OK\r\n"), "{text}");
        for line in [
            "Contact: <sip:a@h;x=y>;expires=60;q=0.705;+sip.instance=\"<urn:i>\";reg-id=3\r\n",
            "Contact: <sip:a@h;x=y>;expires=0;q=1.00\r\n",
            "Contact: <sip:a@h;x=y>;expires=7\r\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
