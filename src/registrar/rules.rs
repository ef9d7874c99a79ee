//! The rules of REGISTER: RFC 3261 section 10.3, steps 6 to 8, and RFC 5626 section 6 for what identifies a binding.
//!
//! Promise: [`check`] and [`plan`] look at everything and change nothing; what they refuse leaves every binding as it was.
//! A plan, once made, cannot fail. Every refusal is one [`Rejection`], and [`Rejection::answer`] is the one table that makes
//! a status of it.

use super::cache::Binding;
use super::options::PathMode;
use super::options::{Options, WhenBrief, WhenFull};
use super::reply::{ReplyWriter, refuse};
use super::request::{Contact, Extensions, FirstHop, MAX_REQUEST_CONTACTS, RegisterRequest};
use super::store::Column;
use crate::sip::uri::Uri;
use crate::sip::{AorKey, ParseError};

/// Why a REGISTER was refused. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// A header that cannot be read.
    BadRequest(ParseError),
    /// More than [`MAX_REQUEST_CONTACTS`] contacts in one request.
    TooManyInRequest,
    /// `*` beside other contacts (10.3 step 6).
    StarNotAlone,
    /// `*` without Expires: 0 (10.3 step 6).
    StarWithoutZero,
    /// Longer than its column; nothing is ever cut.
    TooLong(Column),
    /// The user may not do this (10.3 step 4).
    Forbidden,
    /// No such address-of-record (10.3 step 5).
    UnknownUser,
    /// Not of the character set that the table's column has.
    OtherCharset(Column),
    /// What is stored must be UTF-8 without control characters.
    Unprintable(Column),
    /// Require names what this registrar does not know (10.3 step 2).
    BadExtension { understood: Extensions },
    /// RFC 3327 section 5.3: a proxy added a Path, the user agent does not support it, and the option wants that.
    PathNotSupported,
    /// RFC 5626 section 6: more than one flow in one request.
    SeveralFlows,
    /// The contact is the address-of-record's own GRUU (RFC 5627 section 5.1): requests would come back for ever.
    OwnGruu,
    /// Below the minimum, which is given (10.3 step 7).
    IntervalTooBrief { min: u32 },
    /// RFC 5626 section 6: outbound was asked for, and the first hop cannot do it.
    FirstHopLacksOutbound,
    /// Same Call-ID, lower CSeq (10.3 steps 6 and 7).
    OutOfOrder,
    /// The address-of-record has as many contacts as it may.
    TooManyContacts { retry_after: u32 },
    /// The database is behind or gone, and this may not be answered without it.
    StoreBusy { retry_after: u32 },
}

/// What a refusal's answer says besides its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    None,
    MinExpires(u32),
    RetryAfter(u32),
    /// Unsupported, with the tags of Require that are not among these.
    Unsupported(Extensions),
    /// Unsupported with this tag.
    UnsupportedTag(&'static str),
}

impl Rejection {
    /// Writes the answer; returns its status.
    pub fn write(&self, reply: &mut impl ReplyWriter) -> u16 {
        refuse(self, reply)
    }

    /// The table: status, reason phrase, header.
    pub fn answer(&self) -> (u16, &'static str, Extra) {
        match *self {
            Rejection::BadRequest(error) => (error.status().max(400), error.text(), Extra::None),
            Rejection::TooManyInRequest => (400, "Too Many Contacts", Extra::None),
            Rejection::StarNotAlone => (400, "Contact * Must Stand Alone", Extra::None),
            Rejection::StarWithoutZero => (400, "Contact * Needs Expires 0", Extra::None),
            Rejection::TooLong(column) => (400, too_long_text(column), Extra::None),
            Rejection::Forbidden => (403, "Forbidden", Extra::None),
            Rejection::UnknownUser => (404, "Not Found", Extra::None),
            Rejection::OtherCharset(_) => (400, "Text Cannot Be Stored", Extra::None),
            Rejection::Unprintable(_) => (400, "Text Is Not Printable", Extra::None),
            Rejection::BadExtension { understood } => (420, "Bad Extension", Extra::Unsupported(understood)),
            Rejection::PathNotSupported => (420, "Bad Extension", Extra::UnsupportedTag("path")),
            Rejection::SeveralFlows => (400, "One reg-id Per Request", Extra::None),
            Rejection::OwnGruu => (403, "Contact Is A GRUU", Extra::None),
            Rejection::IntervalTooBrief { min } => (423, "Interval Too Brief", Extra::MinExpires(min)),
            Rejection::FirstHopLacksOutbound => (439, "First Hop Lacks Outbound Support", Extra::None),
            Rejection::OutOfOrder => (500, "CSeq Out Of Order", Extra::None),
            Rejection::TooManyContacts { retry_after } => (503, "Too Many Bindings", Extra::RetryAfter(retry_after)),
            Rejection::StoreBusy { retry_after } => (503, "Service Unavailable", Extra::RetryAfter(retry_after)),
        }
    }
}

