//! The walk of one message through the chain: strands, calls, the chain's end.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::backlog::Backlog;
use super::core::Core;
use super::count::Dropped;
use super::exchange::{Exchange, Kept};
use super::plugin::{Link, Pass, Policy, Verdict};
use crate::sched::{Admit, Lane, Next, Permit};
use crate::sip::Method;

thread_local! {
    /// Messages whose strand this thread holds, to be run when it has finished its own.
    static LOCAL: RefCell<Vec<(Kept, Pass)>> = const { RefCell::new(Vec::new()) };
}

impl Core {
    /// Walks a message through the chain from where it is.
    pub(super) fn walk(&self, exchange: &mut Exchange<'_>, mut pass: Option<Pass>) {
        let method = exchange.message.method();
        while let Some((step, link)) = self.chain.next(exchange.step, method) {
            exchange.step = step;
            let pass = match pass.take() {
                Some(pass) => pass,
                None => match self.enter(link, exchange) {
                    Some(pass) => pass,
                    None => return,
                },
            };
            if link.pace.blocks() && !exchange.alone {
                // Leave the batch, and the leader: the call may block.
                self.submit(exchange.keep(step), Some(pass));
                return;
            }
            let verdict = self.call(step, link, exchange);
            self.release(pass, exchange.backlog);
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

    /// A turn at the plugin, or `None`: the message waits for one, or was refused.
    pub(super) fn enter(&self, link: &Link, exchange: &mut Exchange<'_>) -> Option<Pass> {
        let policy = link.plugin.policy;
        let key = exchange.strand_key(policy);
        let strand = match link.strands.try_enter(key) {
            Some(strand) => strand,
            None => {
                // Within a call nothing passes anything: a BYE must not come before its INVITE.
                let lane = if policy == Policy::KeyedByCallId { Lane::Normal } else { exchange.lane };
                match link.strands.admit_in(lane, key, exchange.keep(exchange.step)) {
                    // It became free in between.
                    Admit::Run(_, strand) => strand,
                    Admit::Queued => {
                        exchange.handed_on = true;
                        return None;
                    }
                    Admit::Full(_) => {
                        link.refused.inc();
                        exchange.refuse();
                        return None;
                    }
                }
            }
        };
        let Some(gate) = &link.gate else { return Some(Pass { strand, gate: None }) };
        if let Some(permit) = gate.try_enter(0) {
            return Some(Pass { strand, gate: Some(permit) });
        }
        let (_, pass) = self.through_gate(exchange.keep(exchange.step), strand).or_else(|| {
            exchange.handed_on = true;
            None
        })?;
        Some(pass)
    }

    /// The turn on the strand is had; those of a keyed plugin with a bound on all its calls may have to wait once more.
    pub(super) fn through_gate(&self, kept: Kept, strand: Permit<Kept>) -> Option<(Kept, Pass)> {
        let link = &self.chain.links()[kept.step];
        let Some(gate) = &link.gate else { return Some((kept, Pass { strand, gate: None })) };
        match gate.admit_in(kept.lane, 0, (kept, strand)) {
            Admit::Run((kept, strand), permit) => Some((kept, Pass { strand, gate: Some(permit) })),
            Admit::Queued => None,
            Admit::Full((kept, strand)) => {
                link.refused.inc();
                self.refuse(kept);
                self.release_quietly(Pass { strand, gate: None });
                None
            }
        }
    }

    /// Gives the turn to the next message: run by this thread if nothing else waits for it, or by another.
    pub(super) fn release(&self, Pass { mut strand, gate }: Pass, backlog: Option<&Arc<Backlog>>) {
        let here = backlog.is_none_or(|b| b.rest.lock().is_empty());
        if let Some(mut gate) = gate {
            if let Next::Run((kept, strand)) | Next::Yield((kept, strand)) = gate.next() {
                self.submit(kept, Some(Pass { strand, gate: Some(gate) }));
            }
        }
        let (kept, here) = match strand.next() {
            Next::Done => return,
            Next::Run(kept) => (kept, here),
            Next::Yield(kept) => (kept, false),
        };
        let Some((kept, pass)) = self.through_gate(kept, strand) else { return };
        if here {
            LOCAL.with_borrow_mut(|local| local.push((kept, pass)));
        } else {
            self.submit(kept, Some(pass));
        }
    }

    /// Runs what strands gave to this thread.
    pub(super) fn run_local(&self) {
        while let Some((kept, pass)) = LOCAL.with_borrow_mut(Vec::pop) {
            self.run_kept(kept, Some(pass));
        }
    }

    pub(super) fn call(&self, step: usize, link: &Link, exchange: &mut Exchange<'_>) -> Verdict {
        link.calls.inc();
        let began = Instant::now();
        if let Some(leader) = exchange.leader {
            leader.renew(began);
        }
        if let Some(backlog) = exchange.backlog {
            backlog.link.store(step, Ordering::Relaxed);
            backlog.since.store((began - self.born).as_micros() as u64 + 1, Ordering::Release);
        }
        let leader = exchange.leader.filter(|leader| leader.is_lent());
        let watch = self.dog.enter(link.watched, began);
        let verdict = link.plugin.handler.call(exchange);
        drop(watch);
        if leader.is_some_and(|leader| !leader.is_lent()) {
            link.promotions.inc();
        }
        // Who came to the rescue has counted it already.
        let rescued = exchange.backlog.is_some_and(|backlog| backlog.since.swap(0, Ordering::AcqRel) == 0);
        let took = began.elapsed();
        link.pace.record(took, took > self.slow, rescued);
        verdict
    }
}
