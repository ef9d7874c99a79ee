//! The walk of one message through the chain: strands, calls, the chain's end.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::core::Core;
use super::count::Dropped;
use super::exchange::{Exchange, Kept};
use super::plugin::{Link, Verdict};
use crate::sched::{Admit, Next, Permit};
use crate::sip::Method;

/// A plugin call that takes longer is taken for one that blocks.
pub(super) const SLOW: Duration = Duration::from_millis(1);
/// How long a plugin is remembered as one that blocks.
pub(super) const SLOW_FOR: Duration = Duration::from_secs(60);

thread_local! {
    /// Messages whose strand this thread holds, to be run when it has finished its own.
    static LOCAL: RefCell<Vec<(Kept, Permit<Kept>)>> = const { RefCell::new(Vec::new()) };
}

impl Core {
    /// Walks a message through the chain from where it is.
    pub(super) fn walk(&self, exchange: &mut Exchange<'_>, mut permit: Option<Permit<Kept>>) {
        let method = exchange.message.method();
        while let Some((step, link)) = self.chain.next(exchange.step, method) {
            exchange.step = step;
            let permit = match permit.take() {
                Some(permit) => permit,
                None => match self.enter(link, exchange) {
                    Some(permit) => permit,
                    None => return,
                },
            };
            if link.is_slow(self.born) && !exchange.alone {
                // Leave the batch: the call may block.
                self.submit(exchange.keep(step), Some(permit));
                return;
            }
            let verdict = self.call(step, link, exchange);
            self.release(permit, exchange.backlog);
            if verdict != Verdict::Next || exchange.answered || exchange.handed_on {
                return;
            }
            exchange.step += 1;
        }
        self.end(exchange);
    }

    /// The chain has ended and nobody has taken the message.
    pub(super) fn end(&self, exchange: &mut Exchange<'_>) {
        if !exchange.message.is_request() {
            return self.count.drop(Dropped::Response);
        }
        match exchange.message.method() {
            Method::Ack => self.count.drop(Dropped::Ack),
            Method::Register if self.registrar.is_some() => {
                if let Some(registrar) = &self.registrar {
                    // Done or pending: either way it is the registrar's now; an error is a defect, answered with 500.
                    if exchange.authorize_and_register(registrar).is_err() {
                        let _ = exchange.reply(500, None, b"", b"");
                    }
                }
            }
            _ => {
                let _ = exchange.reply(501, None, b"", b"");
            }
        }
    }

    /// A place on the plugin's strand, or `None`: the message waits there, or was refused.
    pub(super) fn enter(&self, link: &Link, exchange: &mut Exchange<'_>) -> Option<Permit<Kept>> {
        let key = exchange.strand_key(link.plugin.policy);
        if let Some(permit) = link.strands.try_enter(key) {
            return Some(permit);
        }
        match link.strands.admit(key, exchange.keep(exchange.step)) {
            // It became free in between.
            Admit::Run(_, permit) => Some(permit),
            Admit::Queued => {
                exchange.handed_on = true;
                None
            }
            Admit::Full(_) => {
                link.refused.inc();
                exchange.refuse();
                None
            }
        }
    }

    /// Gives the strand to its next message: run by this thread if nothing else waits for it, or by another.
    pub(super) fn release(&self, mut permit: Permit<Kept>, backlog: Option<&Arc<Backlog>>) {
        match permit.next() {
            Next::Done => {}
            Next::Run(kept) if backlog.is_none_or(|b| b.rest.lock().is_empty()) => {
                LOCAL.with_borrow_mut(|local| local.push((kept, permit)))
            }
            Next::Run(kept) | Next::Yield(kept) => self.submit(kept, Some(permit)),
        }
    }

    /// Runs what strands gave to this thread.
    pub(super) fn run_local(&self) {
        while let Some((kept, permit)) = LOCAL.with_borrow_mut(Vec::pop) {
            let mut permit = Some(permit);
            self.with_kept(kept, |exchange| {
                exchange.alone = true;
                self.walk(exchange, permit.take());
            });
        }
    }

    pub(super) fn call(&self, step: usize, link: &Link, exchange: &mut Exchange<'_>) -> Verdict {
        link.calls.inc();
        let began = Instant::now();
        if let Some(backlog) = exchange.backlog {
            backlog.link.store(step, Ordering::Relaxed);
            backlog.since.store((began - self.born).as_micros() as u64 + 1, Ordering::Release);
        }
        let verdict = link.plugin.handler.call(exchange);
        if let Some(backlog) = exchange.backlog {
            backlog.since.store(0, Ordering::Release);
        }
        let took = began.elapsed();
        link.run.record(took.as_nanos() as u64);
        if took > SLOW {
            link.blocks_until(self.born.elapsed() + SLOW_FOR);
            if took > link.deadline {
                self.count.slow_calls.inc();
                tracing::warn!(plugin = link.plugin.name, ?took, deadline = ?link.deadline, "a plugin call took too long");
            }
        }
        verdict
    }
}

impl Link {
    pub(super) fn blocks_until(&self, until: Duration) {
        self.slow_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    fn is_slow(&self, born: Instant) -> bool {
        let until = self.slow_until.load(Ordering::Relaxed);
        until != 0 && born.elapsed().as_millis() as u64 <= until
    }
}