fn too_long_text(column: Column) -> &'static str {
    match column {
        Column::Username | Column::Domain => "Address Too Long",
        Column::Contact => "Contact Too Long",
        Column::Instance => "Instance Too Long",
        Column::Received | Column::Socket => "Source Too Long",
        Column::Path => "Path Too Long",
        Column::CallId => "Call-ID Too Long",
        Column::UserAgent => "User-Agent Too Long",
    }
}

/// 10.3 step 2: whether the request insists on what is not understood. Before anybody is asked for a password.
pub(crate) fn check_extensions(request: &RegisterRequest<'_>, options: &Options) -> Result<(), Rejection> {
    let understood = options.understood();
    let required = request.required;
    let beyond = (required.path & !understood.path)
        | (required.outbound & !understood.outbound)
        | (required.gruu & !understood.gruu)
        | request.requires_others;
    if beyond { Err(Rejection::BadExtension { understood }) } else { Ok(()) }
}

/// Everything that can be said without knowing the bindings.
pub(crate) fn check(request: &RegisterRequest<'_>, options: &Options) -> Result<(), Rejection> {
    check_extensions(request, options)?;
    if request.third_party && !options.third_party {
        return Err(Rejection::Forbidden);
    }
    if options.path == PathMode::Strict && !request.path.is_empty() && !request.supported.path {
        return Err(Rejection::PathNotSupported);
    }
    if request.contacts.len() > MAX_REQUEST_CONTACTS {
        return Err(Rejection::TooManyInRequest);
    }
    if request.star {
        if !request.contacts.is_empty() {
            return Err(Rejection::StarNotAlone);
        }
        if request.expires != Some(0) {
            return Err(Rejection::StarWithoutZero);
        }
    }
    if let Some(column) = request.too_long() {
        return Err(Rejection::TooLong(column));
    }
    if let Some(column) = request.unprintable() {
        return Err(Rejection::Unprintable(column));
    }
    if options.gruu && request.contacts.iter().any(|contact| is_own_gruu(&contact.uri, request.aor)) {
        return Err(Rejection::OwnGruu);
    }
    if request.supported.outbound && options.outbound {
        let flows = || request.contacts.iter().filter(|contact| contact.has_flow());
        if flows().filter(|contact| contact.expires.or(request.expires) != Some(0)).nth(1).is_some() {
            return Err(Rejection::SeveralFlows);
        }
        if request.first_hop == FirstHop::Other && flows().next().is_some() {
            return Err(Rejection::FirstHopLacksOutbound);
        }
    }
    Ok(())
}

/// Whether the answer says `Require: outbound`: the flow was taken as one (RFC 5626 section 6).
pub(crate) fn is_outbound(request: &RegisterRequest<'_>, options: &Options) -> bool {
    let kept = match request.first_hop {
        FirstHop::Us => !request.socket.starts_with(b"udp:"),
        FirstHop::Outbound => true,
        FirstHop::Other => false,
    };
    options.outbound && request.supported.outbound && kept && request.contacts.iter().any(Contact::has_flow)
}

fn is_own_gruu(uri: &Uri<'_>, aor: &[u8]) -> bool {
    uri.param(b"gr").is_some() && AorKey::new(uri).is_ok_and(|key| key.as_bytes() == aor)
}

/// What becomes of one contact of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: a retransmission, the removal of what is not there, or a later contact of the request says otherwise.
    Keep,
    /// The binding is added or refreshed, until `expires` (seconds since the epoch).
    Put { expires: u32 },
}

/// What a request does to the bindings of its address-of-record.
pub(crate) struct Plan {
    steps: [Step; MAX_REQUEST_CONTACTS],
    count: usize,
    /// Indices of bindings that go. At most one per contact, and one more per contact to make room.
    removed: [u16; 2 * MAX_REQUEST_CONTACTS],
    removals: usize,
    /// `*`: all that are seen go.
    pub all: bool,
}

