//! Products of few rows, in every format, type and fusion.

use super::*;
use crate::cuda::attention::Paged;
use crate::cuda::call::Gpu;
use crate::cuda::params::Ptr;
use crate::cuda::product::{self, Input};
use crate::cuda::rows;

/// `y[n][m]`, and for each the sum of the magnitudes, which rounding errors are relative to.
fn reference(w: &[f64], x: &[f64], k: usize) -> Vec<(f64, f64)> {
    x.chunks(k)
        .flat_map(|x| {
            w.chunks(k).map(move |w| {
                let terms = || w.iter().zip(x).map(|(w, x)| w * x);
                (terms().sum(), terms().map(f64::abs).sum())
            })
        })
        .collect()
}

/// Awkward on purpose: slices of unequal length, a row that ends within a group, one group for eight warps.
const SHAPES: [(usize, usize); 5] = [(16, 32), (48, 160), (32, 576), (80, 1184), (16, 4128)];

pub fn add_equals_f64_in_every_format_and_shape(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        for (out, k) in SHAPES {
            let rows = [1, 2, 7, 8, 9, 17, 65][case.random.below(7)];
            // A matrix may end within a tile.
            let out = out - case.random.below(12);
            let sample = sample(case.random, case.packing, case.element, out, k);
            let placed = Placed::new(case, &sample.packed);
            let (x, before) = (case.random.normal(rows * k), case.random.normal(rows * out));
            let (input, stream) = (case.reals(&x), case.of(&before));
            case.run(&product::add(
                &case.machine.gpu(),
                case.element,
                &placed.matrix(),
                input.ptr(),
                rows,
                stream.ptr(),
            ));
            let x: Vec<f64> = x.iter().map(|v| case.element.round(*v)).collect();
            let expected = reference(&sample.values, &x, k);
            for ((got, before), (y, size)) in stream.read::<f32>().into_iter().zip(before).zip(expected) {
                let expected = y + f64::from(before);
                let allowed = 1e-6 * size + 1e-6 * expected.abs();
                assert!(
                    (f64::from(got) - expected).abs() <= allowed,
                    "{got}, not {expected}: {}",
                    case.name(rows, out, k)
                );
            }
        }
    });
}

pub fn the_head_norms_its_rows_and_equals_f64(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        for (out, k) in SHAPES {
            let (rows, out) = (1 + case.random.below(8), out + case.random.below(3));
            let sample = sample(case.random, case.packing, case.element, out, k);
            let placed = Placed::new(case, &sample.packed);
            let (x, gamma) = (case.random.normal(rows * k), case.random.normal(k));
            let (stream, weight) = (case.of(&x), case.of(&gamma));
            let logits = case.poisoned(rows * out * 4);
            let input = Input::Stream { x: stream.ptr(), gamma: weight.ptr(), eps: 1e-5, rows };
            case.run(&product::head(&case.machine.gpu(), case.element, &placed.matrix(), &input, logits.ptr()));
            let expected = reference(&sample.values, &normed(&x, &gamma, 1e-5), k);
            for (got, (y, size)) in logits.read::<f32>().into_iter().zip(expected) {
                // Every value of x is rounded once to the element type.
                let allowed = case.element.epsilon() * size + 1e-6;
                assert!((f64::from(got) - y).abs() <= allowed, "{got}, not {y}: {}", case.name(rows, out, k));
            }
        }
    });
}

