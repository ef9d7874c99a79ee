//! The hidden C functions behind the engine. osip2's structs are opaque here: C reads and writes them.
//!
//! # Contract
//! Pointers are live objects of the types named, made by osip2 or by us; lists are used under their public mutex.

use core::ffi::{c_char, c_int, c_void};

macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        pub struct $name([u8; 0]);
    )*};
}
opaque!(Osip Transaction Event Message List Node Fifo Iterator Dialog Ixt);

/// The four lists of an `osip_t`, in osip2's own numbering; `IXT` is the list of retransmissions.
pub const ICT: c_int = 0;
pub const KINDS: usize = 4;
pub const IXT: c_int = 4;

pub const SUCCESS: c_int = 0;
pub const UNDEFINED_ERROR: c_int = -1;

/// The version's own code.
pub fn bad_parameter() -> c_int {
    // SAFETY: a constant of the glue.
    unsafe { partyline_glue_bad_parameter }
}

/// The version's own code.
pub fn no_memory() -> c_int {
    // SAFETY: a constant of the glue.
    unsafe { partyline_glue_no_memory }
}

/// A point of osip2's clock, compared as osip2 compares: seconds first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline {
    pub sec: i64,
    pub usec: i64,
}

impl Deadline {
    pub const NEVER: Deadline = Deadline { sec: i64::MAX, usec: i64::MAX };

    pub fn now() -> Deadline {
        let mut now = Deadline::NEVER;
        // SAFETY: writes the two numbers.
        unsafe { partyline_glue_now(&mut now.sec, &mut now.usec) };
        now
    }
}

#[repr(C)]
pub struct EventView {
    pub dir: c_int,
    pub kind: c_int,
    pub id: c_int,
    pub branch: *const c_char,
    pub call: *const c_char,
}

impl EventView {
    pub const EMPTY: EventView =
        EventView { dir: 3, kind: -1, id: 0, branch: core::ptr::null(), call: core::ptr::null() };
}

/// One execution of osip2's state machine.
#[repr(C)]
pub struct Step {
    pub transaction: *mut Transaction,
    pub event: *mut Event,
}

/// What the program's send callback is called with.
#[repr(C)]
pub struct Resend {
    pub osip: *mut Osip,
    pub message: *mut Message,
    pub dest: *mut c_char,
    pub port: c_int,
    pub sock: c_int,
}

