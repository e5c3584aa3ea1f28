//! Attention over the paged cache, one query a row and many.

use super::*;
use crate::cuda::attention::{self, Paged};
use crate::cuda::rows;

const BLOCK: usize = attention::BLOCK;

/// The keys and values of sequences, `[position][kv_head][dim]` each, and where the cache holds them.
struct World {
    dim: usize,
    heads: usize,
    kv_heads: usize,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    cache: (Buffer, Buffer),
    tables: Vec<Vec<u32>>,
    table_blocks: usize,
}

impl World {
    /// `lengths[s]` positions of sequence `s` are written; all the rest of the cache is NaN.
    fn new(case: &mut Case, (heads, kv_heads, dim): (usize, usize, usize), lengths: &[usize]) -> World {
        let table_blocks = lengths.iter().max().unwrap().div_ceil(BLOCK) + 1;
        let blocks = lengths.len() * table_blocks + 3;
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        let mut world = World {
            dim,
            heads,
            kv_heads,
            keys: Vec::new(),
            values: Vec::new(),
            cache: (case.poisoned(0), case.poisoned(0)),
            tables: Vec::new(),
            table_blocks,
        };
        let plane = blocks * kv_heads * BLOCK * dim;
        let (mut keys, mut values) = (vec![u16::MAX; plane], vec![u16::MAX; plane]);
        for &length in lengths {
            let table: Vec<u32> = (0..table_blocks).map(|_| free.swap_remove(case.random.below(free.len()))).collect();
            let (k, v) = (case.random.normal(length * kv_heads * dim), case.random.normal(length * kv_heads * dim));
            for (i, (k, v)) in k.iter().zip(&v).enumerate() {
                let (position, head, d) = (i / dim / kv_heads, i / dim % kv_heads, i % dim);
                let (block, place) = (table[position / BLOCK] as usize, position % BLOCK);
                keys[((block * kv_heads + head) * BLOCK + place) * dim + d] = case.element.bits(*k);
                values[((block * kv_heads + head) * dim + d) * BLOCK + place] = case.element.bits(*v);
            }
            world.keys.push(k.iter().map(|v| case.element.round(*v)).collect());
            world.values.push(v.iter().map(|v| case.element.round(*v)).collect());
            world.tables.push(table);
        }
        world.cache = (case.of(&keys), case.of(&values));
        world
    }

    /// One query's output, `[dim]`, over positions `0..=position`.
    fn expected(&self, sequence: usize, position: usize, head: usize, query: &[f64], scale: f64) -> Vec<f64> {
        let kv_head = head / (self.heads / self.kv_heads);
        let at = |p: usize| (p * self.kv_heads + kv_head) * self.dim;
        let dot = |p: usize| query.iter().zip(&self.keys[sequence][at(p)..]).map(|(q, k)| q * k).sum::<f64>() * scale;
        let scores: Vec<f64> = (0..=position).map(dot).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let weights = scores.iter().map(|s| (s - most).exp() / total);
        let mut out = vec![0.0; self.dim];
        for (p, weight) in weights.enumerate() {
            for (d, out) in out.iter_mut().enumerate() {
                *out += weight * self.values[sequence][at(p) + d];
            }
        }
        out
    }
}

const SCALE: f32 = 0.1;

/// Runs rows (sequence, position) with one query each; unused rows are none.
fn decode(
    case: &mut Case,
    world: &World,
    rows: &[Option<(usize, usize)>],
    queries: &[f32],
    segments: usize,
) -> Vec<u16> {
    let World { heads, kv_heads, dim, table_blocks, .. } = *world;
    let tables: Vec<u32> = rows
        .iter()
        .flat_map(|row| row.map_or(vec![u32::MAX; table_blocks], |(s, _)| world.tables[s].clone()))
        .collect();
    let positions: Vec<u32> = rows.iter().map(|row| row.map_or(u32::MAX, |(_, p)| p as u32)).collect();
    let (tables, positions, queries) = (case.of(&tables), case.of(&positions), case.reals(queries));
    let (partial, done) = attention::decode_scratch(rows.len(), heads, kv_heads, dim);
    let (partial, done) = (case.poisoned(partial), case.of(&vec![0u32; done / 4]));
    let out = case.poisoned(rows.len() * heads * dim * 2);
    let cache = Paged {
        keys: world.cache.0.ptr(),
        values: world.cache.1.ptr(),
        tables: tables.ptr(),
        positions: positions.ptr(),
        table_blocks,
        heads,
        kv_heads,
        dim,
    };
    let scratch = (partial.ptr(), done.ptr());
    case.run(&attention::decode(case.element, &cache, rows.len(), SCALE, queries.ptr(), scratch, out.ptr(), segments));
    assert!(done.read::<u32>().iter().all(|v| *v == 0), "ready for the next launch");
    out.read()
}

