//! Threads and time, for rooms that do not want to know about either: a leader/follower pool ([`Pool`]), strands
//! ([`StrandSet`]: what must not run twice at once), timers ([`Timers`], [`Clockwork`]) and events posted to thread groups
//! ([`Groups`]). Knows nothing of sockets or SIP: where events come from is a [`Source`].
//!
//! What it promises: no wake-up is lost under any interleaving (loom models in `tests/sched_loom.rs`); a task or callback
//! that blocks costs one thread; every queue is bounded and says so when it is full; nothing is called under a lock of
//! ours; nothing is linear in the number of timers, strands or tasks alive.

#![deny(unsafe_code)]

pub mod crew;
mod group;
mod loan;
mod overload;
mod pool;
mod strand;
mod sync;
mod task;
pub mod timers;
mod watchdog;
pub mod wheel;

pub use crew::{Figures, Lane};
pub use group::{Clockwork, GroupId, Groups, Refused, TimerCall, Why};
pub use overload::{Class, Overload, Verdict, Watermarks};
pub use pool::{Clock, Leader, LeftOver, Options, Pool, Source};
pub use strand::{Admit, Bounds, Next, Permit, Policy, StrandSet};
pub use task::{Run, Task};
pub use timers::{Cancel, TimerId, Timers};
pub use watchdog::{Overdue, Patrol, Watch, Watchdog, Watched};
