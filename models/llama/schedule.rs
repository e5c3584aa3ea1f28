//! Who takes part in the next step, and with how many tokens. Knows token counts and blocks; refuses to know the net,
//! sampling and text: what a sequence stands for is `T`.
//!
//! Sequences stand in the order of their arrival, and those that hold blocks are always a beginning of that line:
//!
//! - A *speaker* runs the token it said last. It takes a block every 64 tokens; if none is to be had, the youngest holder
//!   gives up all of its blocks, itself if need be, and waits again in its old place. What it has read and said it will read
//!   again, most of it from known blocks, and it goes on with the next token as if nothing had been: its text and its
//!   sampler stay.
//! - A *reader* runs the next part of its prompt, oldest first, as far as the step's budget goes.
//! - Who waits starts when all blocks for what it has to read and one token more are there, with one to spare for every
//!   holder, so that starting does not at once make somebody give up. Nobody overtakes.
//!
//! Where everybody speaks, the step after the one that was planned can be planned before anybody knows what was said: it has a
//! place for each, unless there is no room. Who turns out to have ended is not asked about it.
//!
//! The oldest holder never gives up its blocks for another, and alone it may have every block there is: it always ends, so
//! everybody does.

use kernels::attention::BLOCK;

use super::blocks::{Blocks, Table};
use super::rows::Rows;

pub struct Schedule<T> {
    blocks: Blocks,
    sequences: Vec<Sequence<T>>,
    /// How many were ever admitted.
    admitted: u64,
}

struct Sequence<T> {
    what: T,
    /// Its name in every step: no other ever has it.
    number: u64,
    /// The prompt and everything said.
    tokens: Vec<u32>,
    /// The last token was said, not read in the prompt.
    speaks: bool,
    /// Tokens whose keys and values are in its blocks.
    written: usize,
    /// Tokens of it in the step that was planned.
    planned: usize,
    /// Which of that step's wanted rows is its.
    place: Option<usize>,
    /// The same in the step behind it, if that was planned ahead.
    ahead: Option<usize>,
    table: Table,
    past: Past,
}

/// What a sequence has been through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// Positions that were not read because their blocks were known.
    pub found: usize,
    /// How often it gave up its blocks.
    pub preempted: usize,
}

/// What became of a sequence whose logits were wanted.
pub enum Turn {
    Said(u32),
    Ended,
    /// Its numbers are broken.
    Broken,
}

/// A prompt, and room for one token behind it, take more blocks than there are.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong {
    pub needed: usize,
    pub exist: usize,
}

impl<T> Sequence<T> {
    fn unread(&self) -> usize {
        self.tokens.len() - self.written
    }

    fn is_speaker(&self) -> bool {
        self.speaks && self.unread() == 1
    }

    fn waits(&self) -> bool {
        self.table.is_empty()
    }
}

impl<T> Schedule<T> {
    pub fn new(blocks: Blocks) -> Self {
        Self { blocks, sequences: Vec::new(), admitted: 0 }
    }

    /// Positions that one sequence can have.
    pub fn most_positions(&self) -> usize {
        self.blocks.count() * BLOCK
    }

