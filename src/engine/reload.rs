//! A plugin's code is exchanged while the engine serves.
//!
//! ```text
//!   load the new version   fails: nothing has changed
//!   hold the strands       what comes from now on waits; nothing is refused for it but at `queue_limit`
//!   wait                   until the running calls have ended, or the limit: those keep the old code for themselves
//!   switch                 calls go to the new code
//!   revoke                 what the old code deferred and has not finished goes to the new code, from the start of its call
//!   release                what waited goes on
//! ```

use std::sync::Weak;
use std::time::Duration;

use super::core::Core;
use crate::ffi::{Code, Error};

impl Core {
    /// Returns how many calls still run in the old code.
    pub fn reload(&self, name: &str, path: Option<&str>, limit: Duration) -> Result<usize, Error> {
        let link = self.link(name)?;
        let Some(_alone) = link.reloading.try_lock() else {
            return Err(Error::new(Code::State, format!("plugin {name} is being loaded anew already")));
        };
        let switch = link.plugin.handler.reload(path)?;
        link.strands.hold();
        let running = link.strands.wait_idle(limit);
        switch();
        let tickets = std::mem::take(&mut *link.tickets.lock());
        let mut revoked = 0;
        for (kept, name) in tickets.iter().filter_map(Weak::upgrade).filter_map(|ticket| ticket.revoke()) {
            link.plugin.handler.revoked(name);
            revoked += 1;
            self.go_on(kept);
        }
        link.strands.release();
        tracing::info!(plugin = name, running, revoked, "a plugin's code was exchanged");
        Ok(running)
    }

    pub(super) fn link(&self, name: &str) -> Result<&super::plugin::Link, Error> {
        let found = self.chain.links().iter().find(|link| link.plugin.name == name);
        found.ok_or_else(|| Error::new(Code::NotFound, format!("there is no plugin named {name}")))
    }
}
