//! User-Agent texts, each kept once per shard: a million phones have a few hundred of them.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

/// Stands for a text in its shard.
pub(in crate::registrar) type AgentId = u32;

/// The empty text; never counted, never freed.
pub(super) const NO_AGENT: AgentId = u32::MAX;

#[derive(Default)]
pub(in crate::registrar) struct Agents {
    /// Seeded: the texts come from the network.
    hasher: RandomState,
    table: HashTable<AgentId>,
    texts: Vec<(Box<[u8]>, u32)>,
    free: Vec<AgentId>,
}

impl Agents {
    pub fn get(&self, id: AgentId) -> &[u8] {
        if id == NO_AGENT { b"" } else { &self.texts[id as usize].0 }
    }

    /// The text's id, with one more user.
    pub fn acquire(&mut self, text: &[u8]) -> AgentId {
        if text.is_empty() {
            return NO_AGENT;
        }
        let hash = self.hasher.hash_one(text);
        let hasher = &self.hasher;
        let texts = &mut self.texts;
        if let Some(id) = self.table.find(hash, |id| *texts[*id as usize].0 == *text) {
            texts[*id as usize].1 += 1;
            return *id;
        }
        let id = match self.free.pop() {
            Some(id) => {
                texts[id as usize] = (text.into(), 1);
                id
            }
            None => {
                texts.push((text.into(), 1));
                (texts.len() - 1) as AgentId
            }
        };
        self.table.insert_unique(hash, id, |id| hasher.hash_one(&*texts[*id as usize].0));
        id
    }

    /// One user less; the last one frees the text.
    pub fn release(&mut self, id: AgentId) {
        if id == NO_AGENT {
            return;
        }
        let entry = &mut self.texts[id as usize];
        entry.1 -= 1;
        if entry.1 == 0 {
            let text = std::mem::take(&mut entry.0);
            if let Ok(found) = self.table.find_entry(self.hasher.hash_one(&*text), |other| *other == id) {
                found.remove();
            }
            self.free.push(id);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_lives_as_long_as_its_users() {
        let mut agents = Agents::default();
        let a = agents.acquire(b"phone 1");
        assert_eq!(agents.acquire(b"phone 1"), a);
        let b = agents.acquire(b"phone 2");
        assert_ne!(a, b);
        agents.release(a);
        assert_eq!((agents.get(a), agents.len()), (&b"phone 1"[..], 2));
        agents.release(a);
        assert_eq!(agents.len(), 1);
        let c = agents.acquire(b"phone 3");
        assert_eq!((agents.get(c), agents.get(b)), (&b"phone 3"[..], &b"phone 2"[..]));
        assert_eq!(agents.acquire(b""), NO_AGENT);
        agents.release(NO_AGENT);
        for i in 0..1000 {
            let id = agents.acquire(format!("agent {i}").as_bytes());
            agents.release(id);
        }
        assert_eq!(agents.len(), 2);
        assert!(agents.texts.len() <= 4, "{}", agents.texts.len());
    }
}