    /// The last in line. `prompt` has at least one token.
    pub fn admit(&mut self, what: T, prompt: Vec<u32>) -> Result<(), TooLong> {
        let needed = (prompt.len() + 1).div_ceil(BLOCK);
        if needed > self.blocks.count() {
            return Err(TooLong { needed, exist: self.blocks.count() });
        }
        let (table, past, number) = (Table::default(), Past::default(), self.admitted);
        self.admitted += 1;
        let (speaks, written, planned, place, ahead) = (false, 0, 0, None, None);
        let tokens = prompt;
        self.sequences.push(Sequence { what, number, tokens, speaks, written, planned, place, ahead, table, past });
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Somebody is in the middle of an answer.
    pub fn speakers(&self) -> bool {
        self.sequences.iter().any(Sequence::is_speaker)
    }

    /// Those who take part in the step that was planned, in the order of arrival.
    pub fn planned(&mut self) -> impl Iterator<Item = &mut T> {
        self.sequences.iter_mut().filter(|sequence| sequence.planned > 0).map(|sequence| &mut sequence.what)
    }

    /// Those whose logits the step gives, in the order of its rows.
    pub fn wanted(&self) -> impl Iterator<Item = &T> {
        self.sequences.iter().filter(|sequence| sequence.place.is_some()).map(|sequence| &sequence.what)
    }

    /// The same of the step that was planned ahead.
    pub fn wanted_ahead(&self) -> impl Iterator<Item = &T> {
        self.sequences.iter().filter(|sequence| sequence.ahead.is_some()).map(|sequence| &sequence.what)
    }

    /// Fills `rows` with the next step, which reads at most `budget` prompt tokens.
    pub fn plan(&mut self, budget: usize, rows: &mut Rows) {
        rows.clear();
        self.make_room();
        let Self { blocks, sequences, .. } = self;
        let mut budget = budget;
        let mut holders = sequences.iter().filter(|sequence| !sequence.waits()).count();
        let mut line_stands = false;
        for sequence in sequences {
            (sequence.planned, sequence.place) = (0, None);
            if !sequence.is_speaker() && (budget == 0 || line_stands) {
                continue;
            }
            if !sequence.is_speaker() {
                let waited = sequence.waits();
                // Somebody may have read the same meanwhile.
                let found = blocks.adopt(&mut sequence.table, &sequence.tokens);
                let (spare, positions) = (if waited { holders } else { 0 }, sequence.tokens.len() + 1);
                let missing = positions.div_ceil(BLOCK).saturating_sub(sequence.table.blocks().len());
                if missing + spare > blocks.available() || !blocks.reserve(&mut sequence.table, positions) {
                    blocks.release(&mut sequence.table);
                    line_stands = true;
                    continue;
                }
                sequence.past.found += found.saturating_sub(sequence.written);
                sequence.written = sequence.written.max(found);
                holders += usize::from(waited);
                sequence.planned = budget.min(sequence.unread());
                budget -= sequence.planned;
            } else {
                sequence.planned = 1;
            }
            let written = sequence.written;
            rows.push(sequence.table.blocks(), written, &sequence.tokens[written..written + sequence.planned]);
            if sequence.planned == sequence.unread() {
                sequence.place = Some(rows.wanted().len());
                rows.want_last(sequence.number);
            }
        }
    }

    /// Fills `rows` with the step behind the one that was planned and has not been run: one token, which nobody knows yet, of
    /// everybody who will go on for all that is known. False, and to be planned when the tokens are known, where somebody
    /// reads or waits or there is no room.
    pub fn plan_ahead(&mut self, goes_on: impl Fn(&T) -> bool, rows: &mut Rows) -> bool {
        let Self { blocks, sequences, .. } = self;
        rows.clear();
        if sequences.iter().any(|sequence| sequence.place.is_none()) {
            return false;
        }
        let goers = |sequence: &&mut Sequence<T>| goes_on(&sequence.what);
        let room = |sequence: &mut Sequence<T>| blocks.reserve(&mut sequence.table, sequence.tokens.len() + 1);
        if !sequences.iter_mut().filter(goers).all(room) {
            return false;
        }
        for sequence in sequences.iter_mut().filter(goers) {
            sequence.ahead = Some(rows.wanted().len());
            let chosen = sequence.place.unwrap_or_default();
            rows.push_next(sequence.table.blocks(), sequence.tokens.len(), chosen);
            rows.want_last(sequence.number);
        }
        !rows.is_empty()
    }

    /// Sees to it that every speaker has a place for its token, the oldest first.
    fn make_room(&mut self) {
        for index in 0..self.sequences.len() {
            loop {
                let Self { blocks, sequences, .. } = self;
                let sequence = &mut sequences[index];
                if sequence.waits() || blocks.reserve(&mut sequence.table, sequence.tokens.len()) {
                    break;
                }
                // The sequence itself holds blocks, so there is one.
                let Some(youngest) = sequences.iter_mut().rfind(|sequence| !sequence.waits()) else { break };
                blocks.release(&mut youngest.table);
                youngest.written = 0;
                youngest.past.preempted += 1;
            }
        }
    }

    /// The step that was planned has been run. `turn` tells what became of whom, given which of the wanted rows was theirs;
    /// those who ended are gone. What was planned ahead is now the step that was planned.
    pub fn ran(&mut self, mut turn: impl FnMut(&mut T, Past, usize) -> Turn) {
        let Self { blocks, sequences, .. } = self;
        sequences.retain_mut(|sequence| {
            let place = std::mem::replace(&mut sequence.place, sequence.ahead.take());
            sequence.written += std::mem::take(&mut sequence.planned);
            blocks.settle(&mut sequence.table, &sequence.tokens, sequence.written);
            let Some(place) = place else { return true };
            match turn(&mut sequence.what, sequence.past, place) {
                Turn::Said(token) => {
                    sequence.tokens.push(token);
                    sequence.speaks = true;
                    sequence.planned = usize::from(sequence.place.is_some());
                    return true;
                }
                Turn::Ended => blocks.release(&mut sequence.table),
                Turn::Broken => blocks.discard(&mut sequence.table),
            }
            false
        });
    }

    /// Whoever this is leaves at once.
    pub fn cancel(&mut self, is: impl Fn(&T) -> bool) {
        let Self { blocks, sequences, .. } = self;
        sequences.retain_mut(|sequence| {
            let leaves = is(&sequence.what);
            if leaves {
                blocks.release(&mut sequence.table);
            }
            !leaves
        });
    }
}
