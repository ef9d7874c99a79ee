//! One row of `location` and one of `subscriber`, borrowed; their columns' widths; and the packed form in which a change
//! waits for its writer.
//!
//! Promise: what is longer than its column is found by [`too_long`] before anything changes; nothing is ever cut.

/// An address-of-record as it stands in the columns `username` and `domain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Aor<'a> {
    pub user: &'a [u8],
    pub domain: &'a [u8],
}

impl<'a> Aor<'a> {
    /// Splits what [`crate::sip::AorKey`] holds, at the last `@`: a user part may hold one, a domain cannot. Without one
    /// it is a domain alone.
    pub fn split(joined: &'a [u8]) -> Aor<'a> {
        match memchr::memrchr(b'@', joined) {
            Some(at) => Aor { user: &joined[..at], domain: &joined[at + 1..] },
            None => Aor { user: b"", domain: joined },
        }
    }

    /// The other way round.
    pub fn join(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.user);
        if !self.user.is_empty() {
            out.push(b'@');
        }
        out.extend_from_slice(self.domain);
    }
}

/// What identifies a binding in the table: its primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key<'a> {
    pub aor: Aor<'a>,
    pub contact: &'a [u8],
    pub instance: &'a [u8],
    pub reg_id: u32,
}

/// A row of `location`. Empty text stands for NULL in the columns that may be NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row<'a> {
    pub key: Key<'a>,
    pub ruid: &'a [u8],
    pub received: &'a [u8],
    pub path: &'a [u8],
    pub call_id: &'a [u8],
    pub user_agent: &'a [u8],
    pub socket: &'a [u8],
    /// Seconds since the epoch.
    pub expires: u32,
    /// Seconds since the epoch.
    pub modified: u32,
    pub cseq: u32,
    /// 0 to 1000; [`NO_Q`] when the contact had none.
    pub q: u16,
    /// Kamailio's bit mask of methods; [`NO_METHODS`] stands for NULL.
    pub methods: u32,
    pub server_id: u32,
}

/// The contact has no q parameter (-1 in the table, as Kamailio writes it).
pub const NO_Q: u16 = u16::MAX;
/// The column `methods` is NULL.
pub const NO_METHODS: u32 = u32::MAX;

/// A row of `subscriber`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserRow<'a> {
    pub aor: Aor<'a>,
    pub password: &'a [u8],
    pub ha1: &'a [u8],
    pub ha1b: &'a [u8],
}

/// A text column of `location` that a client fills, by its name in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Username,
    Domain,
    Contact,
    Instance,
    Received,
    Path,
    CallId,
    UserAgent,
    Socket,
}

impl Column {
    pub const ALL: [Column; 9] = [
        Column::Username,
        Column::Domain,
        Column::Contact,
        Column::Instance,
        Column::Received,
        Column::Path,
        Column::CallId,
        Column::UserAgent,
        Column::Socket,
    ];

    /// The width in bytes; the same in `mysql.sql` (a test compares them).
    pub const fn width(self) -> usize {
        match self {
            Column::Username | Column::Domain | Column::Socket => 64,
            Column::Received => 128,
            Column::Contact | Column::Path => 512,
            Column::Instance | Column::CallId | Column::UserAgent => 255,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Column::Username => "username",
            Column::Domain => "domain",
            Column::Contact => "contact",
            Column::Instance => "instance",
            Column::Received => "received",
            Column::Path => "path",
            Column::CallId => "callid",
            Column::UserAgent => "user_agent",
            Column::Socket => "socket",
        }
    }
}

/// What text a column can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// Bytes, all of Unicode, or a set that is not known here: the database decides.
    Any,
    /// Of Unicode what has at most three bytes in UTF-8 (utf8mb3).
    ThreeBytes,
    /// MySQL's latin1, which is Windows-1252.
    Latin1,
    Ascii,
}

impl Charset {
    /// By its name in MySQL; no name: bytes.
    pub fn named(name: &str) -> Charset {
        match name {
            "utf8" | "utf8mb3" | "ucs2" => Charset::ThreeBytes,
            "latin1" => Charset::Latin1,
            "ascii" => Charset::Ascii,
            _ => Charset::Any,
        }
    }

    /// Whether the column could hold this text, which is UTF-8.
    pub fn holds(self, text: &[u8]) -> bool {
        if self == Charset::Any || text.is_ascii() {
            return true;
        }
        // What Windows-1252 has in place of most of Latin-1's control characters.
        const WINDOWS: &str = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ";
        std::str::from_utf8(text).is_ok_and(|text| match self {
            Charset::Any => true,
            Charset::ThreeBytes => text.chars().all(|c| c.len_utf8() <= 3),
            Charset::Latin1 => text.chars().all(|c| c <= '\u{ff}' || WINDOWS.contains(c)),
            Charset::Ascii => false,
        })
    }
}

