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

    /// The step it takes part in ends with its newest token.
    fn wanted(&self) -> bool {
        self.planned > 0 && self.planned == self.unread()
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
        let sequence = Sequence { what, number, tokens: prompt, speaks: false, written: 0, planned: 0, table, past };
        self.sequences.push(sequence);
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
        self.sequences.iter().filter(|sequence| sequence.wanted()).map(|sequence| &sequence.what)
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
            sequence.planned = 0;
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
            if sequence.wanted() {
                rows.want_last(sequence.number);
            }
        }
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

    /// The step that was planned has been run. `turn` tells, in the order of [`Schedule::wanted`], what became of whom;
    /// those who ended are gone.
    pub fn ran(&mut self, mut turn: impl FnMut(&mut T, Past) -> Turn) {
        let Self { blocks, sequences, .. } = self;
        sequences.retain_mut(|sequence| {
            let wanted = sequence.wanted();
            sequence.written += std::mem::take(&mut sequence.planned);
            blocks.settle(&mut sequence.table, &sequence.tokens, sequence.written);
            if !wanted {
                return true;
            }
            match turn(&mut sequence.what, sequence.past) {
                Turn::Said(token) => {
                    sequence.tokens.push(token);
                    sequence.speaks = true;
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
