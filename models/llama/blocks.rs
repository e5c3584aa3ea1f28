//! Who holds which block of the cache, and which blocks are known by what was read into them. Knows tokens as numbers;
//! refuses to know predictions, the net and the memory itself.
//!
//! A block that is full is *known*: its key is the 64 tokens in it and the number of the known block before it, so a chain
//! of keys says everything that was read up to there, and a lookup compares all of it. Whoever reads the same beginning
//! holds the same blocks; only full blocks are shared, so nobody writes to a block that somebody else holds. Known blocks
//! that nobody holds stay, up to a limit, until they are needed: the one that was let go first goes first.
//!
//! Blocks are handed out so that few pages are touched: first those given back last, then untouched ones from the lowest
//! up, then known ones that nobody holds.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use kernels::attention::BLOCK;

/// What a known block holds. Numbers are never used twice: a key cannot match behind another beginning.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The number of the known block before it; `BEGINNING` for the first.
    before: u64,
    tokens: [u32; BLOCK],
}

const BEGINNING: u64 = 0;

#[derive(Debug, Clone)]
struct Known {
    key: Rc<Key>,
    number: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    known: Option<Known>,
    /// When it was let go: its place among the idle.
    since: u64,
}

/// All blocks of a cache.
#[derive(Debug)]
pub struct Blocks {
    blocks: Vec<Block>,
    /// Given back, the last one on top.
    free: Vec<u32>,
    /// From here on blocks have never been held.
    untouched: usize,
    known: HashMap<Rc<Key>, u32>,
    /// Known and held by nobody, the one let go first in front.
    idle: BTreeMap<u64, u32>,
    /// How many may be idle.
    most_idle: usize,
    clock: u64,
    last_number: u64,
}

/// The blocks of one sequence, in the order of its positions.
#[derive(Debug, Default)]
pub struct Table {
    blocks: Vec<u32>,
    /// The first so many are known.
    known: usize,
    /// The number of the last of those.
    number: u64,
}

impl Table {
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

impl Blocks {
    /// `count` blocks, of which up to `most_idle` keep what was read into them when nobody holds them.
    pub fn new(count: usize, most_idle: usize) -> Self {
        Self {
            blocks: vec![Block::default(); count],
            free: Vec::new(),
            untouched: 0,
            known: HashMap::new(),
            idle: BTreeMap::new(),
            most_idle,
            clock: 0,
            last_number: BEGINNING,
        }
    }

    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be had now.
    pub fn available(&self) -> usize {
        self.free.len() + (self.blocks.len() - self.untouched) + self.idle.len()
    }

    /// Blocks that were ever held: more than that never touched memory.
    #[cfg(test)]
    pub fn touched(&self) -> usize {
        self.untouched
    }

    /// Gives `table` blocks for so many positions; false, and nothing changed, where there are not enough.
    pub fn reserve(&mut self, table: &mut Table, positions: usize) -> bool {
        let missing = positions.div_ceil(BLOCK).saturating_sub(table.blocks.len());
        if missing > self.available() {
            return false;
        }
        table.blocks.extend((0..missing).map_while(|_| self.take()));
        true
    }

    /// Puts known blocks in the place of `table`'s next ones as far as they hold `tokens`, the last of which is always
    /// left to be read: its logits are wanted. Returns how many positions are known then.
    pub fn adopt(&mut self, table: &mut Table, tokens: &[u32]) -> usize {
        let unread = tokens.len().saturating_sub(1);
        let (chunks, _) = tokens[..unread].as_chunks::<BLOCK>();
        for &tokens in chunks.iter().skip(table.known) {
            let Some(&block) = self.known.get(&Key { before: table.number, tokens }) else { break };
            self.hold(block);
            self.put(table, block);
        }
        table.known * BLOCK
    }

