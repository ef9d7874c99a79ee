//! What waits behind the plugin calls of one batch, and how others get at it.
//!
//! A plugin call may block, and then nothing may wait behind it but what its policy orders. So the rest of a batch, and the
//! answers collected so far, stand in a [`Backlog`] that others can reach; whoever leads looks at the backlogs, and when a
//! call has taken longer than `threads.takeover` it sends those answers and hands the rest to other threads.
//!
//! A small batch of what is mostly short the leader walks itself: see [`Core::lend`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::core::{Core, Desk};
use super::exchange::{Exchange, Kept, Out};
use super::plugin::{Pass, Policy};
use crate::net::SendBatch;
use crate::sched::{Lane, Leader, Task};

/// How soon the leader looks at backlogs again.
pub(super) const LOOK: Duration = Duration::from_millis(2);
/// Messages that the leader may walk itself; from so many on the wake-up of another costs little beside them.
const SMALL: usize = 16;
/// Work that is worth the wake-up of another thread: ten times what that costs.
const WORTH: Duration = Duration::from_micros(100);

/// What waits behind the calls of one batch.
#[derive(Default)]
pub(super) struct Backlog {
    pub rest: Mutex<VecDeque<(Kept, Option<Pass>)>>,
    pub out: Mutex<SendBatch>,
    /// When the current call began, in microseconds of the engine's life; 0: no call.
    pub since: AtomicU64,
    /// The link that is called.
    pub link: AtomicUsize,
}

impl Core {
    /// Puts a message into the backlog, with a place on its first plugin's strand; not one that has to wait there, or is
    /// refused.
    pub(super) fn line_up(&self, exchange: &mut Exchange<'_>, backlog: &Backlog) {
        let first = self.chain.next(0, exchange.message.method());
        exchange.step = first.map_or(0, |(step, _)| step);
        let pass = match first.filter(|(_, link)| link.plugin.policy != Policy::Parallel) {
            None => None,
            Some((_, link)) => match self.enter(link, exchange) {
                Some(pass) => Some(pass),
                None => return,
            },
        };
        backlog.rest.lock().push_back((exchange.keep(exchange.step), pass));
    }

    /// Gives leadership away and walks what was lined up.
    pub(super) fn work(&self, desk: &mut Desk, leader: &mut Leader<'_>) {
        desk.lined = 0;
        if desk.backlog.rest.lock().is_empty() {
            return;
        }
        desk.ready.give_back();
        // Known before the next leader waits: it has to look after this batch.
        self.backlogs.lock().push(Arc::clone(&desk.backlog));
        self.backlogged.fetch_add(1, Ordering::SeqCst);
        let (waits, step) = {
            let rest = desk.backlog.rest.lock();
            (rest.len(), rest.front().map_or(0, |(kept, _)| kept.step))
        };
        if self.lend(leader, waits) {
            self.work_off(&desk.backlog, Some(leader));
            leader.reclaim();
            return;
        }
        if !leader.promote() {
            leader.abdicate();
        }
        self.promoted(step);
        self.work_off(&desk.backlog, None);
    }

    /// Whether the leader makes the calls of a batch itself. Not for what takes long as a whole: then another thread is
    /// worth its wake-up, and where much comes in, so are other processors.
    pub(super) fn lend(&self, leader: &mut Leader<'_>, messages: usize) -> bool {
        let expected = self.chain.links().iter().map(|link| link.pace.mean()).sum::<Duration>() * messages as u32;
        messages <= SMALL && expected <= WORTH.min(self.config.takeover) && leader.lend()
    }

    /// Walks what is in the backlog through the chain, with others' help if a call blocks.
    pub(super) fn work_off(&self, backlog: &Arc<Backlog>, leader: Option<&Leader<'_>>) {
        loop {
            let Some((kept, pass)) = backlog.rest.lock().pop_front() else { break };
            self.with_kept_out(kept, Out::Rescuable(&backlog.out), Some(backlog), leader, |exchange| {
                self.walk(exchange, pass)
            });
        }
        self.forget(backlog);
        backlog.out.lock().flush();
        self.run_local();
    }

    pub(super) fn forget(&self, backlog: &Arc<Backlog>) {
        let mut backlogs = self.backlogs.lock();
        if let Some(place) = backlogs.iter().position(|other| Arc::ptr_eq(other, backlog)) {
            backlogs.swap_remove(place);
            self.backlogged.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The leader's look at the batches that are being walked: one whose call takes long is relieved of what waits behind
    /// that call.
    pub(super) fn rescue(&self) {
        let now = self.micros();
        let slow = self.slow.as_micros() as u64;
        let stuck = |b: &Arc<Backlog>| {
            let since = b.since.load(Ordering::Acquire);
            // Taken by one look only, and not if the call ends meanwhile.
            since != 0
                && now.saturating_sub(since) >= slow
                && b.since.compare_exchange(since, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let found: Vec<Arc<Backlog>> = self.backlogs.lock().iter().filter(|b| stuck(b)).cloned().collect();
        for backlog in found {
            if let Some(link) = self.chain.links().get(backlog.link.load(Ordering::Relaxed)) {
                link.pace.share(true);
            }
            // The owner holds this lock only while it renders, never during a call.
            backlog.out.lock().flush();
            let rest = std::mem::take(&mut *backlog.rest.lock());
            // Nothing waits behind it any more.
            self.forget(&backlog);
            if !rest.is_empty() {
                self.rescues.inc();
                let (urgent, others) = rest.into_iter().partition(|(kept, _)| kept.lane == Lane::High);
                self.submit_batch(Lane::High, urgent);
                self.submit_batch(Lane::Normal, others);
            }
        }
    }

    /// What waited behind a call goes to another thread as it is, and can be taken away from there in the same way: a thread
    /// for each message would be woken for nothing but to find it short.
    fn submit_batch(&self, lane: Lane, rest: VecDeque<(Kept, Option<Pass>)>) {
        if rest.is_empty() {
            return;
        }
        let Some(core) = self.me.upgrade() else { return };
        let Some(pool) = self.pool.get().and_then(Weak::upgrade) else { return };
        let count = rest.len() as i64;
        self.count.queued.add(count);
        let backlog = Arc::new(Backlog { rest: Mutex::new(rest), ..Backlog::default() });
        let inner = Arc::clone(&backlog);
        let task = Task::once(move || {
            core.count.queued.add(-count);
            core.backlogs.lock().push(Arc::clone(&inner));
            core.backlogged.fetch_add(1, Ordering::SeqCst);
            core.look_at_backlogs();
            core.work_off(&inner, None);
        });
        if pool.submit_in(lane, task).is_err() {
            self.count.queued.add(-count);
            let rest = std::mem::take(&mut *backlog.rest.lock());
            for (kept, pass) in rest {
                self.with_kept(kept, |exchange| exchange.refuse());
                if let Some(pass) = pass {
                    self.release_quietly(pass);
                }
            }
        }
    }

    /// After something that has added one while the leader may wait without looking at any.
    fn look_at_backlogs(&self) {
        if self.blind.load(Ordering::SeqCst) {
            self.reactor.wake();
        }
    }

    pub(super) fn micros(&self) -> u64 {
        self.born.elapsed().as_micros() as u64 + 1
    }
}