fn close(case: &Case, got: f64, expected: f64, what: &str) {
    // Weights and the result are rounded to the element type; values are of size 1.
    let allowed = 4.0 * case.element.epsilon() * (1.0 + expected.abs());
    assert!(
        (got - expected).abs() <= allowed,
        "{got}, not {expected}: {what}, {} seed {}",
        case.element.name(),
        case.random.seed
    );
}

pub fn decode_equals_f64_over_scattered_blocks_full_of_nan_elsewhere(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        for shape in [(1, 1, 64), (6, 2, 64), (8, 2, 128), (16, 1, 64), (9, 3, 128)] {
            let lengths = [1, 2, 31, 33, 64, 65, 200, 2049, 2300];
            let world = World::new(case, shape, &lengths);
            let mut rows: Vec<_> = (0..4)
                .map(|_| {
                    let sequence = case.random.below(lengths.len());
                    Some((sequence, lengths[sequence] - 1))
                })
                .collect();
            // A sequence that is longer than its row knows, and a row that is not in use.
            rows.push(Some((6, case.random.below(200))));
            rows.insert(case.random.below(5), None);
            let (heads, _, dim) = shape;
            let queries = case.random.normal(rows.len() * heads * dim);
            let segments = 1 + case.random.below(4);
            let out = decode(case, &world, &rows, &queries, segments);
            for (i, out) in out.chunks(dim).enumerate() {
                let (row, head) = (i / heads, i % heads);
                let query: Vec<f64> = queries[i * dim..][..dim].iter().map(|v| case.element.round(*v)).collect();
                let expected = match rows[row] {
                    Some((sequence, position)) => world.expected(sequence, position, head, &query, SCALE.into()),
                    None => vec![0.0; dim],
                };
                for (got, expected) in out.iter().zip(expected) {
                    close(case, case.element.value(*got), expected, &format!("{shape:?} row {row} {:?}", rows[row]));
                }
            }
        }
    });
}

pub fn a_decoded_row_has_the_same_bits_alone_and_however_its_segments_are_shared_out(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        let (heads, dim) = (4, 64);
        let world = World::new(case, (heads, 2, dim), &[700, 130, 2200]);
        let rows = [Some((0, 699)), None, Some((2, 2199)), Some((1, 77))];
        let queries = case.random.normal(rows.len() * heads * dim);
        let all = decode(case, &world, &rows, &queries, 32);
        assert_eq!(decode(case, &world, &rows, &queries, 1), all);
        let width = heads * dim;
        for row in [0, 2, 3] {
            let alone = decode(case, &world, &rows[row..=row], &queries[row * width..][..width], 3);
            assert_eq!(alone, all[row * width..][..width], "seed {}", case.random.seed);
        }
    });
}

/// Runs prompts: (sequence, first position, rows) each.
fn prefill(case: &mut Case, world: &World, runs: &[(usize, usize, usize)], queries: &[f32]) -> Vec<u16> {
    let World { heads, kv_heads, dim, table_blocks, .. } = *world;
    let (mut tables, mut positions, mut places) = (Vec::<u32>::new(), Vec::new(), Vec::new());
    for &(sequence, first, rows) in runs {
        places.push((positions.len(), rows));
        for row in 0..rows {
            tables.extend(&world.tables[sequence]);
            positions.push((first + row) as u32);
        }
    }
    let rows = positions.len();
    let tiles = attention::prefill_tiles(&places, heads, kv_heads);
    let (tables, positions, queries) = (case.of(&tables), case.of(&positions), case.reals(queries));
    let (tiles, tile_count) = (case.of(&tiles), tiles.len());
    let out = case.poisoned(rows * heads * dim * 2);
    let cache = Paged {
        keys: world.cache.0.ptr(),
        values: world.cache.1.ptr(),
        tables: tables.ptr(),
        positions: positions.ptr(),
        table_blocks,
        heads,
        kv_heads,
        dim,
    };
    case.run(&attention::prefill(case.element, &cache, SCALE, queries.ptr(), (tiles.ptr(), tile_count), out.ptr()));
    out.read()
}

