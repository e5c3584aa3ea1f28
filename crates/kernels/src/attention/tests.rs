//! Attention against sums in f64, and a row against itself in every company.

use super::*;
use crate::simd::Simd;
use crate::testing::{Random, same_bits};

/// Some sequences in a cache, and the plain record of what was written.
struct Case {
    shape: Shape,
    heads: usize,
    /// The blocks of each sequence, in no order.
    tables: Vec<Vec<u32>>,
    /// `[sequence][position][kv_heads * dim]`
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
    queries: Vec<Vec<Vec<f32>>>,
    random: Random,
}

impl Case {
    fn new(shape: Shape, heads: usize, lengths: &[usize], mut random: Random) -> Case {
        let width = shape.kv_heads * shape.head_dim;
        let mut rows = |width: usize| -> Vec<Vec<Vec<f32>>> {
            lengths.iter().map(|n| (0..*n).map(|_| random.normal(width)).collect()).collect()
        };
        let (keys, values, queries) = (rows(width), rows(width), rows(heads * shape.head_dim));
        let mut free: Vec<u32> = (0..shape.blocks as u32).collect();
        let mut tables = vec![Vec::new(); lengths.len()];
        for (table, n) in tables.iter_mut().zip(lengths) {
            table.extend((0..n.div_ceil(BLOCK)).map(|_| free.swap_remove(random.below(free.len()))));
        }
        Case { shape, heads, tables, keys, values, queries, random }
    }

    /// Writes and attends to the rows of one step, packed with gaps between them.
    fn step(&self, cache: &mut Cache, rows: &[(usize, usize)], pool: &Pool) -> Vec<f32> {
        let gap = 3;
        let pack = |from: &Vec<Vec<Vec<f32>>>| -> Vec<f32> {
            rows.iter().flat_map(|(sequence, at)| from[*sequence][*at].iter().copied().chain([f32::NAN; 3])).collect()
        };
        let (k, v, q) = (pack(&self.keys), pack(&self.values), pack(&self.queries));
        let sequences: Vec<u32> = rows.iter().map(|r| r.0 as u32).collect();
        let positions: Vec<u32> = rows.iter().map(|r| r.1 as u32).collect();
        let mut starts = vec![0];
        starts.extend(self.tables.iter().scan(0, |end, table| {
            *end += table.len() as u32;
            Some(*end)
        }));
        let blocks = self.tables.concat();
        let places = Places::new(&sequences, &positions, &starts, &blocks).unwrap();
        let (kv, width) = (self.shape.kv_heads * self.shape.head_dim, self.heads * self.shape.head_dim);
        cache.write((&k, kv + gap), (&v, kv + gap), &places, pool);
        let mut y = vec![f32::NAN; rows.len() * width];
        attention(self.queries(&q, width + gap), cache, &places, &mut y, pool);
        y
    }

    fn queries<'a>(&self, values: &'a [f32], stride: usize) -> Queries<'a> {
        Queries { values, stride, heads: self.heads, scale: 1.0 / (self.shape.head_dim as f32).sqrt() }
    }

    /// Every row of every sequence, in order.
    fn all(&self) -> Vec<(usize, usize)> {
        self.keys
            .iter()
            .enumerate()
            .flat_map(|(sequence, keys)| (0..keys.len()).map(move |at| (sequence, at)))
            .collect()
    }

    fn check(&self, rows: &[(usize, usize)], y: &[f32], allowed: f64) {
        let (dim, group) = (self.shape.head_dim, self.heads / self.shape.kv_heads);
        for (&(sequence, at), y) in rows.iter().zip(y.chunks(self.heads * dim)) {
            for head in 0..self.heads {
                let part = |row: &Vec<f32>, head: usize| -> Vec<f64> {
                    row[head * dim..][..dim].iter().map(|v| *v as f64).collect()
                };
                let q = part(&self.queries[sequence][at], head);
                let scores: Vec<f64> = (0..=at)
                    .map(|p| part(&self.keys[sequence][p], head / group))
                    .map(|k| k.iter().zip(&q).map(|(k, q)| k * q).sum::<f64>() / (dim as f64).sqrt())
                    .collect();
                let most = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
                let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for i in 0..dim {
                    let expected: f64 = scores
                        .iter()
                        .enumerate()
                        .map(|(p, s)| {
                            (s - most).exp() / total * self.values[sequence][p][head / group * dim + i] as f64
                        })
                        .sum();
                    let got = y[head * dim + i] as f64;
                    let seed = self.random.seed;
                    assert!(
                        (got - expected).abs() <= allowed,
                        "sequence {sequence} at {at}: {got} not {expected}; seed {seed}"
                    );
                }
            }
        }
    }
}

fn shapes() -> impl Iterator<Item = (Shape, usize)> {
    [(1, 1, 16), (3, 3, 64), (3, 1, 8), (2, 4, 24), (1, 8, 128)]
        .into_iter()
        .map(|(kv_heads, group, head_dim)| (Shape { blocks: 15, kv_heads, head_dim }, kv_heads * group))
}

