//! Shared objects that are loaded from a private copy of their file.
//!
//! dlopen of a path that is loaded already gives the old code again, and to write over a file that is mapped kills the
//! process. So the bytes are read first, looked at, and loaded from memory (Linux: a memfd) or from a temporary file that
//! is removed at once: the file that the user named can be replaced or overwritten at any time.

use std::ffi::{CStr, c_void};

use super::{Code, Error};

/// A loaded shared object; dropping it unmaps the code.
#[derive(Debug)]
pub struct Library {
    handle: *mut c_void,
}

// SAFETY: the handle is only passed to dlsym and dlclose, which may be called from any thread.
unsafe impl Send for Library {}
// SAFETY: as for Send.
unsafe impl Sync for Library {}

impl Library {
    /// Loads the file as it is now.
    pub fn open_copy(path: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::new(Code::Io, format!("{path} cannot be loaded: {why}"));
        let bytes = std::fs::read(path).map_err(|e| wrong(&e.to_string()))?;
        if cfg!(target_os = "linux") {
            whole_elf(&bytes).map_err(wrong)?;
        }
        let handle = sys::open(path, &bytes).map_err(|why| wrong(&why))?;
        Ok(Library { handle })
    }

    /// The address of an exported symbol.
    pub fn symbol(&self, name: &CStr) -> Option<*const c_void> {
        let address = sys::symbol(self.handle, name);
        (!address.is_null()).then_some(address.cast_const())
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        sys::close(self.handle);
    }
}

/// A file that is being written, or was cut off, ends before its section headers do. The loader would map what is not
/// there, and the first look at it would be a SIGBUS.
fn whole_elf(bytes: &[u8]) -> Result<(), &'static str> {
    let number = |at: usize, size: usize| -> Option<u64> {
        let field = bytes.get(at..at + size)?;
        let little = field.iter().rev().fold(0u64, |sum, b| sum << 8 | u64::from(*b));
        let big = field.iter().fold(0u64, |sum, b| sum << 8 | u64::from(*b));
        Some(if bytes[5] == 2 { big } else { little })
    };
    if bytes.get(..4) != Some(b"\x7fELF") {
        return Err("it is not an ELF file");
    }
    let end = match bytes.get(4) {
        // e_shoff, e_shentsize, e_shnum.
        Some(2) => number(0x28, 8).zip(number(0x3a, 2)).zip(number(0x3c, 2)),
        Some(1) => number(0x20, 4).zip(number(0x2e, 2)).zip(number(0x30, 2)),
        _ => None,
    };
    match end {
        Some(((offset, size), count)) if offset.saturating_add(size * count) <= bytes.len() as u64 => Ok(()),
        _ => Err("the file is cut off"),
    }
}

#[cfg(unix)]
mod sys {
    use std::ffi::{CStr, CString, c_void};
    use std::fs::File;
    use std::io::Write;

    pub fn open(path: &str, bytes: &[u8]) -> Result<*mut c_void, String> {
        copied(path, bytes, |copy| {
            let copy = CString::new(copy).map_err(|_| "its name holds a zero byte".to_owned())?;
            // SAFETY: a string that lives during the call. The constructors of the file run; that is what its owner
            // asked for by naming it.
            let handle = unsafe { libc::dlopen(copy.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if !handle.is_null() {
                return Ok(handle);
            }
            // SAFETY: the text of the error above, on the same thread; NULL if there was none.
            let text = unsafe { libc::dlerror() };
            if text.is_null() {
                return Err("the loader gives no reason".to_owned());
            }
            // SAFETY: not NULL, a string that is valid until the next call of the loader's on this thread.
            let text = unsafe { CStr::from_ptr(text) };
            // The name in front is that of the copy.
            let text = text.to_string_lossy();
            Err(text
                .strip_prefix(&*copy.to_string_lossy())
                .map_or(&*text, |rest| rest.trim_start_matches(": "))
                .to_owned())
        })
    }

    #[cfg(target_os = "linux")]
    fn copied<R>(path: &str, bytes: &[u8], load: impl FnOnce(String) -> Result<R, String>) -> Result<R, String> {
        use std::os::fd::{AsRawFd, FromRawFd};
        let name = std::path::Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = CString::new(name).map_err(|_| "its name holds a zero byte".to_owned())?;
        // SAFETY: a string that lives during the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(format!("no memory for a copy: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: a descriptor that was just made and belongs to nobody else.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(bytes).map_err(|e| format!("no copy can be made: {e}"))?;
        load(format!("/proc/self/fd{}/{}", detour(), file.as_raw_fd()))
    }

    /// Another way to the same directory each time. The loader knows what it has loaded by name first, and a descriptor's
    /// number comes back: an object that could not be unmapped would be found in place of the new one.
    #[cfg(target_os = "linux")]
    fn detour() -> String {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let mut number = COPIES.fetch_add(1, Ordering::Relaxed);
        let mut steps = String::new();
        while number > 0 {
            steps.push_str(if number & 1 == 1 { "/./" } else { "/." });
            number >>= 1;
        }
        steps
    }

    #[cfg(not(target_os = "linux"))]
    fn copied<R>(_: &str, bytes: &[u8], load: impl FnOnce(String) -> Result<R, String>) -> Result<R, String> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let copy = std::env::temp_dir().join(format!("partyline-{}-{number}.so", std::process::id()));
        let written = File::create_new(&copy).and_then(|mut file| file.write_all(bytes));
        let loaded = match written {
            Ok(()) => load(copy.to_string_lossy().into_owned()),
            Err(e) => Err(format!("no copy can be made in {}: {e}", copy.display())),
        };
        let _ = std::fs::remove_file(&copy);
        loaded
    }

    pub fn symbol(handle: *mut c_void, name: &CStr) -> *mut c_void {
        // SAFETY: a handle that dlopen gave and dlclose has not taken, and a string that lives during the call.
        unsafe { libc::dlsym(handle, name.as_ptr()) }
    }

    pub fn close(handle: *mut c_void) {
        // SAFETY: the handle is closed once, by the drop of its owner.
        unsafe { libc::dlclose(handle) };
    }
}

#[cfg(not(unix))]
mod sys {
    use std::ffi::{CStr, c_void};

    pub fn open(_: &str, _: &[u8]) -> Result<*mut c_void, String> {
        Err("plugins are loaded from files on Unix systems only; register this one from the program".to_owned())
    }

    pub fn symbol(_: *mut c_void, _: &CStr) -> *mut c_void {
        std::ptr::null_mut()
    }

    pub fn close(_: *mut c_void) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_whole_elf_file_is_refused_before_the_loader_sees_it() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(whole_elf(&own), Ok(()));
        for (cut, why) in [(0, "not an ELF"), (3, "not an ELF"), (64, "cut off"), (own.len() - 1, "cut off")] {
            assert!(whole_elf(&own[..cut]).unwrap_err().contains(why), "{cut}");
        }
        assert!(Library::open_copy("/nowhere/at-all.so").unwrap_err().to_string().contains("/nowhere/at-all.so"));
    }
}
