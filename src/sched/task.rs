//! What a thread of a pool runs: 32 bytes, and no allocation unless a closure is boxed.

use std::fmt;
use std::sync::Arc;

/// Something that can be run many times, from any thread: an object that is shared anyway (an engine, a timer service)
/// and a word that tells it what is meant.
pub trait Run: Send + Sync {
    fn run(self: Arc<Self>, word: u64);
}

/// A call to be made by a thread of a pool.
pub enum Task {
    /// No allocation: one count of the object is held.
    Shared(Arc<dyn Run>, u64),
    /// No allocation: a function and its two words. A C callback comes as its address and its argument, with a function
    /// of `capi` that calls it.
    Call(fn(usize, usize), usize, usize),
    /// For cold paths.
    Once(Box<dyn FnOnce() + Send>),
}

impl Task {
    pub fn once(f: impl FnOnce() + Send + 'static) -> Self {
        Task::Once(Box::new(f))
    }

    pub fn shared(run: &Arc<impl Run + 'static>, word: u64) -> Self {
        Task::Shared(Arc::clone(run) as Arc<dyn Run>, word)
    }

    pub fn run(self) {
        match self {
            Task::Shared(run, word) => run.run(word),
            Task::Call(f, a, b) => f(a, b),
            Task::Once(f) => f(),
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Shared(..) => "Task::Shared",
            Task::Call(..) => "Task::Call",
            Task::Once(_) => "Task::Once",
        })
    }
}
