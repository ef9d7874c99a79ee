//! `ppl_uinfo_*`: users found by hash. Everything else stays libppl's: it makes and frees the users, keeps its list and its
//! structures, and callers walk `user_infos`, `user->bindings` and `next` as ever.
//!
//! Who may change what: users are made and removed through `ppl_uinfo_create`, `ppl_uinfo_remove` and `ppl_uinfo_free_all`
//! (which take this file's lock) or put in front of `user_infos` by hand (they are found at the next miss); a user's names
//! and login do not change once it stands in the list. Bindings are libppl's business and have no lock: whoever runs hooks
//! of several plugins at once gives those that touch one user's bindings the policy `keyed:aor` or `serial`.
//!
//! Each name passes its call on to libppl; where no libppl with all of them is loaded, or with `PARTYLINE_UINFO=off`, it
//! does nothing else.
#![cfg_attr(not(feature = "interpose-libc"), allow(dead_code, reason = "the names stand in libpartyline.so alone"))]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU8, Ordering};

use std::collections::HashMap;

use parking_lot::Mutex;

use super::counts::{self, COUNTS, bump};
use super::persist::{self, Kept};
use crate::pool::os;

/// `ppl_uinfo_t`, `binding_t`, `osip_uri_t`, `osip_contact_t`: seen by the glue alone.
pub enum User {}
pub enum Binding {}
pub enum Uri {}
pub enum Contact {}

#[repr(C)]
struct View {
    contact: *mut c_char,
    path: *const c_char,
    q: *const c_char,
    when: i64,
}

unsafe extern "C" {
    fn partyline_glue_uri_user(uri: *const Uri) -> *const c_char;
    fn partyline_glue_user_name(user: *const User, i: usize) -> *const c_char;
    fn partyline_glue_user_login(user: *const User) -> *const c_char;
    fn partyline_glue_user_next(user: *const User) -> *mut User;
    fn partyline_glue_binding_first(user: *const User) -> *mut Binding;
    fn partyline_glue_binding_next(binding: *const Binding) -> *mut Binding;
    fn partyline_glue_binding_read(binding: *const Binding, view: *mut View) -> c_int;
    fn partyline_glue_text_free(text: *mut c_char);
    fn partyline_glue_contact_new(text: *const c_char) -> *mut Contact;
    fn partyline_glue_contact_free(contact: *mut Contact);
}

/// libppl's own.
#[derive(Clone, Copy)]
struct Next {
    init: unsafe extern "C" fn() -> c_int,
    find_by_aor: unsafe extern "C" fn(*mut Uri) -> *mut User,
    find_by_login: unsafe extern "C" fn(*mut c_char) -> *mut User,
    create: unsafe extern "C" fn(*mut Uri, *mut c_char, *mut c_char) -> *mut User,
    add: unsafe extern "C" fn(*mut User, *mut Contact, *mut c_char, *mut c_char) -> c_int,
    remove: unsafe extern "C" fn(*mut User),
    store: unsafe extern "C" fn(*mut User),
    free_all: unsafe extern "C" fn(),
    /// `user_infos`.
    head: *mut *mut User,
}

// SAFETY: addresses of functions and of a global variable.
unsafe impl Send for Next {}
// SAFETY: as above.
unsafe impl Sync for Next {}

/// 0 until it has been looked, 1 ours, 2 libppl's alone.
static STATE: AtomicU8 = AtomicU8::new(0);
static NEXT: Mutex<Option<Next>> = Mutex::new(None);

fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string. RTLD_NEXT: what is loaded behind this library.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

fn resolve() -> Option<Next> {
    macro_rules! find {
        ($name:literal) => {{
            let found = symbol($name);
            if found.is_null() {
                return None;
            }
            #[allow(clippy::missing_transmute_annotations, reason = "the type is the field's")]
            // SAFETY: libppl's function of this name has this type.
            unsafe {
                core::mem::transmute(found)
            }
        }};
    }
    let head = symbol(c"user_infos");
    if head.is_null() {
        return None;
    }
    Some(Next {
        init: find!(c"ppl_uinfo_init"),
        find_by_aor: find!(c"ppl_uinfo_find_by_aor"),
        find_by_login: find!(c"ppl_uinfo_find_by_login"),
        create: find!(c"ppl_uinfo_create"),
        add: find!(c"ppl_uinfo_add_binding_with_path"),
        remove: find!(c"ppl_uinfo_remove"),
        store: find!(c"ppl_uinfo_store_bindings"),
        free_all: find!(c"ppl_uinfo_free_all"),
        head: head.cast(),
    })
}

