//! Which of partysip's requests are to be looked at.
//!
//! partysip asks eight questions about every request in every turn. Their answers can change only when an event or a timer
//! touches the request, so here a request is looked at when one of its transactions had a callback, when its deadline has
//! come, or when it waits for a name and somebody has woken the loop. A CANCEL finds its INVITE by a key (the hash of the
//! branch), where partysip looks through all that live.
//!
//! Promise: a request that is in the table and was touched is given out once per touch; what costs time is what was
//! touched, never what is alive. Everything here runs under partysip's global lock.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Addresses of `psp_request_t` and `osip_transaction_t`; only compared, never followed.
pub type Request = usize;
pub type Transaction = usize;

#[derive(Default)]
struct Entry {
    /// Microseconds; `i64::MAX` for none.
    deadline: i64,
    transactions: Vec<Transaction>,
    marked: bool,
    waits: bool,
    /// What a CANCEL for it is found by; 0: nothing.
    key: u64,
}

#[derive(Default)]
pub struct Live {
    requests: HashMap<Request, Entry>,
    of: HashMap<Transaction, Request>,
    due: BTreeSet<(i64, Request)>,
    marked: Vec<Request>,
    waiting: HashSet<Request>,
    /// By key, the newest last.
    keys: HashMap<u64, Vec<Request>>,
}

impl Live {
    /// Enters a request, or what is known of it after an event: its deadline, its transactions, whether it waits for a
    /// name, and what a CANCEL for it is found by (0: nothing).
    pub fn put(&mut self, request: Request, transactions: &[Transaction], deadline: i64, waits: bool, key: u64) {
        let entry = self.requests.entry(request).or_insert_with(|| Entry { deadline: i64::MAX, ..Entry::default() });
        if entry.deadline != deadline {
            if entry.deadline != i64::MAX {
                self.due.remove(&(entry.deadline, request));
            }
            if deadline != i64::MAX {
                self.due.insert((deadline, request));
            }
            entry.deadline = deadline;
        }
        if entry.transactions != transactions {
            for old in entry.transactions.drain(..) {
                self.of.remove(&old);
            }
            for new in transactions {
                self.of.insert(*new, request);
            }
            entry.transactions.extend_from_slice(transactions);
        }
        set(&mut self.waiting, request, &mut entry.waits, waits);
        if entry.key != key {
            forget(&mut self.keys, entry.key, request);
            entry.key = key;
            if key != 0 {
                self.keys.entry(key).or_default().push(request);
            }
        }
    }

    /// The request is about to be freed.
    pub fn drop(&mut self, request: Request) {
        let Some(entry) = self.requests.remove(&request) else { return };
        if entry.deadline != i64::MAX {
            self.due.remove(&(entry.deadline, request));
        }
        for transaction in entry.transactions {
            self.of.remove(&transaction);
        }
        if entry.waits {
            self.waiting.remove(&request);
        }
        forget(&mut self.keys, entry.key, request);
        if entry.marked {
            self.marked.retain(|other| *other != request);
        }
    }

    /// Something happened to the transaction; true if it belongs to a request.
    pub fn changed(&mut self, transaction: Transaction) -> bool {
        let Some(request) = self.of.get(&transaction).copied() else { return false };
        self.mark(request);
        true
    }

    /// Those that wait for a name; somebody has woken the loop.
    pub fn mark_waiting(&mut self) {
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        waiting.into_iter().for_each(|request| self.mark(request));
    }

    /// The request number `n` of those with this key, the newest first.
    pub fn find(&self, key: u64, n: usize) -> Option<Request> {
        self.keys.get(&key)?.iter().rev().nth(n).copied()
    }

    /// Has the request looked at.
    pub fn mark(&mut self, request: Request) {
        if let Some(entry) = self.requests.get_mut(&request) {
            if !entry.marked {
                entry.marked = true;
                self.marked.push(request);
            }
        }
    }

