//! CSV as RFC 4180 has it: quotes around a field, doubled inside one; line ends CR LF or LF, also inside quotes.

use std::io::BufRead;

use super::{Error, error};

/// Reads records one by one.
pub struct Csv<R> {
    input: R,
    separator: u8,
    line: u64,
}

/// A record may not be longer: an unclosed quote would take the rest of the file for one field.
const LONGEST: usize = 1 << 20;

impl<R: BufRead> Csv<R> {
    pub fn new(input: R, separator: u8) -> Self {
        Csv { input, separator, line: 0 }
    }

    /// The line that the last record ended on, from 1 on.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The next record's fields; `None` at the end. Empty lines are passed over.
    pub fn next_record(&mut self) -> Result<Option<Vec<String>>, Error> {
        let mut raw = Vec::new();
        loop {
            let start = raw.len();
            let read = self.input.read_until(b'\n', &mut raw).map_err(|e| error(format!("cannot be read: {e}")))?;
            if read == 0 {
                if raw.is_empty() {
                    return Ok(None);
                }
                return Err(error(format!("line {}: a quote is not closed", self.line)));
            }
            self.line += 1;
            if start == 0 && self.line == 1 && raw.starts_with(b"\xef\xbb\xbf") {
                raw.drain(..3);
            }
            if raw.iter().all(|b| b"\r\n".contains(b)) {
                raw.clear();
                continue;
            }
            // An even number of quotes: every field that was opened is closed.
            if raw.iter().filter(|b| **b == b'"').count() % 2 == 0 {
                break;
            }
            if raw.len() > LONGEST {
                return Err(error(format!(
                    "line {}: a record of more than a megabyte; is a quote missing?",
                    self.line
                )));
            }
        }
        let text = std::str::from_utf8(&raw).map_err(|_| error(format!("line {}: not UTF-8", self.line)))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        self.split(text.strip_suffix('\r').unwrap_or(text)).map(Some)
    }

    fn split(&self, mut rest: &str) -> Result<Vec<String>, Error> {
        let bad = |what: &str| error(format!("line {}: {what}", self.line));
        let separator = char::from(self.separator);
        let mut fields = Vec::new();
        loop {
            let mut field = String::new();
            if let Some(mut quoted) = rest.strip_prefix('"') {
                loop {
                    let end = quoted.find('"').ok_or_else(|| bad("a quote is not closed"))?;
                    field.push_str(&quoted[..end]);
                    quoted = &quoted[end + 1..];
                    match quoted.strip_prefix('"') {
                        Some(more) => {
                            field.push('"');
                            quoted = more;
                        }
                        None => break,
                    }
                }
                rest = quoted;
                if !rest.is_empty() && !rest.starts_with(separator) {
                    return Err(bad("something stands between a quote and the separator"));
                }
            } else {
                let end = rest.find(separator).unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    return Err(bad("a quote inside a field that does not begin with one"));
                }
                field.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            fields.push(field);
            match rest.strip_prefix(separator) {
                Some(more) => rest = more,
                None => return Ok(fields),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, separator: u8) -> Result<Vec<Vec<String>>, Error> {
        let mut csv = Csv::new(text.as_bytes(), separator);
        let mut out = Vec::new();
        while let Some(record) = csv.next_record()? {
            out.push(record);
        }
        Ok(out)
    }

    #[test]
    fn quotes_separators_and_line_ends() {
        let text = "\u{feff}a,b,c\r\n1,\"x, \"\"y\"\"\r\nz\",\n\n,,\"\"\nlast,1,2";
        let expected = [["a", "b", "c"], ["1", "x, \"y\"\r\nz", ""], ["", "", ""], ["last", "1", "2"]];
        assert_eq!(all(text, b',').expect("good"), expected.map(|r| r.map(String::from).to_vec()).to_vec());
        assert_eq!(all("a;b\n1;2,3\n", b';').expect("good")[1], ["1", "2,3"]);
        for bad in ["a,\"b\n", "a,\"b\"c\n", "a\"b,\"\n", "\"a\"b\"\"\n"] {
            assert!(all(bad, b',').is_err(), "{bad:?}");
        }
        assert!(Csv::new(&b"a,\xff\n"[..], b',').next_record().is_err());
    }
}