pub fn prefill_equals_f64_for_prompts_side_by_side(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        for shape in [(1, 1, 64), (6, 2, 64), (8, 2, 128), (9, 3, 128)] {
            let world = World::new(case, shape, &[1, 40, 97, 260]);
            let runs = [(1, 0, 40), (0, 0, 1), (3, 130 + case.random.below(30), 100), (2, 60, 37)];
            let (heads, _, dim) = shape;
            let rows: Vec<(usize, usize)> =
                runs.iter().flat_map(|&(s, first, n)| (first..first + n).map(move |p| (s, p))).collect();
            let queries = case.random.normal(rows.len() * heads * dim);
            let out = prefill(case, &world, &runs, &queries);
            for (i, out) in out.chunks(dim).enumerate() {
                let (sequence, position) = rows[i / heads];
                let query: Vec<f64> = queries[i * dim..][..dim].iter().map(|v| case.element.round(*v)).collect();
                let expected = world.expected(sequence, position, i % heads, &query, SCALE.into());
                for (got, expected) in out.iter().zip(expected) {
                    close(
                        case,
                        case.element.value(*got),
                        expected,
                        &format!("{shape:?} position {position} of {sequence}"),
                    );
                }
            }
        }
    });
}

pub fn a_prompt_has_the_same_bits_however_it_is_cut(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        let (heads, dim) = (6, 64);
        let world = World::new(case, (heads, 2, dim), &[170, 20]);
        let queries = case.random.normal(170 * heads * dim);
        let whole = prefill(case, &world, &[(0, 0, 170)], &queries);
        let width = heads * dim;
        for cut in [1, 63, 64, 100] {
            let other = case.random.normal(20 * width);
            let part = [other.clone(), queries[cut * width..].to_vec()].concat();
            let rest = prefill(case, &world, &[(1, 0, 20), (0, cut, 170 - cut)], &part);
            assert_eq!(rest[20 * width..], whole[cut * width..], "cut at {cut}, seed {}", case.random.seed);
        }
    });
}

pub fn placing_a_products_rows_fills_the_cache_that_attention_reads(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        let (heads, kv_heads, dim) = (4, 2, 64);
        // A cache with nothing in it: the rows bring their own keys and values.
        let mut world = World::new(case, (heads, kv_heads, dim), &[1]);
        let plane = world.cache.0.read::<u16>().len();
        world.cache = (case.of(&vec![u16::MAX; plane]), case.of(&vec![u16::MAX; plane]));
        let n = 70;
        world.tables[0] = vec![1, 0];
        let width = (heads + 2 * kv_heads) * dim;
        let y = case.random.normal(n * width);
        // Angles of 0 turn nothing, so that keys stay what they were.
        let rope: Vec<f32> = (0..n).flat_map(|_| [vec![1f32; dim / 2], vec![0f32; dim / 2]].concat()).collect();
        let (tables, positions) = (case.of(&[1u32, 0].repeat(n)), case.of(&(0..n as u32).collect::<Vec<_>>()));
        let (y_buffer, rope, queries) = (case.reals(&y), case.of(&rope), case.poisoned(n * heads * dim * 2));
        let cache = Paged {
            keys: world.cache.0.ptr(),
            values: world.cache.1.ptr(),
            tables: tables.ptr(),
            positions: positions.ptr(),
            table_blocks: 2,
            heads,
            kv_heads,
            dim,
        };
        case.run(&rows::place(case.element, &cache, rope.ptr(), y_buffer.ptr(), n, queries.ptr()));
        let part = |from: usize, count: usize| -> Vec<f32> {
            y.chunks(width).flat_map(|row| row[from * dim..(from + count) * dim].iter().copied()).collect()
        };
        let rounded = |v: Vec<f32>| v.into_iter().map(|v| case.element.round(v)).collect::<Vec<f64>>();
        assert_eq!(case.element.read(&queries), rounded(part(0, heads)));
        world.keys[0] = rounded(part(heads, kv_heads));
        world.values[0] = rounded(part(heads + kv_heads, kv_heads));
        world.table_blocks = 2;
        let row = n - 1;
        let query = part(0, heads)[row * heads * dim..].to_vec();
        let out = decode(case, &world, &[Some((0, row))], &query, 2);
        for (head, out) in out.chunks(dim).enumerate() {
            let query: Vec<f64> = query[head * dim..][..dim].iter().map(|v| case.element.round(*v)).collect();
            for (got, expected) in out.iter().zip(world.expected(0, row, head, &query, SCALE.into())) {
                close(case, case.element.value(*got), expected, "placed");
            }
        }
    });
}
