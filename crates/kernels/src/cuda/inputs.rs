//! What the host tells a step, as one piece of memory: rows of tokens, places, tables and wishes at fixed offsets. Refuses to
//! know how it travels.

use super::params::{Ask, Ptr};

/// A step's number of rows and what they may bring along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub rows: usize,
    /// Tokens to be chosen.
    pub choices: usize,
    /// Cache blocks per row.
    pub table_blocks: usize,
    /// Rows that are named as those whose token is chosen; 0 where all are, in their order.
    pub picks: usize,
    /// Tiles of prompts.
    pub tiles: usize,
    /// Banned tokens, of all choices together.
    pub bans: usize,
}

/// What the rows of a step say and want.
pub struct Inputs<'a> {
    /// Of a choice: seed, place, temperature and so on; below 0 in `by` it is not in use.
    pub asks: &'a mut [Ask],
    /// Of a row: its token, where `from` is `u32::MAX`.
    pub tokens: &'a mut [u32],
    /// Of a row: the row of the step before whose choice it says.
    pub from: &'a mut [u32],
    /// Of a row: where it stands; `u32::MAX` if it is not in use.
    pub positions: &'a mut [u32],
    /// `[rows, table_blocks]`
    pub tables: &'a mut [u32],
    /// Of a choice: its row.
    pub picks: &'a mut [u32],
    /// `[tiles, 2]`, see `attention::prefill_tiles`.
    pub tiles: &'a mut [u32],
    pub bans: &'a mut [u32],
}

/// The batches that a decode step is padded up to: each is captured once, since it reads at fixed addresses.
pub const BUCKETS: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// The smallest bucket that holds so many rows.
pub fn bucket(rows: usize) -> Option<usize> {
    BUCKETS.into_iter().find(|bucket| *bucket >= rows)
}

const ASK_WORDS: usize = size_of::<Ask>() / 4;

impl Layout {
    /// Offsets in words of 32 bits: asks first, for their alignment.
    fn starts(&self) -> [usize; 9] {
        let Layout { rows, choices, table_blocks, picks, tiles, bans } = *self;
        let mut at = 0;
        [0, choices * ASK_WORDS, rows, rows, rows, rows * table_blocks, picks, 2 * tiles, bans].map(|words| {
            at += words;
            at
        })
    }

    pub fn bytes(&self) -> usize {
        (self.starts()[8] * 4).next_multiple_of(8)
    }

    pub fn asks(&self, inputs: Ptr) -> Ptr {
        inputs
    }

    pub fn tokens(&self, inputs: Ptr) -> Ptr {
        inputs.at(self.starts()[1] * 4)
    }

    pub fn from(&self, inputs: Ptr) -> Ptr {
        inputs.at(self.starts()[2] * 4)
    }

    pub fn positions(&self, inputs: Ptr) -> Ptr {
        inputs.at(self.starts()[3] * 4)
    }

    pub fn tables(&self, inputs: Ptr) -> Ptr {
        inputs.at(self.starts()[4] * 4)
    }

    pub fn picks(&self, inputs: Ptr) -> Ptr {
        inputs.at(self.starts()[5] * 4)
    }

    pub fn tiles(&self, inputs: Ptr) -> Ptr {
        inputs.at(self.starts()[6] * 4)
    }

    pub fn bans(&self, inputs: Ptr) -> Ptr {
        inputs.at(self.starts()[7] * 4)
    }

    /// The parts of a step's inputs in memory of at least `bytes`.
    pub fn inputs<'a>(&self, memory: &'a mut [u64]) -> Inputs<'a> {
        assert!(memory.len() * 8 >= self.bytes(), "{} bytes for inputs of {}", memory.len() * 8, self.bytes());
        let (asks, rest) = memory.split_at_mut(self.choices * ASK_WORDS / 2);
        // SAFETY: an Ask is plain numbers without padding, as long and as aligned as seven u64; two u32 are a u64.
        let (asks, words) = unsafe {
            (
                std::slice::from_raw_parts_mut(asks.as_mut_ptr().cast::<Ask>(), self.choices),
                std::slice::from_raw_parts_mut(rest.as_mut_ptr().cast::<u32>(), rest.len() * 2),
            )
        };
        let (tokens, words) = words.split_at_mut(self.rows);
        let (from, words) = words.split_at_mut(self.rows);
        let (positions, words) = words.split_at_mut(self.rows);
        let (tables, words) = words.split_at_mut(self.rows * self.table_blocks);
        let (picks, words) = words.split_at_mut(self.picks);
        let (tiles, words) = words.split_at_mut(2 * self.tiles);
        Inputs { asks, tokens, from, positions, tables, picks, tiles, bans: &mut words[..self.bans] }
    }
}

impl Inputs<'_> {
    /// No row in use.
    pub fn clear(&mut self) {
        self.asks.fill(Ask::UNUSED);
        self.tokens.fill(0);
        self.from.fill(u32::MAX);
        self.positions.fill(u32::MAX);
        self.tables.fill(0);
        self.picks.fill(0);
        self.tiles.fill(0);
        self.bans.fill(0);
    }
}

impl Ask {
    /// Of a row that is not in use.
    pub const UNUSED: Ask = Ask { by: -1.0, ..Ask::GREEDY };

    /// The greatest logit.
    pub const GREEDY: Ask = Ask {
        seed: 0,
        place: 0,
        top_p: 1.0,
        by: 0.0,
        presence: 0.0,
        frequency: 0.0,
        repetition: 1.0,
        top_k: 0,
        counts: -1,
        first_ban: 0,
        ban_count: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_where_the_offsets_say_and_they_fill_the_whole() {
        for (rows, table_blocks, bans) in [(1usize, 1, 0), (3, 5, 2), (8, 128, 64)] {
            let (choices, picks, tiles) = (rows.div_ceil(2), rows / 2, bans / 2);
            let layout = Layout { rows, choices, table_blocks, picks, tiles, bans };
            let mut memory = vec![u64::MAX; layout.bytes() / 8];
            let base = memory.as_ptr() as usize;
            let mut inputs = layout.inputs(&mut memory);
            inputs.clear();
            let offset = |part: *const u32| Ptr((part as usize - base) as u64);
            assert_eq!(layout.tokens(Ptr(0)), offset(inputs.tokens.as_ptr()));
            assert_eq!(layout.from(Ptr(0)), offset(inputs.from.as_ptr()));
            assert_eq!(layout.positions(Ptr(0)), offset(inputs.positions.as_ptr()));
            assert_eq!(layout.tables(Ptr(0)), offset(inputs.tables.as_ptr()));
            assert_eq!(layout.picks(Ptr(0)), offset(inputs.picks.as_ptr()));
            assert_eq!(layout.tiles(Ptr(0)), offset(inputs.tiles.as_ptr()));
            assert_eq!(layout.bans(Ptr(0)), offset(inputs.bans.as_ptr()));
            assert_eq!(
                (inputs.asks.len(), inputs.tables.len(), inputs.bans.len()),
                (choices, rows * table_blocks, bans)
            );
            assert_eq!((inputs.picks.len(), inputs.tiles.len()), (picks, 2 * tiles));
            let words = choices * ASK_WORDS + rows * (3 + table_blocks) + picks + 2 * tiles + bans;
            assert_eq!(layout.bytes(), words.next_multiple_of(2) * 4);
        }
    }
}
