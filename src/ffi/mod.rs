//! What every C boundary needs: error codes and the text behind them, the guard that each exported function opens with,
//! handles, borrowed C strings, and fork detection. Knows nothing of what the functions do.
//!
//! Promises to the rooms below:
//! - a panic never crosses into C: [`entry`] turns it into [`Code::Panic`];
//! - a handle that C passes is looked up, never dereferenced: garbage, a freed handle and a handle of another kind are
//!   all [`Code::Invalid`] (see [`handle`]);
//! - each error leaves a text that `partyline_last_error()` returns on the same thread.

mod entry;
mod error;
pub mod fork;
pub mod handle;
mod library;
mod text;
pub mod thread;

pub use entry::{entry, entry_value};
pub use error::{Code, Error, last_error, set_last_error};
pub use handle::{HandleTable, Kind};
pub use library::Library;
pub use text::{bytes, out, text};