/// What the columns of a table hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths([(usize, Charset); Column::ALL.len()]);

impl Default for Widths {
    fn default() -> Self {
        Widths(Column::ALL.map(|column| (column.width(), Charset::Any)))
    }
}

/// Why a column cannot take a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    TooLong(Column),
    /// It is not of the column's character set.
    Charset(Column),
}

impl Widths {
    /// Takes over what a table says of its columns (bytes, character set) where that is less.
    pub fn narrow(&mut self, width: impl Fn(&str) -> Option<(Option<u64>, Charset)>) {
        for (column, known) in Column::ALL.iter().zip(&mut self.0) {
            if let Some((width, charset)) = width(column.name()) {
                *known = (known.0.min(width.map_or(usize::MAX, |n| n as usize)), charset);
            }
        }
    }

    /// The first text of the row that its column could not take.
    pub fn misfit(&self, row: &Row<'_>) -> Option<Misfit> {
        let values = [
            row.key.aor.user,
            row.key.aor.domain,
            row.key.contact,
            row.key.instance,
            row.received,
            row.path,
            row.call_id,
            row.user_agent,
            row.socket,
        ];
        Column::ALL.into_iter().zip(values).zip(&self.0).find_map(|((column, value), (width, charset))| {
            if value.len() > *width {
                Some(Misfit::TooLong(column))
            } else {
                (!charset.holds(value)).then_some(Misfit::Charset(column))
            }
        })
    }
}

/// Whether `row` takes the place of `other`, the same binding's: one client counts its CSeq, between two time decides.
/// `tie`: what is said of two from different clients in one second.
pub(crate) fn is_newer(row: &Row<'_>, other: &Row<'_>, tie: bool) -> bool {
    if row.call_id == other.call_id && row.cseq != other.cseq {
        return row.cseq > other.cseq;
    }
    row.modified > other.modified || tie && row.modified == other.modified
}

/// The first of these values that does not fit into its column.
pub fn too_long(values: &[(Column, &[u8])]) -> Option<Column> {
    values.iter().find(|(column, value)| value.len() > column.width()).map(|(column, _)| *column)
}

/// One change of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    Upsert(Row<'a>),
    Delete(Key<'a>),
    /// Changes nothing: someone waits until all that was queued before is committed.
    Barrier,
}

const UPSERT: u8 = 1;
const DELETE: u8 = 2;
const BARRIER: u8 = 3;
/// Set on the last change of a ticket: a transaction ends only there.
const LAST: u8 = 0x80;

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Marks the change that begins with this byte as the last of its ticket.
pub(crate) fn mark_last(head: &mut u8) {
    *head |= LAST;
}

/// Appends one change. Every text must fit its column (at most 512 bytes), which the caller has checked.
pub(crate) fn encode(out: &mut Vec<u8>, change: &Change<'_>) {
    match change {
        Change::Barrier => out.push(BARRIER),
        Change::Delete(key) => {
            out.push(DELETE);
            put_u32(out, key.reg_id);
            put_texts(out, [key.aor.user, key.aor.domain, key.contact, key.instance]);
        }
        Change::Upsert(row) => {
            out.push(UPSERT);
            for value in
                [row.key.reg_id, row.expires, row.modified, row.cseq, u32::from(row.q), row.methods, row.server_id]
            {
                put_u32(out, value);
            }
            put_texts(
                out,
                [
                    row.key.aor.user,
                    row.key.aor.domain,
                    row.key.contact,
                    row.key.instance,
                    row.ruid,
                    row.received,
                    row.path,
                    row.call_id,
                    row.user_agent,
                    row.socket,
                ],
            );
        }
    }
}

fn put_texts<const N: usize>(out: &mut Vec<u8>, texts: [&[u8]; N]) {
    for text in texts {
        debug_assert!(text.len() <= usize::from(u16::MAX));
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    }
    for text in texts {
        out.extend_from_slice(text);
    }
}

