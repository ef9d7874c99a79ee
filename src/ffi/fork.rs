//! Fork detection: threads do not survive a fork, so what runs on threads of ours must not be used in the child.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Code, Error};

static FORKS: AtomicU32 = AtomicU32::new(0);

/// The fork that an object was made in. Cheap to check: one load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth(u32);

impl Birth {
    /// The process as it is now. The first call installs the counter.
    pub fn here() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            #[cfg(unix)]
            {
                unsafe extern "C" fn in_child() {
                    FORKS.fetch_add(1, Ordering::Relaxed);
                }
                // SAFETY: the handler is a plain function that lives for ever (the library is never unloaded) and only
                // touches an atomic, which is allowed in a forked child.
                unsafe {
                    libc::pthread_atfork(None, None, Some(in_child));
                }
            }
        });
        Birth(FORKS.load(Ordering::Relaxed))
    }

    /// An error if the process has forked since.
    pub fn check(self, what: &str) -> Result<(), Error> {
        if self.0 == FORKS.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(Error::new(
                Code::State,
                format!("this {what} was made before a fork: its threads are in the parent, make a new one here"),
            ))
        }
    }
}
