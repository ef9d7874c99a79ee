//! The spooler: the thread that takes over when the database does not answer.
//!
//! Promise: in write_through with a spool, a request is answered within `spool_after` and one fdatasync of a local disk,
//! whatever the database does; all partitions share that fdatasync. What it has taken is replayed by the writers
//! (`Writer::replay`), which alone speak to the database.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Shared;
use super::spool::Spool;

const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl<W: Send + 'static> Shared<W> {
    /// Runs until `over`, which is set when the writers have ended.
    pub(super) fn run_spooler(&self, spool: &Spool, over: &AtomicBool) {
        let patience = self.options.spool_after;
        let tick = (patience / 2).max(Duration::from_millis(5));
        let mut failing = false;
        let mut pause = tick;
        loop {
            let last = over.load(Ordering::Acquire);
            match self.spool_once(spool) {
                Ok(0) => spool.bell.wait(tick),
                Ok(_) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("the spool can be written again");
                    }
                    pause = tick;
                    // What came meanwhile shares the next transaction.
                    continue;
                }
                Err(e) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!("nothing can be spooled, requests wait for the database: {e}");
                    }
                    spool.bell.wait(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            if last {
                return;
            }
        }
    }

    /// Spools what is to be spooled now; how many changes.
    fn spool_once(&self, spool: &Spool) -> Result<u64, super::store::StoreError> {
        if spool.is_full() {
            // What waits then is bounded by `queue`, as without a spool.
            return Ok(0);
        }
        let mut taken = Vec::new();
        for (index, partition) in self.partitions.iter().enumerate() {
            let was = partition.spooling();
            if let Some(work) = partition.take(self.options.spool_after) {
                if !was {
                    tracing::warn!(place = %self.place(), partition = index, "the database does not answer: spooling");
                }
                taken.push((index as u32, work));
            }
        }
        if taken.is_empty() {
            return Ok(0);
        }
        let work: Vec<(u32, &[u8])> = taken.iter().map(|(index, work)| (*index, &work[..])).collect();
        match spool.append(&work, self.options.batch) {
            Ok((chunks, changes)) => {
                self.counters.spooled.add(changes);
                let mut finished = Vec::new();
                for ((index, _), chunks) in taken.iter().zip(chunks) {
                    self.partitions[*index as usize].landed(chunks, &mut finished);
                }
                if !finished.is_empty() {
                    self.sink.committed(&mut finished, Ok(()));
                }
                Ok(changes)
            }
            Err(e) => {
                for (index, _) in &taken {
                    self.partitions[*index as usize].stuck();
                }
                Err(e)
            }
        }
    }
}
