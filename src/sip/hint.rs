//! A glance at a datagram: whose REGISTER it probably is. Costs a tenth of reading it; whoever acts on it has to bear
//! being wrong.

use super::lex::{self, class};

/// The key of the address-of-record ([`super::AorKey`]'s bytes) of a REGISTER as most are written: To on one line, the
/// user without escapes. Anything else gives another key, or none.
pub fn register_aor<'b>(datagram: &[u8], room: &'b mut [u8; 128]) -> Option<&'b [u8]> {
    if !datagram.starts_with(b"REGISTER ") {
        return None;
    }
    let line = memchr::memchr_iter(b'\n', datagram).find_map(|end| match datagram.get(end + 1..)? {
        [b't' | b'T', b':', value @ ..] | [b't' | b'T', b'o' | b'O', b':', value @ ..] => Some(value),
        _ => None,
    })?;
    let line = line.get(..line.len().min(200))?;
    // The scheme's colon: a display name seldom has one.
    let uri = line.get(memchr::memchr(b':', line)? + 1..)?;
    let len = uri.iter().position(|&byte| matches!(byte, b'>' | b';' | b'?' | b':') || !lex::is(byte, class::URI))?;
    let key = room.get_mut(..len)?;
    key.copy_from_slice(uri.get(..len)?);
    let host = memchr::memchr(b'@', key).map_or(0, |at| at + 1);
    key.get_mut(host..)?.make_ascii_lowercase();
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::super::{AorKey, Message};
    use super::*;

    #[test]
    fn it_is_the_key_for_what_most_send() {
        for to in [
            "<sip:Alice@Example.ORG>",
            "\"A\" <sips:Alice@example.org:5061;x=y>;tag=1",
            "sip:Alice@example.org;tag=2",
            "<sip:h>",
        ] {
            for name in ["To: ", "t:", "TO:  "] {
                let mut text = format!(
                    "REGISTER sip:h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\nFrom: <sip:f@h>;tag=1\r\n{name}{to}\r\n\
                     Call-ID: c\r\nCSeq: 1 REGISTER\r\n\r\n"
                )
                .into_bytes();
                let mut room = [0; 128];
                let hint = register_aor(&text, &mut room).map(<[u8]>::to_vec);
                let message = Message::parse(&mut text).unwrap();
                let key = AorKey::new(&message.to().unwrap().parsed_uri().unwrap()).unwrap();
                assert_eq!(hint.as_deref(), Some(key.as_bytes()), "{name}{to}");
            }
        }
    }

    #[test]
    fn it_takes_anything() {
        let long = format!("REGISTER x\r\nTo: <sip:{}@h>\r\n", "u".repeat(500));
        for text in [
            "",
            "REGISTER ",
            "REGISTER x\nTo:",
            "REGISTER x\r\nTo: <sip",
            "REGISTER x\nt::",
            "INVITE x\r\nTo: <sip:a@b>\r\n",
            &long,
        ] {
            assert_eq!(register_aor(text.as_bytes(), &mut [0; 128]).filter(|key| key.len() > 128), None, "{text}");
        }
    }
}