pub fn gate_up_equals_f64(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        for (ff, k) in [(8, 32), (24, 160), (40, 576)] {
            for fused in [true, false] {
                let rows = if fused { 1 + case.random.below(8) } else { 1 + case.random.below(32) };
                let sample = sample(case.random, case.packing, case.element, 2 * ff, k);
                let placed = Placed::new(case, &sample.packed);
                // Small, so that the gates are neither all open nor all closed.
                let gamma: Vec<f32> = case.random.normal(k).iter().map(|v| v * 0.05).collect();
                let x = case.random.normal(rows * k);
                let ready: Vec<f32> = x.iter().map(|v| v * 0.05).collect();
                let (stream, weight, ready_x) = (case.of(&x), case.of(&gamma), case.reals(&ready));
                let input = if fused {
                    Input::Stream { x: stream.ptr(), gamma: weight.ptr(), eps: 1e-6, rows }
                } else {
                    Input::Ready { x: ready_x.ptr(), rows }
                };
                let hidden = case.poisoned(rows * ff * 2);
                case.run(&product::gate_up(&case.machine.gpu(), case.element, &placed.matrix(), &input, hidden.ptr()));
                let x = if fused {
                    normed(&x, &gamma, 1e-6)
                } else {
                    ready.iter().map(|v| case.element.round(*v)).collect()
                };
                let y = reference(&sample.values, &x, k);
                for (i, got) in case.element.read(&hidden).into_iter().enumerate() {
                    let ((gate, gate_size), (up, up_size)) =
                        (y[i / ff * 2 * ff + i % ff], y[i / ff * 2 * ff + ff + i % ff]);
                    let silu = |v: f64| v / (1.0 + (-v).exp());
                    let expected = silu(gate) * up;
                    let lost = if fused { case.element.epsilon() } else { 2e-6 };
                    // SiLU is nowhere steeper than 1.1.
                    let allowed = 1.1 * lost * gate_size * up.abs()
                        + lost * up_size * silu(gate).abs()
                        + 1.1 * lost * lost * gate_size * up_size
                        + case.element.epsilon() * expected.abs()
                        + 1e-6;
                    assert!((got - expected).abs() <= allowed, "{got}, not {expected}: {}", case.name(rows, ff, k));
                }
            }
        }
    });
}

/// A cache of random blocks, and rows that stand somewhere in it.
struct World {
    keys: Buffer,
    values: Buffer,
    tables: Buffer,
    positions: Buffer,
    table: Vec<u32>,
    at: Vec<u32>,
    blocks: usize,
    table_blocks: usize,
}

impl World {
    fn new(case: &mut Case, rows: usize, kv_heads: usize, dim: usize) -> World {
        let (table_blocks, blocks) = (3, 3 * rows + 2);
        // Every block to one row at most: a shuffled list.
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        let table: Vec<u32> =
            (0..rows * table_blocks).map(|_| free.swap_remove(case.random.below(free.len()))).collect();
        let mut at: Vec<u32> = (0..rows).map(|_| case.random.below(64 * table_blocks) as u32).collect();
        if rows > 2 {
            at[case.random.below(rows)] = u32::MAX;
        }
        let plane = blocks * kv_heads * 64 * dim * 2;
        World {
            keys: case.poisoned(plane),
            values: case.poisoned(plane),
            tables: case.of(&table),
            positions: case.of(&at),
            table,
            at,
            blocks,
            table_blocks,
        }
    }
}