impl Plan {
    fn nothing() -> Plan {
        Plan {
            steps: [Step::Keep; MAX_REQUEST_CONTACTS],
            count: 0,
            removed: [0; 2 * MAX_REQUEST_CONTACTS],
            removals: 0,
            all: false,
        }
    }

    /// One step per contact of the request, in its order.
    pub fn steps(&self) -> &[Step] {
        &self.steps[..self.count]
    }

    /// The indices of the bindings that go, from the highest down, each once.
    pub fn removed(&self) -> &[u16] {
        &self.removed[..self.removals]
    }

    fn remove(&mut self, index: usize) {
        let index = index as u16;
        if let Err(at) = self.removed[..self.removals].binary_search_by(|other| index.cmp(other)) {
            self.removed.copy_within(at..self.removals, at + 1);
            self.removed[at] = index;
            self.removals += 1;
        }
    }

    fn keep(&mut self, index: usize) {
        let index = index as u16;
        if let Ok(at) = self.removed[..self.removals].binary_search_by(|other| index.cmp(other)) {
            self.removed.copy_within(at + 1..self.removals, at);
            self.removals -= 1;
        }
    }

    /// How many changes this can make at most.
    pub fn weight(&self, bindings: usize) -> usize {
        let puts = self.steps().iter().filter(|step| matches!(step, Step::Put { .. })).count();
        puts + self.removals + if self.all { bindings } else { 0 }
    }
}

/// Seconds that a contact asks for: its parameter, then the header, then the default; bounded.
fn interval(contact: &Contact<'_>, request: &RegisterRequest<'_>, options: &Options) -> Result<u32, Rejection> {
    let asked = contact.expires.or(request.expires).unwrap_or(options.default_expires);
    if asked == 0 {
        return Ok(0);
    }
    // "greater than zero AND smaller than one hour AND less than a registrar-configured minimum"
    if asked < 3600 && asked < options.min_expires {
        return match options.when_brief {
            WhenBrief::Refuse => Err(Rejection::IntervalTooBrief { min: options.min_expires }),
            WhenBrief::Raise => Ok(options.min_expires),
        };
    }
    let granted = asked.min(options.max_expires);
    if options.expires_jitter == 0 {
        return Ok(granted);
    }
    // FNV-1a: the same for the same request, however often it comes.
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = request.call_id.iter().chain(&request.cseq.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, step);
    let most = u64::from(granted) * u64::from(options.expires_jitter) / 100;
    let cut = (hash ^ hash >> 32) % (most + 1);
    Ok((granted - cut as u32).max(options.min_expires.min(granted)))
}

/// Whether two contacts name one binding.
fn same_contact(a: &Contact<'_>, b: &Contact<'_>) -> bool {
    match (a.has_flow(), b.has_flow()) {
        (true, true) => a.reg_id == b.reg_id && a.instance == b.instance,
        (false, false) => a.uri.matches(&b.uri),
        _ => false,
    }
}

/// Whether the contact names this binding.
fn names(contact: &Contact<'_>, binding: &Binding) -> bool {
    let has_flow = binding.reg_id != 0 && !binding.instance().is_empty();
    if contact.has_flow() || has_flow {
        return contact.has_flow()
            && has_flow
            && binding.reg_id == contact.reg_id
            && binding.instance() == contact.instance;
    }
    // Nearly every refresh repeats the contact byte for byte.
    binding.contact() == contact.uri.raw || Uri::parse(binding.contact()).is_ok_and(|uri| uri.matches(&contact.uri))
}