unsafe extern "C" {
    pub static partyline_glue_transaction_size: usize;
    pub static partyline_glue_idle_from: usize;
    pub static partyline_glue_idle_to: usize;
    static partyline_glue_bad_parameter: c_int;
    static partyline_glue_no_memory: c_int;
    pub static partyline_glue_due_on_time: c_int;

    pub fn partyline_alloc(size: usize) -> *mut c_void;
    pub fn partyline_release(block: *mut c_void);
    pub fn partyline_glue_osip_complete() -> c_int;
    pub fn partyline_glue_now(sec: *mut i64, usec: *mut i64);

    pub fn partyline_glue_list(osip: *mut Osip, kind: c_int) -> *mut List;
    pub fn partyline_glue_lock(osip: *mut Osip, kind: c_int) -> c_int;
    pub fn partyline_glue_unlock(osip: *mut Osip, kind: c_int) -> c_int;
    pub fn partyline_glue_osip_new(out: *mut *mut Osip) -> c_int;
    pub fn partyline_glue_osip_free(osip: *mut Osip);

    pub fn partyline_glue_list_count(list: *mut List) -> c_int;
    pub fn partyline_glue_list_head(list: *mut List) -> *mut Node;
    pub fn partyline_glue_list_append(list: *mut List, tail: *mut Node, element: *mut Transaction) -> *mut Node;
    pub fn partyline_glue_list_prepend(list: *mut List, element: *mut c_void) -> *mut Node;
    pub fn partyline_glue_list_unlink(list: *mut List, node: *mut Node);
    pub fn partyline_glue_list_take(list: *mut List, count: *mut c_int) -> *mut Node;
    pub fn partyline_glue_node_prev(node: *mut Node) -> *mut Node;
    pub fn partyline_glue_node_next(node: *mut Node) -> *mut Node;
    pub fn partyline_glue_node_element(node: *mut Node) -> *mut Transaction;

    pub fn partyline_glue_kind(tr: *mut Transaction) -> c_int;
    pub fn partyline_glue_id(tr: *mut Transaction) -> c_int;
    pub fn partyline_glue_config(tr: *mut Transaction) -> *mut Osip;
    pub fn partyline_glue_pending(tr: *mut Transaction) -> c_int;
    pub fn partyline_glue_next_event(tr: *mut Transaction) -> *mut Event;
    pub fn partyline_glue_fifo(tr: *mut Transaction) -> *mut Fifo;
    pub fn partyline_glue_transaction_key(tr: *mut Transaction, branch: *mut *const c_char, call: *mut *const c_char);
    pub fn partyline_glue_transaction_init(
        tr: *mut Transaction,
        kind: c_int,
        osip: *mut Osip,
        request: *mut Message,
        side: *mut c_void,
    ) -> c_int;
    pub fn partyline_glue_has_call_id(request: *mut Message) -> c_int;
    pub fn partyline_glue_transaction_clear(tr: *mut Transaction);

    pub fn partyline_glue_deadline(tr: *mut Transaction, least: *mut Deadline);
    pub fn partyline_glue_timer_event(tr: *mut Transaction) -> *mut Event;
    pub fn partyline_glue_fetch_side(side: *mut c_void);
    pub fn partyline_glue_fetch(tr: *mut Transaction);
    pub fn partyline_glue_fetch_context(tr: *mut Transaction);

    pub fn partyline_glue_ixt_new(
        dialog: *mut Dialog,
        message: *mut Message,
        is_ack: c_int,
        dest: *const c_char,
        port: c_int,
        sock: c_int,
    ) -> *mut Ixt;
    pub fn partyline_glue_ixt_free(ixt: *mut Ixt);
    pub fn partyline_glue_ixt_read(ixt: *mut Ixt, dialog: *mut *mut Dialog, start: *mut Deadline, counter: *mut c_int);
    pub fn partyline_glue_ixt_send(ixt: *mut Ixt, out: *mut Resend) -> c_int;
    pub fn partyline_glue_ixt_answered(ixt: *mut Ixt, ack: *mut Message) -> c_int;
    pub fn partyline_glue_dialog_call(dialog: *mut Dialog) -> *const c_char;
    pub fn partyline_glue_message_call(message: *mut Message) -> *const c_char;

    pub fn partyline_glue_event_view(event: *mut Event, view: *mut EventView) -> c_int;
    pub fn partyline_glue_event_key(event: *mut Event, view: *mut EventView) -> c_int;
    pub fn partyline_glue_matches(tr: *mut Transaction, event: *mut Event, dir: c_int) -> c_int;
    pub fn partyline_glue_event_set_id(event: *mut Event, id: c_int);
    pub fn partyline_glue_event_starts(event: *mut Event, request: *mut *mut Message) -> c_int;

    pub fn partyline_list_add(list: *mut List, element: *mut c_void, at: c_int) -> c_int;
    pub fn partyline_list_remove(list: *mut List, at: c_int) -> c_int;
    pub fn partyline_list_iterator_remove(iterator: *mut Iterator) -> *mut c_void;
    pub fn partyline_list_of(iterator: *mut Iterator) -> *mut List;

    pub fn partyline_fifo_setup(ff: *mut Fifo, owner: *mut c_void) -> c_int;
    pub fn partyline_fifo_put(ff: *mut Fifo, element: *mut c_void, front: c_int, failed: *mut c_int) -> *mut c_void;
    pub fn partyline_fifo_take(ff: *mut Fifo) -> *mut c_void;
    pub fn partyline_fifo_count(ff: *mut Fifo) -> c_int;
    pub fn partyline_fifo_owner(ff: *mut Fifo) -> *mut c_void;
    pub fn partyline_fifo_drop(ff: *mut Fifo);
}

unsafe extern "C-unwind" {
    /// Callbacks run in here: they may leave by `pthread_exit`.
    pub fn partyline_glue_execute(
        call: *mut c_void,
        next: unsafe extern "C" fn(*mut c_void, *mut Step) -> c_int,
        leave: unsafe extern "C" fn(*mut c_void),
    );
    /// The same.
    pub fn partyline_glue_resend(
        call: *mut c_void,
        next: unsafe extern "C" fn(*mut c_void, *mut Resend) -> c_int,
        leave: unsafe extern "C" fn(*mut c_void),
    );
    /// Waits: a thread may be cancelled in it.
    pub fn partyline_fifo_wait(ff: *mut Fifo) -> *mut c_void;
}