/// libppl's functions, and whether ours stand before them.
fn next() -> Option<(Next, bool)> {
    let mut guard = NEXT.lock();
    if STATE.load(Ordering::Acquire) == 0 {
        *guard = resolve();
        let on = guard.is_some() && os::env(c"PARTYLINE_UINFO") != Some(b"off");
        if on {
            counts::announce();
        }
        STATE.store(if on { 1 } else { 2 }, Ordering::Release);
    }
    (*guard).map(|next| (next, STATE.load(Ordering::Acquire) == 1))
}

/// Users by what they are found by. Addresses stay valid while the user stands in libppl's list.
#[derive(Default)]
struct Index {
    by_name: HashMap<Box<[u8]>, Vec<usize>>,
    by_login: HashMap<Box<[u8]>, Vec<usize>>,
    /// The head of libppl's list when it was last looked at.
    head: usize,
    /// All users are being freed: the database keeps them.
    ending: bool,
}

static INDEX: Mutex<Option<Index>> = Mutex::new(None);

/// Bytes of a C string; `None` for NULL.
///
/// # Safety
/// `text` is NULL or a C string that outlives the use of what is returned.
unsafe fn bytes<'a>(text: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// In lower case, on the stack where it fits.
fn lower<R>(name: &[u8], body: impl FnOnce(&[u8]) -> R) -> R {
    let mut short = [0; 128];
    match short.get_mut(..name.len()) {
        Some(room) => {
            room.copy_from_slice(name);
            room.make_ascii_lowercase();
            body(room)
        }
        None => body(&name.to_ascii_lowercase()),
    }
}

fn put(map: &mut HashMap<Box<[u8]>, Vec<usize>>, key: &[u8], user: usize) {
    match map.get_mut(key) {
        // The last one stands first in libppl's list, and is what its scan would find.
        Some(users) => users.push(user),
        None => drop(map.insert(key.into(), vec![user])),
    }
}

fn take(map: &mut HashMap<Box<[u8]>, Vec<usize>>, key: &[u8], user: usize) {
    if let Some(users) = map.get_mut(key) {
        users.retain(|other| *other != user);
        if users.is_empty() {
            map.remove(key);
        }
    }
}

impl Index {
    /// # Safety
    /// The user stands in libppl's list.
    unsafe fn add(&mut self, user: *mut User) {
        bump(&COUNTS.scanned);
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0.. {
                let Some(name) = bytes(partyline_glue_user_name(user, i)) else { break };
                lower(name, |name| put(&mut self.by_name, name, user as usize));
            }
            if let Some(login) = bytes(partyline_glue_user_login(user)) {
                put(&mut self.by_login, login, user as usize);
            }
        }
    }

    /// # Safety
    /// The user still has its names.
    unsafe fn remove(&mut self, user: *mut User) {
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0.. {
                let Some(name) = bytes(partyline_glue_user_name(user, i)) else { break };
                lower(name, |name| take(&mut self.by_name, name, user as usize));
            }
            if let Some(login) = bytes(partyline_glue_user_login(user)) {
                take(&mut self.by_login, login, user as usize);
            }
        }
    }

    /// What was put in front of libppl's list past us; true if there was something.
    ///
    /// # Safety
    /// `next` is libppl's.
    unsafe fn catch_up(&mut self, next: &Next) -> bool {
        // SAFETY: the list's elements are users.
        unsafe {
            let first = next.head.read();
            if first as usize == self.head {
                return false;
            }
            let mut new = Vec::new();
            let mut user = first;
            while !user.is_null() && user as usize != self.head {
                new.push(user);
                user = partyline_glue_user_next(user);
            }
            if user.is_null() && self.head != 0 {
                // The one that stood first is gone: all of them anew.
                self.by_name.clear();
                self.by_login.clear();
            }
            for user in new.into_iter().rev() {
                self.add(user);
            }
            self.head = first as usize;
        }
        true
    }

    fn by_name(&self, name: &[u8]) -> *mut User {
        lower(name, |name| self.by_name.get(name).and_then(|users| users.last().copied()).unwrap_or(0)) as *mut User
    }

    fn by_login(&self, login: &[u8]) -> *mut User {
        self.by_login.get(login).and_then(|users| users.last().copied()).unwrap_or(0) as *mut User
    }
}