/// Reads packed changes back, in the order in which they were appended.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(packed: &'a [u8]) -> Self {
        Reader { rest: packed }
    }

    /// How many bytes are still to be read.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next change, and whether its ticket ends with it.
    pub fn next_change(&mut self) -> Option<(Change<'a>, bool)> {
        let (&head, rest) = self.rest.split_first()?;
        self.rest = rest;
        let last = head & LAST != 0;
        let change = match head & !LAST {
            UPSERT => {
                let [reg_id, expires, modified, cseq, q, methods, server_id] = self.numbers();
                let [user, domain, contact, instance, ruid, received, path, call_id, user_agent, socket] = self.texts();
                Change::Upsert(Row {
                    key: Key { aor: Aor { user, domain }, contact, instance, reg_id },
                    ruid,
                    received,
                    path,
                    call_id,
                    user_agent,
                    socket,
                    expires,
                    modified,
                    cseq,
                    q: q as u16,
                    methods,
                    server_id,
                })
            }
            DELETE => {
                let [reg_id] = self.numbers();
                let [user, domain, contact, instance] = self.texts();
                Change::Delete(Key { aor: Aor { user, domain }, contact, instance, reg_id })
            }
            _ => Change::Barrier,
        };
        Some((change, last))
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.rest.split_at(n);
        self.rest = tail;
        head
    }

    fn numbers<const N: usize>(&mut self) -> [u32; N] {
        std::array::from_fn(|_| {
            let b = self.take(4);
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        })
    }

    fn texts<const N: usize>(&mut self) -> [&'a [u8]; N] {
        let lengths: [usize; N] = std::array::from_fn(|_| {
            let b = self.take(2);
            usize::from(u16::from_le_bytes([b[0], b[1]]))
        });
        lengths.map(|n| self.take(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_back_as_they_were_put_in() {
        let key = Key {
            aor: Aor { user: b"al@ice", domain: b"example.test" },
            contact: b"sip:a@b\0\xff",
            instance: b"<urn:uuid:1>",
            reg_id: 7,
        };
        let row = Row {
            key,
            ruid: b"r",
            received: b"",
            path: b"<sip:p;lr>",
            call_id: b"c@d",
            user_agent: b"agent",
            socket: b"udp:127.0.0.1:5060",
            expires: u32::MAX,
            modified: 1,
            cseq: 0x7fff_ffff,
            q: NO_Q,
            methods: NO_METHODS,
            server_id: 3,
        };
        let mut packed = Vec::new();
        encode(&mut packed, &Change::Upsert(row));
        for change in [Change::Delete(key), Change::Barrier] {
            let head = packed.len();
            encode(&mut packed, &change);
            mark_last(&mut packed[head]);
        }
        let mut reader = Reader::new(&packed);
        assert_eq!(reader.next_change(), Some((Change::Upsert(row), false)));
        assert_eq!(reader.next_change(), Some((Change::Delete(key), true)));
        assert_eq!(reader.next_change(), Some((Change::Barrier, true)));
        assert_eq!((reader.next_change(), reader.left()), (None, 0));
    }

    #[test]
    fn widths_are_those_of_the_table() {
        let ddl = include_str!("mysql.sql");
        let table = &ddl[ddl.find("EXISTS location").expect("table")..];
        for column in Column::ALL {
            let line = format!("\n    {} VARBINARY({}) ", column.name(), column.width());
            assert!(table.contains(&line), "{line}");
        }
        assert_eq!(too_long(&[(Column::CallId, &[b'x'; 255]), (Column::Socket, &[b'x'; 65])]), Some(Column::Socket));
    }

    #[test]
    fn a_table_says_which_text_it_holds() {
        let texts = ["plain", "\u{e9}", "\u{20ac}", "\u{65e5}", "\u{1f600}"];
        for (name, held) in
            [("ascii", 1), ("latin1", 3), ("utf8mb3", 4), ("utf8", 4), ("utf8mb4", 5), ("", 5), ("koi8r", 5)]
        {
            let charset = Charset::named(name);
            assert_eq!(texts.map(|text| charset.holds(text.as_bytes())), [0, 1, 2, 3, 4].map(|n| n < held), "{name}");
        }
        let mut widths = Widths::default();
        widths.narrow(|column| (column == "contact").then_some((Some(5), Charset::Latin1)));
        let row = |contact| Row { key: Key { contact, ..Key::default() }, ..Row::default() };
        assert_eq!(widths.misfit(&row(b"sip:ab")), Some(Misfit::TooLong(Column::Contact)));
        assert_eq!(widths.misfit(&row("\u{65e5}".as_bytes())), Some(Misfit::Charset(Column::Contact)));
        assert_eq!(widths.misfit(&row("\u{e9}".as_bytes())), None);
    }

    #[test]
    fn an_aor_splits_at_its_last_at_sign() {
        assert_eq!(Aor::split(b"a@b@c"), Aor { user: b"a@b", domain: b"c" });
        let mut joined = Vec::new();
        for aor in [&b"a@"[..], b"host", b"a@b@c"] {
            Aor::split(aor).join(&mut joined);
            assert_eq!(joined, aor);
        }
    }
}