/// Decides what the request does, given the bindings of its address-of-record. [`check`] has passed.
pub(crate) fn plan(
    bindings: &[Binding],
    request: &RegisterRequest<'_>,
    now: u32,
    options: &Options,
) -> Result<Plan, Rejection> {
    let mut plan = Plan::nothing();
    if request.star {
        let older = |b: &&Binding| b.alive(now) && b.call_id() == request.call_id && request.cseq <= b.cseq;
        if bindings.iter().any(|b| older(&b)) {
            return Err(Rejection::OutOfOrder);
        }
        plan.all = true;
        return Ok(plan);
    }
    // Which binding each contact matched.
    let mut matched = [usize::MAX; MAX_REQUEST_CONTACTS];
    for (i, contact) in request.contacts.iter().enumerate() {
        let interval = interval(contact, request, options)?;
        let index = bindings.iter().position(|b| b.alive(now) && names(contact, b)).unwrap_or(usize::MAX);
        // One binding named twice in a request: the later contact counts.
        for (earlier, other) in matched[..i].iter().enumerate() {
            let same_binding = index != usize::MAX && *other == index;
            if same_binding || same_contact(&request.contacts[earlier], contact) {
                plan.steps[earlier] = Step::Keep;
                if *other != usize::MAX {
                    plan.keep(*other);
                }
            }
        }
        matched[i] = index;
        plan.count = i + 1;
        let expires = now.saturating_add(interval);
        plan.steps[i] = match bindings.get(index) {
            None if interval == 0 => Step::Keep,
            None => Step::Put { expires },
            Some(binding) if binding.call_id() == request.call_id && request.cseq < binding.cseq => {
                return Err(Rejection::OutOfOrder);
            }
            Some(binding) if binding.call_id() == request.call_id && request.cseq == binding.cseq => Step::Keep,
            Some(_) if interval == 0 => {
                plan.remove(index);
                Step::Keep
            }
            Some(binding) => {
                // The same binding under another key of the table (an equal URI written otherwise, a flow that moved): the
                // old row goes.
                if !binding.has_key(&request.row(contact, now, expires)) {
                    plan.remove(index);
                }
                Step::Put { expires }
            }
        };
    }
    make_room(&mut plan, bindings, &matched, now, options)?;
    Ok(plan)
}

/// Holds the bindings to `max_contacts`. A request that adds none is never refused, even if the bound was lowered since.
fn make_room(
    plan: &mut Plan,
    bindings: &[Binding],
    matched: &[usize; MAX_REQUEST_CONTACTS],
    now: u32,
    options: &Options,
) -> Result<(), Rejection> {
    let is_put = |i: usize| matches!(plan.steps[i], Step::Put { .. });
    let added = (0..plan.count).filter(|i| is_put(*i) && matched[*i] == usize::MAX).count();
    if added == 0 {
        return Ok(());
    }
    let moved = (0..plan.count).filter(|i| is_put(*i) && matched[*i] != usize::MAX).filter(|i| {
        // Removed only to come back under another key.
        plan.removed().contains(&(matched[*i] as u16))
    });
    let alive = bindings.iter().filter(|b| b.alive(now)).count();
    let after = alive + added + moved.count() - plan.removals;
    let Some(excess) = after.checked_sub(options.max_contacts).filter(|excess| *excess > 0) else { return Ok(()) };
    let full = Rejection::TooManyContacts { retry_after: options.retry_after };
    if options.when_full == WhenFull::Refuse {
        return Err(full);
    }
    for _ in 0..excess.min(MAX_REQUEST_CONTACTS) {
        let free = |index: &usize| {
            bindings[*index].alive(now)
                && !matched[..plan.count].contains(index)
                && !plan.removed().contains(&(*index as u16))
        };
        let Some(soonest) = (0..bindings.len()).filter(free).min_by_key(|index| bindings[*index].expires) else {
            return Err(full);
        };
        plan.remove(soonest);
    }
    Ok(())
}

/// The indices of the bindings that are seen at `now`, in the order in which they are told: highest q first, then the one
/// refreshed last. A contact without q counts as 1 (RFC 2543 had that default, and clients that send none mean it).
pub(crate) fn in_order<'o>(
    bindings: &[Binding],
    now: u32,
    few: &'o mut [u16; 64],
    many: &'o mut Vec<u16>,
) -> &'o [u16] {
    let order: &mut [u16] = if bindings.len() <= few.len() {
        let mut count = 0;
        for (index, _) in bindings.iter().enumerate().filter(|(_, b)| b.alive(now)) {
            few[count] = index as u16;
            count += 1;
        }
        &mut few[..count]
    } else {
        many.clear();
        many.extend((0..bindings.len()).filter(|i| bindings[*i].alive(now)).map(|i| i as u16));
        many
    };
    if order.len() > 1 {
        order.sort_unstable_by_key(|index| {
            let binding = &bindings[usize::from(*index)];
            (std::cmp::Reverse(binding.q.min(1000)), std::cmp::Reverse(binding.modified), *index)
        });
    }
    order
}
