//! The order in which a GPU takes the rows of a step: first those that attend alone, then those of prompts, sequence by sequence.
//! Refuses to know what is computed.

use kernels::cuda::attention::prefill_tiles;
use kernels::cuda::inputs::Inputs;
use kernels::op::Places;

use super::super::rows::Rows;

pub struct Arranged {
    /// By their place in the step: which of `Rows`.
    order: Vec<u32>,
    /// The first so many attend alone.
    pub singles: usize,
    /// The others: (first, rows) of a sequence.
    pub runs: Vec<(usize, usize)>,
    /// Every row is of another sequence, and all are wanted in their order: a step of single tokens.
    pub all_speak: bool,
}

impl Arranged {
    /// With `alone`, prompts are rows like any other.
    pub fn of(rows: &Rows, alone: bool) -> Arranged {
        let sequences = rows.sequences();
        let all: Vec<(usize, usize)> = sequences
            .chunk_by(|a, b| a == b)
            .scan(0, |first, run| {
                *first += run.len();
                Some((*first - run.len(), run.len()))
            })
            .collect();
        let wanted = rows.wanted().iter().copied();
        let all_speak = all.len() == sequences.len() && wanted.eq(0..sequences.len() as u32);
        let (single, long): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, count)| alone || *count == 1);
        let of = |runs: &[(usize, usize)]| -> Vec<u32> {
            runs.iter().flat_map(|&(first, count)| (first..first + count).map(|row| row as u32)).collect()
        };
        let mut order = of(&single);
        let singles = order.len();
        order.extend(of(&long));
        let mut at = singles;
        let placed = |(_, count)| {
            at += count;
            (at - count, count)
        };
        Arranged { order, singles, runs: long.into_iter().map(placed).collect(), all_speak }
    }

    /// Tells the step its rows.
    pub fn fill(
        &self,
        rows: &Rows,
        places: &Places,
        table_blocks: usize,
        (heads, kv_heads): (usize, usize),
        inputs: &mut Inputs,
    ) {
        let mut placed = vec![0u32; self.order.len()];
        for (at, &row) in self.order.iter().enumerate() {
            let row = row as usize;
            placed[row] = at as u32;
            inputs.tokens[at] = rows.tokens()[row];
            inputs.positions[at] = rows.positions()[row];
            let table = places.table(rows.sequences()[row]);
            inputs.tables[at * table_blocks..][..table.len()].copy_from_slice(table);
        }
        for &(row, chosen) in rows.next() {
            inputs.from[placed[row as usize] as usize] = chosen;
        }
        for (pick, &row) in inputs.picks.iter_mut().zip(rows.wanted()) {
            *pick = placed[row as usize];
        }
        let tiles = prefill_tiles(&self.runs, heads, kv_heads);
        for (to, tile) in inputs.tiles.chunks_exact_mut(2).zip(tiles) {
            to.copy_from_slice(&tile);
        }
    }
}