    /// The next one to look at. It is given out again when it is touched again or its deadline is still in the past after
    /// a [`Live::put`] of another one.
    pub fn next(&mut self, now: i64) -> Option<Request> {
        while let Some((deadline, request)) = self.due.first().copied() {
            if deadline >= now {
                break;
            }
            // It is put in again, with its next deadline, after it was looked at.
            self.due.pop_first();
            if let Some(entry) = self.requests.get_mut(&request) {
                entry.deadline = i64::MAX;
            }
            self.mark(request);
        }
        let request = self.marked.pop()?;
        if let Some(entry) = self.requests.get_mut(&request) {
            entry.marked = false;
        }
        Some(request)
    }

    /// The earliest deadline.
    pub fn deadline(&self) -> Option<i64> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub fn clear(&mut self) {
        *self = Live::default();
    }
}

fn forget(keys: &mut HashMap<u64, Vec<Request>>, key: u64, request: Request) {
    if let Some(requests) = keys.get_mut(&key) {
        requests.retain(|other| *other != request);
        if requests.is_empty() {
            keys.remove(&key);
        }
    }
}

fn set(all: &mut HashSet<Request>, request: Request, was: &mut bool, is: bool) {
    if *was != is {
        if is {
            all.insert(request);
        } else {
            all.remove(&request);
        }
        *was = is;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_changed_or_is_due_and_nothing_else() {
        let mut live = Live::default();
        live.put(1, &[10], 100, false, 0);
        live.put(2, &[20, 21], 200, false, 7);
        live.put(3, &[30], i64::MAX, true, 7);
        assert_eq!(live.next(50), None);
        assert!(live.changed(21) && live.changed(20) && !live.changed(99));
        assert_eq!((live.next(50), live.next(50)), (Some(2), None));
        assert_eq!((live.next(101), live.next(101)), (Some(1), None));
        live.put(1, &[10], 300, false, 0);
        live.mark_waiting();
        assert_eq!((live.next(150), live.next(150), live.deadline()), (Some(3), None, Some(200)));
        assert_eq!(
            (live.find(7, 0), live.find(7, 1), live.find(7, 2), live.find(0, 0)),
            (Some(3), Some(2), None, None)
        );
        live.put(3, &[30], i64::MAX, true, 8);
        assert_eq!((live.find(7, 0), live.find(7, 1), live.find(8, 0)), (Some(2), None, Some(3)));
        live.mark(2);
        live.drop(2);
        assert_eq!(live.find(7, 0), None);
        assert_eq!((live.next(150), live.deadline(), live.len()), (None, Some(300), 2));
        assert!(!live.changed(20));
    }

    proptest! {
        /// Against a table that looks at everything.
        #[test]
        fn nothing_is_forgotten(steps in prop::collection::vec((0..5u8, 0..6usize, 0..40i64), 1..200)) {
            let mut live = Live::default();
            let mut model: HashMap<usize, (i64, bool)> = HashMap::new();
            for (step, request, time) in steps {
                match step {
                    0 => {
                        live.put(request, &[request + 100], time, false, 0);
                        let marked = model.get(&request).is_some_and(|m| m.1);
                        model.insert(request, (time, marked));
                    }
                    1 => {
                        live.drop(request);
                        model.remove(&request);
                    }
                    2 => {
                        prop_assert_eq!(live.changed(request + 100), model.contains_key(&request));
                        if let Some(entry) = model.get_mut(&request) {
                            entry.1 = true;
                        }
                    }
                    _ => {
                        let mut given: Vec<_> = std::iter::from_fn(|| live.next(time)).collect();
                        given.sort_unstable();
                        let mut expected: Vec<_> =
                            model.iter().filter(|(_, m)| m.1 || m.0 < time).map(|(r, _)| *r).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(given, expected);
                        for entry in model.values_mut() {
                            entry.1 = false;
                            if entry.0 < time {
                                entry.0 = i64::MAX;
                            }
                        }
                    }
                }
                prop_assert_eq!(live.len(), model.len());
            }
        }
    }
}
