//! Where the rows of one forward stand: which sequence, which position, and which blocks of the cache hold it. Refuses to
//! know who the sequences are and what is in the blocks.

use super::store::BLOCK;

/// Rows, and the blocks of the sequences they belong to. Checked when made, so that no op need check again.
///
/// Sequence `s` holds the blocks `blocks[starts[s]..starts[s + 1]]`, in the order of its positions: position `p` lies in
/// entry `p / 64` of them, at place `p % 64`. Several sequences may hold one block, as long as nobody writes to it. Rows of
/// one sequence that follow one another, at positions that do, are worked on together.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    sequences: &'a [u32],
    positions: &'a [u32],
    starts: &'a [u32],
    blocks: &'a [u32],
    /// One more than the highest block.
    end: usize,
}

impl<'a> Places<'a> {
    /// Row `r` stands at `positions[r]` of sequence `sequences[r]`. `starts` has one entry more than there are sequences.
    /// Tells what does not fit: lists of two lengths, a sequence or a position without a block.
    pub fn new(
        sequences: &'a [u32],
        positions: &'a [u32],
        starts: &'a [u32],
        blocks: &'a [u32],
    ) -> Result<Places<'a>, String> {
        if sequences.len() != positions.len() {
            return Err(format!("{} sequences for {} positions", sequences.len(), positions.len()));
        }
        let ordered = starts.windows(2).all(|pair| pair[0] <= pair[1]);
        if !ordered || starts.last().is_some_and(|last| *last as usize > blocks.len()) {
            return Err(format!("sequences that start at {starts:?} in a list of {} blocks", blocks.len()));
        }
        let end = blocks.iter().max().map_or(0, |block| *block as usize + 1);
        let places = Places { sequences, positions, starts, blocks, end };
        for (&sequence, &position) in sequences.iter().zip(positions) {
            if sequence as usize + 1 >= starts.len() {
                return Err(format!("sequence {sequence} of {}", starts.len().saturating_sub(1)));
            }
            let held = places.table(sequence).len();
            if position as usize >= held * BLOCK {
                return Err(format!("position {position} of a sequence that holds {held} blocks of {BLOCK}"));
            }
        }
        Ok(places)
    }

    /// How many.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    pub fn sequences(&self) -> &'a [u32] {
        self.sequences
    }

    pub fn positions(&self) -> &'a [u32] {
        self.positions
    }

    pub fn starts(&self) -> &'a [u32] {
        self.starts
    }

    pub fn blocks(&self) -> &'a [u32] {
        self.blocks
    }

    /// The blocks of a sequence.
    pub fn table(&self, sequence: u32) -> &'a [u32] {
        let sequence = sequence as usize;
        &self.blocks[self.starts[sequence] as usize..self.starts[sequence + 1] as usize]
    }

    /// A row's block, and its place therein.
    pub fn place(&self, row: usize) -> (usize, usize) {
        let position = self.positions[row] as usize;
        (self.table(self.sequences[row])[position / BLOCK] as usize, position % BLOCK)
    }

    /// What does not fit a cache of so many blocks.
    pub fn fit(&self, blocks: usize) -> Result<(), String> {
        match self.end {
            end if end <= blocks => Ok(()),
            end => Err(format!("block {} of a cache of {blocks}", end - 1)),
        }
    }

    /// Row `row` continues the row before it.
    fn continues(&self, row: usize) -> bool {
        self.sequences[row] == self.sequences[row - 1] && self.positions[row] == self.positions[row - 1] + 1
    }

    /// The runs of consecutive rows of one sequence, none longer than `most`.
    pub fn runs(&self, most: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::with_capacity(self.rows());
        for row in 0..self.rows() {
            match runs.last_mut() {
                Some(run) if run.rows < most && self.continues(row) => run.rows += 1,
                _ => runs.push(Run { first: row, rows: 1 }),
            }
        }
        runs
    }
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: usize,
    pub rows: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_its_number() {
        let blocks = [7, 3, 9];
        let told = |sequences: &[u32], positions: &[u32], starts: &[u32]| {
            Places::new(sequences, positions, starts, &blocks).unwrap_err()
        };
        assert_eq!(told(&[0], &[], &[0, 3]), "1 sequences for 0 positions");
        assert_eq!(told(&[1], &[0], &[0, 3]), "sequence 1 of 1");
        assert_eq!(told(&[0], &[0], &[]), "sequence 0 of 0");
        assert_eq!(told(&[0], &[128], &[0, 2, 3]), "position 128 of a sequence that holds 2 blocks of 64");
        assert_eq!(told(&[0], &[0], &[0, 4]), "sequences that start at [0, 4] in a list of 3 blocks");
        assert_eq!(told(&[0], &[0], &[2, 1]), "sequences that start at [2, 1] in a list of 3 blocks");
        let places = Places::new(&[0, 1], &[127, 63], &[0, 2, 3], &blocks).unwrap();
        assert_eq!((places.place(0), places.place(1)), ((3, 63), (9, 63)));
        assert_eq!(places.fit(9).unwrap_err(), "block 9 of a cache of 9");
        assert!(places.fit(10).is_ok());
    }

    #[test]
    fn rows_that_follow_one_another_run_together() {
        let blocks = [0, 1];
        let places = Places::new(&[0, 0, 0, 1, 1, 0], &[4, 5, 6, 7, 9, 7], &[0, 1, 2], &blocks).unwrap();
        let runs = |most| places.runs(most).iter().map(|run| run.rows).collect::<Vec<_>>();
        assert_eq!(runs(9), [3, 1, 1, 1]);
        assert_eq!(runs(2), [2, 1, 1, 1, 1]);
    }
}
