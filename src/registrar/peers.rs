//! Other servers on the same table: what they change is polled for, and what is over is swept out.
//!
//! Promises: a change of another server is in the cache within one `poll_interval` and a round trip, at a cost that depends
//! on what the others changed and on nothing else; the newer state of a binding stays, wherever it came from
//! ([`is_newer`](super::store)); a row that expired or was removed is deleted by nobody before [`GRACE`] has passed.
//!
//! `last_modified` has a resolution of a second, commits come in another order than their seconds, and clocks differ: each
//! poll looks back [`SHORT`], every [`FULL_EVERY`]th one [`OVERLAP`]. What was seen before changes nothing.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Shared;
use super::partition::before;
use super::store::{Aor, Row, Session, StoreError};

/// Seconds that a poll looks back.
const OVERLAP: u32 = 10;
const SHORT: u32 = 3;
const FULL_EVERY: u32 = 4;
/// Seconds for which a row that is over stays, so that every server sees it.
const GRACE: u32 = 60;
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl<W: Send + 'static> Shared<W> {
    /// The poller's thread.
    pub(super) fn run_peers(&self) {
        let mut session = None;
        let mut pause = FIRST_PAUSE;
        let mut round = 0u32;
        let mut away = false;
        let mut swept_at: Option<Instant> = None;
        // The last poll that came through began then. Until the table is in, the cache cannot take single rows.
        let mut last = (self.clock)();
        while self.options.preload && !self.cache.complete() {
            if self.pause(FIRST_PAUSE) {
                return;
            }
        }
        let mut full = true;
        loop {
            let began = (self.clock)();
            let since = last.saturating_sub(if full { OVERLAP } else { SHORT });
            let sweep = swept_at.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL);
            match self.poll(&mut session, since, sweep.then(|| began.saturating_sub(GRACE))) {
                Ok(()) => {
                    last = began;
                    round += 1;
                    full = round % FULL_EVERY == 0;
                    if sweep {
                        swept_at = Some(Instant::now());
                    }
                    if std::mem::take(&mut away) {
                        tracing::info!(place = %self.place(), "the other servers' changes are seen again");
                    }
                    pause = FIRST_PAUSE;
                    if self.pause(self.options.poll_interval) {
                        return;
                    }
                }
                Err(e) => {
                    session = None;
                    full = true;
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(place = %self.place(), "the other servers' changes cannot be seen: {e}");
                    }
                    if self.pause(pause) {
                        return;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn poll(&self, session: &mut Option<Box<dyn Session>>, since: u32, sweep: Option<u32>) -> Result<(), StoreError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.connect_to_read()?),
        };
        let now = (self.clock)();
        // Two clients, one second: only the database knows whose change was the last.
        let mut ties: HashSet<Vec<u8>> = HashSet::new();
        let mut key = Vec::new();
        let marks = self.marks();
        let rows = session.changed_since(since, &mut |row| {
            row.key.aor.join(&mut key);
            if self.take_over(&key, row, now, &marks, false) {
                ties.insert(key.clone());
            }
        })?;
        self.counters.polled.add(rows);
        if !ties.is_empty() {
            let aors: Vec<Aor<'_>> = ties.iter().map(|key| Aor::split(key)).collect();
            let marks = self.marks();
            session.load_aors(&aors, &mut |row| {
                row.key.aor.join(&mut key);
                self.take_over(&key, row, now, &marks, true);
            })?;
        }
        if let Some(before) = sweep {
            let swept = session.sweep(before)?;
            self.counters.deletes.add(swept);
        }
        Ok(())
    }

    /// What the database has of each partition by now.
    fn marks(&self) -> Vec<u64> {
        self.partitions.iter().map(|partition| partition.mark()).collect()
    }

    /// Takes one row over that a SELECT found which was sent at `marks`, if it is newer than what is known. True: that
    /// cannot be said.
    fn take_over(&self, aor: &[u8], row: &Row<'_>, now: u32, marks: &[u64], last_word: bool) -> bool {
        if !self.can_be_told(row) {
            return false;
        }
        let spot = self.cache.spot(aor);
        let mut shard = self.cache.lock(spot.shard);
        let slot = match shard.find(spot.tag, aor) {
            Some(slot) => slot,
            // What the cache does not hold and does not have to hold is read when it is asked for.
            None if !self.cache.complete() || row.expires <= now || aor.is_empty() => return false,
            None => {
                let handed = self.partition_of(spot.shard).map_or(0, |partition| partition.nothing_handed());
                shard.create(spot.tag, aor, handed)
            }
        };
        // What this server did since is compared by the database; a later poll finds what came of it.
        let mark = marks[spot.shard as usize % marks.len()];
        let tie = before(shard.handed(slot), mark) && shard.absorb(slot, row, now, last_word);
        self.settle(&mut shard, slot, spot.shard);
        tie
    }
}