fn with_index<R>(body: impl FnOnce(&mut Index) -> R) -> R {
    body(INDEX.lock().get_or_insert_with(Index::default))
}

unsafe fn init(next: &Next) -> c_int {
    *INDEX.lock() = None;
    if let Err(error) = persist::open() {
        let mut line = os::Line::<512>::new();
        line.put(format_args!("partyline: PARTYLINE_DB: {error}\n"));
        line.say();
        return -1;
    }
    // SAFETY: the caller's promise.
    unsafe { (next.init)() }
}

unsafe fn find_by_aor(next: &Next, aor: *mut Uri) -> *mut User {
    bump(&COUNTS.find_by_aor);
    // SAFETY: the caller's promise: a URI of osip2's, or NULL.
    unsafe {
        let Some(name) = bytes(partyline_glue_uri_user(aor)) else { return null_mut() };
        let found = with_index(|index| match index.by_name(name) {
            user if !user.is_null() => user,
            user if !index.catch_up(next) => user,
            _ => index.by_name(name),
        });
        if found.is_null() { revive(next, aor, name) } else { found }
    }
}

/// A user whom the database knows, and nobody has seen since the start.
unsafe fn revive(next: &Next, aor: *mut Uri, name: &[u8]) -> *mut User {
    let Some(persist) = persist::current() else { return null_mut() };
    let kept = persist.load(name);
    if kept.is_empty() {
        return null_mut();
    }
    // SAFETY: the caller's promise. Made under the index's lock, so that two threads do not make two.
    unsafe {
        with_index(|index| {
            index.catch_up(next);
            let known = index.by_name(name);
            if !known.is_null() {
                return known;
            }
            let user = (next.create)(aor, null_mut(), null_mut());
            if !user.is_null() {
                index.catch_up(next);
                bump(&COUNTS.loaded);
                // libppl puts a binding in front: the best comes last.
                for binding in kept.iter().rev() {
                    give(next, user, binding);
                }
            }
            user
        })
    }
}

unsafe fn give(next: &Next, user: *mut User, binding: &Kept) {
    let left = i64::from(binding.when) - i64::from(crate::registrar::system_clock());
    if left <= 0 {
        return;
    }
    let mut text = Vec::with_capacity(binding.contact.len() + 16);
    text.push(b'<');
    text.extend_from_slice(&binding.contact);
    text.push(b'>');
    if binding.q <= 1000 {
        text.extend_from_slice(format!(";q={}.{:03}", binding.q / 1000, binding.q % 1000).as_bytes());
    }
    let (Ok(text), Ok(path)) = (std::ffi::CString::new(text), std::ffi::CString::new(&binding.path[..])) else {
        return;
    };
    let Ok(expires) = std::ffi::CString::new(left.to_string()) else { return };
    // SAFETY: libppl copies all of it.
    unsafe {
        let contact = partyline_glue_contact_new(text.as_ptr());
        if contact.is_null() {
            return;
        }
        let path = if binding.path.is_empty() { null_mut() } else { path.as_ptr().cast_mut() };
        (next.add)(user, contact, expires.as_ptr().cast_mut(), path);
        partyline_glue_contact_free(contact);
    }
}