pub fn qkv_turns_and_writes_where_the_table_says_and_nowhere_else(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        for (heads, kv_heads, dim, k, fused) in [(3, 1, 16, 64, true), (4, 2, 64, 96, false), (2, 2, 48, 160, true)] {
            let rows = if fused { 1 + case.random.below(8) } else { 1 + case.random.below(32) };
            let out = (heads + 2 * kv_heads) * dim;
            let sample = sample(case.random, case.packing, case.element, out, k);
            let placed = Placed::new(case, &sample.packed);
            let world = World::new(case, rows, kv_heads, dim);
            let (x, gamma) = (case.random.normal(rows * k), case.random.normal(k));
            let angles: Vec<f32> = (0..192 * dim / 2).map(|_| case.random.uniform() * 6.3).collect();
            let rope: Vec<f32> = angles
                .chunks(dim / 2)
                .flat_map(|a| a.iter().map(|a| a.cos()).chain(a.iter().map(|a| a.sin())))
                .collect();
            let (stream, weight, ready, rope) = (case.of(&x), case.of(&gamma), case.reals(&x), case.of(&rope));
            let input = if fused {
                Input::Stream { x: stream.ptr(), gamma: weight.ptr(), eps: 1e-5, rows }
            } else {
                Input::Ready { x: ready.ptr(), rows }
            };
            let queries = case.poisoned(rows * heads * dim * 2);
            let (keys, values) = (world.keys.ptr(), world.values.ptr());
            let (tables, positions, table_blocks) = (world.tables.ptr(), world.positions.ptr(), world.table_blocks);
            let cache = Paged { keys, values, tables, positions, table_blocks, heads, kv_heads, dim };
            case.run(&product::qkv(
                &case.machine.gpu(),
                case.element,
                &placed.matrix(),
                &input,
                &cache,
                rope.ptr(),
                queries.ptr(),
            ));

            let x = if fused { normed(&x, &gamma, 1e-5) } else { x.iter().map(|v| case.element.round(*v)).collect() };
            let y = reference(&sample.values, &x, k);
            let (queries, keys, values) =
                (case.element.read(&queries), case.element.read(&world.keys), case.element.read(&world.values));
            let mut written = 0;
            for row in 0..rows {
                let position = world.at[row];
                if position == u32::MAX {
                    continue;
                }
                let place = position as usize % 64;
                let block = world.table[row * table_blocks + position as usize / 64] as usize;
                for head in 0..heads + 2 * kv_heads {
                    for i in 0..dim {
                        let y = |i: usize| y[row * out + head * dim + i];
                        let ((a, size), (b, other_size)) = (y(i), y((i + dim / 2) % dim));
                        let angle = f64::from(angles[position as usize * dim / 2 + i % (dim / 2)]);
                        let b = if i < dim / 2 { -b } else { b };
                        let (expected, size, got) = if head < heads {
                            let got = queries[(row * heads + head) * dim + i];
                            (a * angle.cos() + b * angle.sin(), size + other_size, got)
                        } else if head < heads + kv_heads {
                            written += 1;
                            let got = keys[((block * kv_heads + head - heads) * 64 + place) * dim + i];
                            (a * angle.cos() + b * angle.sin(), size + other_size, got)
                        } else {
                            let got = values[((block * kv_heads + head - heads - kv_heads) * dim + i) * 64 + place];
                            (a, size, got)
                        };
                        let lost = if fused { case.element.epsilon() } else { 2e-6 };
                        let allowed = lost * size + case.element.epsilon() * expected.abs() + 1e-5;
                        assert!(
                            (got - expected).abs() <= allowed,
                            "{got}, not {expected}: {}",
                            case.name(rows, out, k)
                        );
                    }
                }
            }
            let touched = keys.iter().filter(|v| !v.is_nan()).count();
            assert_eq!(
                (touched, values.iter().filter(|v| !v.is_nan()).count()),
                (written, written),
                "{}",
                world.blocks
            );
        }
    });
}

pub fn a_row_has_the_same_bits_alone_and_among_others_on_any_grid(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        let (out, k) = (64, 800);
        let sample = sample(case.random, case.packing, case.element, out, k);
        let placed = Placed::new(case, &sample.packed);
        let x = case.random.normal(70 * k);
        let buffer = case.reals(&x);
        let mut run = |first: usize, rows: usize, multiprocessors: u32| {
            let stream = case.of(&vec![0f32; rows * out]);
            let gpu = Gpu { multiprocessors, ..case.machine.gpu() };
            let from: Ptr = buffer.ptr().at(first * k * 2);
            case.run(&product::add(&gpu, case.element, &placed.matrix(), from, rows, stream.ptr()));
            stream.read::<u32>()
        };
        let all = run(0, 70, 1);
        for row in [0, 5, 69] {
            assert_eq!(run(row, 1, 3), all[row * out..][..out]);
        }
        assert_eq!(run(3, 8, 2), all[3 * out..11 * out]);
        assert_eq!(run(50, 12, 2), all[50 * out..62 * out]);
    });
}

pub fn norming_on_the_way_in_gives_the_bits_of_norming_before(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        let (out, k, rows) = (32, 640, 8);
        let sample = sample(case.random, case.packing, case.element, out, k);
        let placed = Placed::new(case, &sample.packed);
        let (x, gamma) = (case.random.normal(rows * k), case.random.normal(k));
        let (stream, weight, ready) = (case.of(&x), case.of(&gamma), case.poisoned(rows * k * 2));
        let (fused, apart) = (case.poisoned(rows * out * 4), case.poisoned(rows * out * 4));
        let gpu = case.machine.gpu();
        let on_the_way = Input::Stream { x: stream.ptr(), gamma: weight.ptr(), eps: 1e-5, rows };
        case.run(&product::head(&gpu, case.element, &placed.matrix(), &on_the_way, fused.ptr()));
        case.run(&rows::norm(case.element, stream.ptr(), weight.ptr(), 1e-5, Ptr::NONE, (rows, k), ready.ptr()));
        let before = Input::Ready { x: ready.ptr(), rows };
        case.run(&product::head(&gpu, case.element, &placed.matrix(), &before, apart.ptr()));
        assert_eq!(fused.read::<u32>(), apart.read::<u32>(), "{}", case.name(rows, out, k));
    });
}