    /// Makes the blocks known that `tokens` have filled, `written` of them so far. Where another block is known for the
    /// same, the table goes on with that one.
    pub fn settle(&mut self, table: &mut Table, tokens: &[u32], written: usize) {
        let (chunks, _) = tokens[..written].as_chunks::<BLOCK>();
        for &tokens in chunks.iter().skip(table.known) {
            let key = Rc::new(Key { before: table.number, tokens });
            let own = table.blocks[table.known];
            let block = match self.known.get(&key) {
                Some(&block) => {
                    self.hold(block);
                    block
                }
                None => {
                    self.last_number += 1;
                    self.blocks[own as usize].known = Some(Known { key: key.clone(), number: self.last_number });
                    self.blocks[own as usize].holders += 1;
                    self.known.insert(key, own);
                    own
                }
            };
            self.put(table, block);
        }
    }

    /// Takes all blocks from a table. The last goes first: a beginning is needed longer than what came behind it.
    pub fn release(&mut self, table: &mut Table) {
        for &block in std::mem::take(table).blocks.iter().rev() {
            self.let_go(block);
        }
    }

    /// The same for a sequence whose numbers are broken: nobody shall read them.
    pub fn discard(&mut self, table: &mut Table) {
        for &block in &table.blocks {
            self.forget(block);
        }
        self.release(table);
    }

    /// Puts a known block, held for this, behind the table's known ones. What stood there is let go.
    fn put(&mut self, table: &mut Table, block: u32) {
        match table.blocks.get_mut(table.known) {
            Some(place) => {
                let before = std::mem::replace(place, block);
                self.let_go(before);
            }
            None => table.blocks.push(block),
        }
        table.known += 1;
        table.number = self.blocks[block as usize].known.as_ref().map_or(BEGINNING, |known| known.number);
    }

    fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| {
            let next = self.untouched;
            (next < self.blocks.len()).then(|| {
                self.untouched += 1;
                next as u32
            })
        });
        let block = block.or_else(|| {
            let (_, block) = self.idle.pop_first()?;
            self.forget(block);
            Some(block)
        })?;
        self.blocks[block as usize].holders = 1;
        Some(block)
    }

    fn hold(&mut self, block: u32) {
        let held = &mut self.blocks[block as usize];
        if held.holders == 0 {
            self.idle.remove(&held.since);
        }
        held.holders += 1;
    }

    fn let_go(&mut self, block: u32) {
        let held = &mut self.blocks[block as usize];
        held.holders -= 1;
        if held.holders > 0 {
            return;
        }
        if held.known.is_none() {
            self.free.push(block);
            return;
        }
        self.clock += 1;
        held.since = self.clock;
        self.idle.insert(self.clock, block);
        if self.idle.len() > self.most_idle
            && let Some((_, oldest)) = self.idle.pop_first()
        {
            self.forget(oldest);
            self.free.push(oldest);
        }
    }

    fn forget(&mut self, block: u32) {
        if let Some(known) = self.blocks[block as usize].known.take() {
            self.known.remove(&known.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(blocks: usize, from: u32) -> Vec<u32> {
        (0..(blocks * BLOCK) as u32).map(|i| from + i / BLOCK as u32).collect()
    }

    /// Reads everything of `tokens`; gives the table and the positions that needed no reading.
    fn read(blocks: &mut Blocks, tokens: &[u32]) -> (Table, usize) {
        let mut table = Table::default();
        let found = blocks.adopt(&mut table, tokens);
        assert!(blocks.reserve(&mut table, tokens.len()));
        blocks.settle(&mut table, tokens, tokens.len());
        (table, found)
    }

    #[test]
    fn a_beginning_that_was_read_is_found_but_its_last_token_is_not() {
        let mut blocks = Blocks::new(20, 10);
        let tokens = text(3, 5);
        let (mut first, found) = read(&mut blocks, &tokens);
        assert_eq!(found, 0);
        let (mut second, found) = read(&mut blocks, &tokens);
        assert_eq!(found, 2 * BLOCK, "one token at least is left to read");
        assert_eq!(first.blocks(), second.blocks(), "and where it is the same again, the block is shared, too");
        let (mut third, found) = read(&mut blocks, &[&tokens[..], &[1, 2]].concat());
        assert_eq!((found, third.blocks().len()), (3 * BLOCK, 4));
        for table in [&mut first, &mut second, &mut third] {
            blocks.release(table);
        }
        assert_eq!(blocks.available(), 20);
        assert_eq!(read(&mut blocks, &[&tokens[..], &[1, 2]].concat()).1, 3 * BLOCK, "it outlives those who read it");
    }

    #[test]
    fn the_same_tokens_behind_another_beginning_are_not_found() {
        let mut blocks = Blocks::new(20, 10);
        let (a, b, end) = (text(1, 1), text(1, 2), text(2, 9));
        read(&mut blocks, &[&a[..], &end].concat());
        assert_eq!(read(&mut blocks, &[&b[..], &end].concat()).1, 0);
        assert_eq!(read(&mut blocks, &[&a[..], &end[..BLOCK], &b].concat()).1, 2 * BLOCK);
    }

    #[test]
    fn a_block_that_somebody_holds_is_never_handed_out() {
        let mut blocks = Blocks::new(4, 4);
        let (mut held, _) = read(&mut blocks, &text(2, 1));
        let mut table = Table::default();
        assert!(!blocks.reserve(&mut table, 3 * BLOCK), "three of the two that are left");
        assert!(table.is_empty() && blocks.available() == 2);
        assert!(blocks.reserve(&mut table, 2 * BLOCK));
        assert!(table.blocks().iter().all(|block| !held.blocks().contains(block)));
        blocks.release(&mut held);
        assert!(blocks.reserve(&mut table, 4 * BLOCK), "idle ones are taken when they are needed");
        assert_eq!(read_length(&mut blocks, &text(2, 1)), 0, "and are no longer known");
    }

    fn read_length(blocks: &mut Blocks, tokens: &[u32]) -> usize {
        let mut table = Table::default();
        let found = blocks.adopt(&mut table, tokens);
        blocks.release(&mut table);
        found
    }

    #[test]
    fn what_was_let_go_first_is_reclaimed_first_and_ends_before_beginnings() {
        let mut blocks = Blocks::new(8, 8);
        let (old, new) = (text(4, 1), text(4, 100));
        for tokens in [&old, &new] {
            let (mut table, _) = read(&mut blocks, tokens);
            blocks.release(&mut table);
        }
        let mut table = Table::default();
        assert!(blocks.reserve(&mut table, 2 * BLOCK));
        let more = [0; 1];
        assert_eq!(read_length(&mut blocks, &[&old[..], &more].concat()), 2 * BLOCK, "its beginning is still there");
        assert_eq!(read_length(&mut blocks, &[&new[..], &more].concat()), 4 * BLOCK);
    }

    #[test]
    fn idle_blocks_have_a_limit_and_memory_stays_flat() {
        let mut blocks = Blocks::new(1000, 4);
        for round in 0..100 {
            let (mut table, found) = read(&mut blocks, &text(3, 10 * round + 1));
            assert_eq!(found, 0);
            blocks.release(&mut table);
            assert_eq!(blocks.available(), 1000);
        }
        assert_eq!(blocks.touched(), 7, "three in use and four idle");
    }

    #[test]
    fn two_who_read_the_same_at_once_end_up_with_one_block() {
        let mut blocks = Blocks::new(10, 10);
        let tokens = text(2, 1);
        let (mut a, mut b) = (Table::default(), Table::default());
        assert!(blocks.reserve(&mut a, tokens.len() + 1) && blocks.reserve(&mut b, tokens.len() + 1));
        assert_eq!(blocks.available(), 4);
        blocks.settle(&mut a, &tokens, BLOCK);
        assert_eq!(blocks.adopt(&mut b, &tokens), BLOCK, "the slower one need not read what the other has");
        blocks.settle(&mut a, &tokens, 2 * BLOCK);
        blocks.settle(&mut b, &tokens, 2 * BLOCK);
        assert_eq!(a.blocks()[..2], b.blocks()[..2]);
        assert_ne!(a.blocks()[2], b.blocks()[2]);
        assert_eq!(blocks.available(), 6);
    }

    #[test]
    fn what_is_discarded_is_not_found_again() {
        let mut blocks = Blocks::new(10, 10);
        let tokens = text(2, 1);
        let (mut table, _) = read(&mut blocks, &tokens);
        blocks.discard(&mut table);
        assert_eq!((blocks.available(), read_length(&mut blocks, &tokens)), (10, 0));
    }
}