unsafe fn find_by_login(next: &Next, login: *mut c_char) -> *mut User {
    bump(&COUNTS.find_by_login);
    // SAFETY: the caller's promise: a string, or NULL.
    let Some(login) = (unsafe { bytes(login) }) else { return null_mut() };
    with_index(|index| match index.by_login(login) {
        user if !user.is_null() => user,
        // SAFETY: libppl's list.
        user if !unsafe { index.catch_up(next) } => user,
        _ => index.by_login(login),
    })
}

unsafe fn create(next: &Next, url: *mut Uri, login: *mut c_char, passwd: *mut c_char) -> *mut User {
    bump(&COUNTS.create);
    // libppl changes its list, which has no lock of its own: ours is held.
    with_index(|index| {
        // SAFETY: the caller's promise.
        unsafe {
            index.catch_up(next);
            let user = (next.create)(url, login, passwd);
            index.catch_up(next);
            user
        }
    })
}

unsafe fn remove(next: &Next, user: *mut User) {
    bump(&COUNTS.remove);
    if user.is_null() {
        return;
    }
    // SAFETY: the caller's promise: the user stands in the list.
    unsafe {
        let name = bytes(partyline_glue_user_name(user, 0)).map(<[u8]>::to_vec);
        let ending = with_index(|index| {
            index.catch_up(next);
            index.remove(user);
            (next.remove)(user);
            index.head = next.head.read() as usize;
            index.ending
        });
        if let (false, Some(name), Some(persist)) = (ending, name, persist::current()) {
            persist.store(&name, &[]);
        }
    }
}

unsafe fn store(next: &Next, user: *mut User) {
    bump(&COUNTS.store);
    // SAFETY: the caller's promise; nobody changes this user's bindings meanwhile.
    unsafe {
        (next.store)(user);
        let Some(persist) = persist::current() else { return };
        let Some(name) = (!user.is_null()).then(|| bytes(partyline_glue_user_name(user, 0))).flatten() else { return };
        let mut all = Vec::new();
        let mut binding = partyline_glue_binding_first(user);
        while !binding.is_null() {
            let mut view = View { contact: null_mut(), path: null_mut(), q: null_mut(), when: 0 };
            if partyline_glue_binding_read(binding, &mut view) == 0 {
                all.push(Kept {
                    contact: bytes(view.contact).unwrap_or_default().to_vec(),
                    path: bytes(view.path).unwrap_or_default().to_vec(),
                    when: u32::try_from(view.when).unwrap_or(0),
                    q: persist::q_of((!view.q.is_null()).then(|| CStr::from_ptr(view.q))),
                });
                partyline_glue_text_free(view.contact);
            }
            binding = partyline_glue_binding_next(binding);
        }
        persist.store(name, &all);
    }
}

unsafe fn free_all(next: &Next) {
    with_index(|index| index.ending = true);
    // SAFETY: the caller's promise. It calls `ppl_uinfo_remove` for each user.
    unsafe { (next.free_all)() };
    *INDEX.lock() = None;
    persist::close();
}

macro_rules! stand_in {
    ($(fn $name:ident = $field:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? { $none:expr })*) => {$(
        /// # Safety
        /// As libppl's function of this name.
        #[cfg(feature = "interpose-libc")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $ret)? {
            match next() {
                // SAFETY: the caller's promise.
                Some((next, true)) => unsafe { $field(&next $(, $arg)*) },
                // SAFETY: as above.
                Some((next, false)) => unsafe { (next.$field)($($arg),*) },
                None => $none,
            }
        }
    )*};
}

stand_in! {
    fn ppl_uinfo_init = init() -> c_int { -1 }
    fn ppl_uinfo_find_by_aor = find_by_aor(aor: *mut Uri) -> *mut User { null_mut() }
    fn ppl_uinfo_find_by_login = find_by_login(login: *mut c_char) -> *mut User { null_mut() }
    fn ppl_uinfo_create = create(url: *mut Uri, login: *mut c_char, passwd: *mut c_char) -> *mut User { null_mut() }
    fn ppl_uinfo_remove = remove(user: *mut User) { () }
    fn ppl_uinfo_store_bindings = store(user: *mut User) { () }
    fn ppl_uinfo_free_all = free_all() { () }
}
