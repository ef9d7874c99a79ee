//! Writing text into a slice that the caller owns: a batch's send buffer, a pool block, the stack.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Appends to a slice. What does not fit is dropped and remembered, so that a writer looks once, at the end.
pub struct Cursor<'b> {
    buf: &'b mut [u8],
    len: usize,
    failed: bool,
}

impl<'b> Cursor<'b> {
    pub fn new(buf: &'b mut [u8]) -> Self {
        Cursor { buf, len: 0, failed: false }
    }

    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        match self.buf.get_mut(self.len..self.len + bytes.len()) {
            Some(room) if !self.failed => {
                room.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            _ => self.failed = true,
        }
        self
    }

    /// Text from outside that must stay within its line: CR or LF in it fails the whole message, for it would start a
    /// header of somebody else's choice.
    pub fn put_line_text(&mut self, bytes: &[u8]) -> &mut Self {
        if memchr::memchr2(b'\r', b'\n', bytes).is_some() {
            self.failed = true;
        }
        self.put(bytes)
    }

    pub fn put_number(&mut self, mut value: u64) -> &mut Self {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.put(&digits[at..])
    }

    /// Lower-case hexadecimal, two digits a byte.
    pub fn put_hex(&mut self, bytes: &[u8]) -> &mut Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        match self.buf.get_mut(self.len..self.len + 2 * bytes.len()) {
            Some(room) if !self.failed => {
                for (pair, byte) in room.chunks_exact_mut(2).zip(bytes) {
                    pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
                }
                self.len += 2 * bytes.len();
            }
            _ => self.failed = true,
        }
        self
    }

    /// An address without brackets. An IPv4 address in IPv6 form, as a dual-stack socket gives it, is written as IPv4.
    pub fn put_ip(&mut self, ip: IpAddr) -> &mut Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets().map(u64::from);
                self.put_number(a).put(b".").put_number(b).put(b".").put_number(c).put(b".").put_number(d)
            }
            IpAddr::V6(v6) => {
                let _ = write!(self, "{v6}");
                self
            }
        }
    }

    /// A q value of 0 to 1000 thousandths, as short as it can be: `1`, `0.5`, `0.125`.
    pub fn put_q(&mut self, thousandths: u16) -> &mut Self {
        let thousandths = thousandths.min(1000);
        if thousandths % 1000 == 0 {
            return self.put_number(u64::from(thousandths / 1000));
        }
        let digits = [thousandths / 100, thousandths / 10 % 10, thousandths % 10].map(|digit| b'0' + digit as u8);
        let len = if digits[2] != b'0' {
            3
        } else if digits[1] != b'0' {
            2
        } else {
            1
        };
        self.put(b"0.").put(&digits[..len])
    }

    /// A SIP-date (RFC 3261 section 20.17), from seconds since 1970: `Sat, 13 Nov 2010 23:29:00 GMT`.
    pub fn put_date(&mut self, unix: u64) -> &mut Self {
        const DAYS: [&[u8]; 7] = [b"Thu, ", b"Fri, ", b"Sat, ", b"Sun, ", b"Mon, ", b"Tue, ", b"Wed, "];
        const MONTHS: [&[u8]; 12] = [
            b" Mar ", b" Apr ", b" May ", b" Jun ", b" Jul ", b" Aug ", b" Sep ", b" Oct ", b" Nov ", b" Dec ",
            b" Jan ", b" Feb ",
        ];
        // Years of four digits is what the header can say.
        let unix = unix.min(253_402_300_799);
        let days = unix / 86_400;
        let seconds = unix % 86_400;
        // Civil date from days, in years that begin in March, so that the leap day is the last one (H. Hinnant,
        // "chrono-compatible low-level date algorithms").
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let year = year_of_era + era * 400 + u64::from(month >= 10);
        self.put(DAYS[(days % 7) as usize]).put_two(day).put(MONTHS[month as usize]).put_number(year).put(b" ");
        self.put_two(seconds / 3_600).put(b":").put_two(seconds / 60 % 60).put(b":").put_two(seconds % 60).put(b" GMT")
    }

    fn put_two(&mut self, value: u64) -> &mut Self {
        self.put(&[b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8])
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether something was dropped.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// What was written so far.
    pub fn written(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or(&[])
    }

    /// What was written, or `None` when it did not fit or was no line text.
    pub fn finish(self) -> Option<&'b mut [u8]> {
        if self.failed { None } else { self.buf.get_mut(..self.len) }
    }
}

impl std::fmt::Write for Cursor<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.put(text.as_bytes());
        if self.failed { Err(std::fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Cursor<'_>)) -> String {
        let mut room = [0; 64];
        let mut cursor = Cursor::new(&mut room);
        write(&mut cursor);
        String::from_utf8(cursor.finish().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn numbers_addresses_q() {
        assert_eq!(written(|c| _ = c.put_number(0).put(b" ").put_number(u64::MAX)), "0 18446744073709551615");
        assert_eq!(written(|c| _ = c.put_hex(&[0, 0xaf])), "00af");
        for ip in ["192.0.2.1", "0.0.0.0", "255.255.255.255", "2001:db8::1"] {
            assert_eq!(written(|c| _ = c.put_ip(ip.parse().unwrap())), ip);
        }
        assert_eq!(written(|c| _ = c.put_ip("::ffff:192.0.2.1".parse().unwrap())), "192.0.2.1");
        for q in 0..=1000 {
            let text = written(|c| _ = c.put_q(q));
            assert_eq!(super::super::contact::q_value(text.as_bytes()), Some(q), "{text}");
        }
        assert_eq!(written(|c| _ = c.put_q(500)), "0.5");
    }

    #[test]
    fn dates() {
        for (unix, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_289_690_940, "Sat, 13 Nov 2010 23:29:00 GMT"),
            (1_704_067_199, "Sun, 31 Dec 2023 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(written(|c| _ = c.put_date(unix)), text);
        }
    }

    #[test]
    fn overflow_is_remembered_and_nothing_follows_a_gap() {
        let mut room = [0; 4];
        let mut cursor = Cursor::new(&mut room);
        cursor.put(b"abc").put(b"de").put(b"f");
        assert!(cursor.failed());
        assert_eq!(cursor.written(), b"abc");
        assert!(cursor.finish().is_none());
        let mut cursor = Cursor::new(&mut room);
        cursor.put(b"abcd");
        assert_eq!(cursor.finish().unwrap(), b"abcd");
        let mut cursor = Cursor::new(&mut room);
        cursor.put_line_text(b"a\nb");
        assert!(cursor.finish().is_none());
    }
}
