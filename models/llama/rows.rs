//! The rows of one step, a packed list: each one token of one sequence at one position. Refuses to know who they belong to and
//! what runs them.

use candle_core::{Error, Result};
use kernels::attention::BLOCK;
use kernels::op::Places;

/// The rows of one step, and the blocks of the sequences they belong to (see [`Places`]).
#[derive(Debug, Clone)]
pub struct Rows {
    tokens: Vec<u32>,
    sequences: Vec<u32>,
    positions: Vec<u32>,
    starts: Vec<u32>,
    blocks: Vec<u32>,
    /// Rows whose logits are wanted.
    wanted: Vec<u32>,
    /// Of the wanted rows: whose they are.
    whose: Vec<u64>,
    /// Rows whose token the step before has still to choose: (row, which of its wanted rows).
    next: Vec<(u32, u32)>,
}

impl Default for Rows {
    fn default() -> Self {
        let (tokens, sequences, positions) = (Vec::new(), Vec::new(), Vec::new());
        let (blocks, wanted, whose, next) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { tokens, sequences, positions, starts: vec![0], blocks, wanted, whose, next }
    }
}

impl Rows {
    /// No rows; their memory stays.
    pub fn clear(&mut self) {
        for list in [&mut self.tokens, &mut self.sequences, &mut self.positions, &mut self.blocks, &mut self.wanted] {
            list.clear();
        }
        self.whose.clear();
        self.next.clear();
        self.starts.truncate(1);
    }

    /// `tokens` of another sequence, the first of them at `position`; every earlier position has been through. Its blocks
    /// are those of `table`, the ones behind the last position left out.
    pub fn push(&mut self, table: &[u32], position: usize, tokens: &[u32]) {
        let (sequence, end) = (self.starts.len() - 1, position + tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.sequences.extend(std::iter::repeat_n(sequence as u32, tokens.len()));
        self.positions.extend((position..end).map(|p| p as u32));
        self.blocks.extend(table.iter().take(end.div_ceil(BLOCK)));
        self.starts.push(self.blocks.len() as u32);
    }

    /// The same for the one token that the wanted row `chosen` of the step before will have, which nobody knows yet.
    pub fn push_next(&mut self, table: &[u32], position: usize, chosen: usize) {
        self.next.push((self.tokens.len() as u32, chosen as u32));
        self.push(table, position, &[0]);
    }

    /// The logits of the row pushed last are wanted, behind those wanted before. `whose` names the prediction in every step
    /// that it takes part in.
    pub fn want_last(&mut self, whose: u64) {
        self.wanted.push(self.tokens.len() as u32 - 1);
        self.whose.push(whose);
    }

    /// Where the rows stand.
    pub fn places(&self) -> Result<Places<'_>> {
        self.placed(&self.sequences, &self.positions)
    }

    /// Where others of these sequences stand.
    pub fn placed<'a>(&'a self, sequences: &'a [u32], positions: &'a [u32]) -> Result<Places<'a>> {
        Places::new(sequences, positions, &self.starts, &self.blocks).map_err(Error::msg)
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn sequences(&self) -> &[u32] {
        &self.sequences
    }

    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub fn wanted(&self) -> &[u32] {
        &self.wanted
    }

    /// Of the wanted rows, in their order.
    pub fn whose(&self) -> &[u64] {
        &self.whose
    }

    /// The rows whose token is not known, and which wanted row of the step before chooses it.
    pub fn next(&self) -> &[(u32, u32)] {
        &self.next
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