#[test]
fn it_equals_f64_whatever_the_shape() {
    for (shape, heads) in shapes() {
        let case = Case::new(shape, heads, &[1, 300, 65], Random::fresh());
        for simd in Simd::available() {
            let pool = Pool::with_simd(2, simd);
            let mut exact = Cache::f32(shape);
            case.check(&case.all(), &case.step(&mut exact, &case.all(), &pool), 5e-6);
            // f16 keys move a score by about 2^-11 of its size, f16 values the result by as much.
            let mut half = Cache::f16(shape);
            case.check(&case.all(), &case.step(&mut half, &case.all(), &pool), 1e-2);
        }
    }
}

#[test]
fn a_row_is_the_same_alone_batched_and_chunked_on_every_path() {
    for (shape, heads) in shapes() {
        let case = Case::new(shape, heads, &[290, 70, 3], Random::fresh());
        let rows = case.all();
        let width = heads * shape.head_dim;
        let mut alone = vec![Vec::new(); rows.len()];
        let mut cache = Cache::f16(shape);
        for (row, y) in rows.iter().zip(&mut alone) {
            *y = case.step(&mut cache, &[*row], &Pool::new(1));
        }
        for (simd, chunk) in Simd::available().into_iter().flat_map(|s| [1, 7, 64, rows.len()].map(|chunk| (s, chunk)))
        {
            for threads in [1, 3] {
                let pool = Pool::with_simd(threads, simd);
                let mut cache = Cache::f16(shape);
                for (rows, alone) in rows.chunks(chunk).zip(alone.chunks(chunk)) {
                    let y = case.step(&mut cache, rows, &pool);
                    for (y, alone) in y.chunks(width).zip(alone) {
                        let seed = case.random.seed;
                        same_bits(alone, y, || format!("{shape:?}, chunks of {chunk} on {}, seed {seed}", simd.name()));
                    }
                }
            }
        }
    }
}

#[test]
fn sequences_that_step_together_do_not_see_each_other() {
    let shape = Shape { blocks: 7, kv_heads: 3, head_dim: 64 };
    let case = Case::new(shape, 9, &[100, 100, 100], Random::fresh());
    let pool = Pool::new(2);
    let mut cache = Cache::f16(shape);
    // Three sequences, each some steps ahead of the next, so that they stand at different positions.
    for step in 0..140 {
        let rows: Vec<(usize, usize)> = (0..3)
            .filter_map(|slot| Some((slot, usize::checked_sub(step, slot * 20)?)))
            .filter(|r| r.1 < 100)
            .collect();
        case.check(&rows, &case.step(&mut cache, &rows, &pool), 1e-2);
    }
}

#[test]
fn what_an_earlier_prediction_left_in_the_blocks_is_not_seen() {
    let shape = Shape { blocks: 3, kv_heads: 1, head_dim: 16 };
    let mut old = Case::new(shape, 2, &[150], Random::fresh());
    let mut new = Case::new(shape, 2, &[20], Random::fresh());
    old.values[0].iter_mut().flatten().for_each(|v| *v = f32::NAN);
    old.keys[0].iter_mut().flatten().for_each(|v| *v = f32::NAN);
    let pool = Pool::new(1);
    let (mut used, mut fresh) = (Cache::f16(shape), Cache::f16(shape));
    old.step(&mut used, &old.all(), &pool);
    new.tables[0] = vec![old.tables[0][1]];
    for rows in new.all().chunks(6) {
        let (a, b) = (new.step(&mut fresh, rows, &pool), new.step(&mut used, rows, &pool));
        same_bits(&a, &b, || format!("seed {}", new.random.seed));
    }
}

#[test]
fn a_shared_beginning_is_read_where_it_lies() {
    let shape = Shape { blocks: 6, kv_heads: 2, head_dim: 16 };
    let pool = Pool::new(2);
    let mut whole = Case::new(shape, 4, &[100, 100], Random::fresh());
    let begin = BLOCK;
    for what in [&mut whole.keys, &mut whole.values, &mut whole.queries] {
        what[1] = [&what[0][..begin], &what[1][begin..]].concat();
    }
    let mut cache = Cache::f16(shape);
    let expected = whole.step(&mut cache, &whole.all(), &pool);
    // The second sequence takes the first one's first block, and goes on in its own.
    whole.tables[1][0] = whole.tables[0][0];
    let mut cache = Cache::f16(shape);
    let rows = whole.all();
    let width = 4 * shape.head_dim;
    whole.step(&mut cache, &rows[..100], &pool);
    let got = whole.step(&mut cache, &rows[100 + begin..], &pool);
    same_bits(&expected[(100 + begin) * width..], &got, || format!("seed {}", whole.random.seed));
}
