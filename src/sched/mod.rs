//! (room sched)
