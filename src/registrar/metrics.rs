//! What the registrar counts, and its page of metrics.

use super::Registrar;
use crate::observe::{Counter, Histogram, Text};

/// Counted since the registrar was opened.
#[derive(Default)]
pub struct Counters {
    pub hits: Counter,
    pub misses: Counter,
    pub answered: Counter,
    pub rejected: Counter,
    pub challenged: Counter,
    /// SELECTs sent.
    pub selects: Counter,
    /// Rows read into the cache.
    pub rows: Counter,
    /// Rows that were left out, for their text cannot be told.
    pub bad_rows: Counter,
    /// Rows written, the last state of each binding in a batch.
    pub upserts: Counter,
    pub deletes: Counter,
    /// Transactions.
    pub commits: Counter,
    /// Batches sent again after a deadlock or a lock wait.
    pub retries: Counter,
    /// How often a writer found the database gone.
    pub outages: Counter,
    /// Changes that the database refused for what they are.
    pub refused: Counter,
    /// Changes that went into the spool.
    pub spooled: Counter,
    /// Rows of other servers that were looked at.
    pub polled: Counter,
    /// Waiters that were given up.
    pub timeouts: Counter,
    pub expired: Counter,
    pub commit_time: Histogram,
}

impl<W: Send + 'static> Registrar<W> {
    /// Adds the registrar's figures to a page of metrics.
    pub fn metrics(&self, out: &mut Text) {
        let shared = &*self.shared;
        let c = &shared.counters;
        let name = |what: &str| format!("partyline_registrar_{what}");
        for (what, help, counter) in [
            ("cache_hits_total", "Requests and lookups that the cache could decide.", &c.hits),
            ("cache_misses_total", "Requests and lookups that had to be loaded first.", &c.misses),
            ("answered_total", "REGISTERs answered with 200.", &c.answered),
            ("rejected_total", "REGISTERs refused.", &c.rejected),
            ("challenged_total", "Requests answered with 401.", &c.challenged),
            ("expired_total", "Bindings that expired.", &c.expired),
            ("store_selects_total", "SELECTs sent.", &c.selects),
            ("store_rows_total", "Rows read into the cache.", &c.rows),
            ("store_bad_rows_total", "Rows left out for their text.", &c.bad_rows),
            ("store_upserts_total", "Rows written.", &c.upserts),
            ("store_deletes_total", "Rows deleted.", &c.deletes),
            ("store_commits_total", "Transactions committed.", &c.commits),
            ("store_retries_total", "Batches sent again after a deadlock or a lock wait.", &c.retries),
            ("store_outages_total", "Times that a writer found the database gone.", &c.outages),
            ("store_refused_total", "Changes that the database refused.", &c.refused),
            ("spooled_total", "Changes that went into the spool.", &c.spooled),
            ("polled_total", "Rows of other servers that were looked at.", &c.polled),
            ("timeouts_total", "Requests given up while they waited for the database.", &c.timeouts),
        ] {
            out.counter(&name(what), help, &[], counter.get());
        }
        let levels = shared.cache.levels();
        out.gauge(&name("bindings"), "Bindings that are alive.", &[], levels.bindings as f64);
        out.gauge(&name("aors"), "Addresses-of-record in the cache.", &[], levels.records as f64);
        out.gauge(&name("dirty"), "Addresses-of-record that are still to be written.", &[], levels.dirty as f64);
        let queued: usize = shared.partitions.iter().map(|p| p.depth()).sum();
        out.gauge(&name("queued"), "Changes on their way to the database.", &[], queued as f64);
        let spooled = shared.spool.as_ref().map_or(0, |spool| spool.held());
        out.gauge(&name("spool"), "Changes in the spool.", &[], spooled as f64);
        out.gauge(&name("users"), "Users remembered.", &[], shared.users.len() as f64);
        out.summary(&name("commit_seconds"), "Duration of a transaction.", &[], &c.commit_time);
    }
}
