//! Attention over whole images and texts.

use super::*;
use crate::cuda::attend::{self, Batch, DIM, Rows};

const SCALE: f32 = 0.125;

/// What a row of queries sees, in f64.
fn expected(query: &[f64], keys: &[f64], values: &[f64], width: usize, head: usize, seen: usize) -> Vec<f64> {
    let of = |rows: &[f64], position: usize| rows[position * width + head * DIM..][..DIM].to_vec();
    let dot = |p: usize| query.iter().zip(of(keys, p)).map(|(q, k)| q * k).sum::<f64>() * f64::from(SCALE);
    let scores: Vec<f64> = (0..seen).map(dot).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    let mut out = vec![0.0; DIM];
    for (position, score) in scores.iter().enumerate() {
        let weight = (score - most).exp() / total;
        out.iter_mut().zip(of(values, position)).for_each(|(out, value)| *out += weight * value);
    }
    out
}

/// Queries, keys and values of a fused product, read where they lie, and those of texts beside queries of their own.
pub fn attend_equals_f64_in_place_and_over_texts(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        let random = 1 + case.random.below(130);
        for (parts, rows, seen, heads, causal) in [
            (1, 1, 1, 1, false),
            (2, 65, 77, 2, false),
            (1, 150, 150, 3, false),
            (2, 77, 77, 2, true),
            (1, 10, 200, 1, true),
            (3, random, 129, 1, false),
        ] {
            let width = heads * DIM;
            // Rows of queries have others beside them, keys stand above values.
            let (q_stride, kv_stride) = (3 * width, 2 * width + 8);
            // A few large scores: the running maximum moves.
            let q: Vec<f32> = case.random.normal(parts * rows * q_stride).iter().map(|v| v * 2.0).collect();
            let kv = case.random.normal(parts * seen * kv_stride);
            let (queries, both) = (case.reals(&q), case.reals(&kv));
            let out = case.poisoned(parts * rows * width * 2);
            let batch = Batch { parts, rows, seen, heads, causal, scale: SCALE };
            case.run(&attend::attend(
                case.element,
                &batch,
                Rows { at: queries.ptr().at(width * 2), stride: q_stride },
                Rows { at: both.ptr(), stride: kv_stride },
                Rows { at: both.ptr().at((width + 8) * 2), stride: kv_stride },
                out.ptr(),
            ));
            let round = |v: &[f32]| v.iter().map(|v| case.element.round(*v)).collect::<Vec<f64>>();
            let narrow = |from: usize| -> Vec<f64> {
                kv.chunks(kv_stride).flat_map(|row| round(&row[from..from + width])).collect()
            };
            let (keys, values) = (narrow(0), narrow(width + 8));
            for (i, got) in case.element.read(&out).chunks(DIM).enumerate() {
                let (row, head) = (i / heads, i % heads);
                let (part, place) = (row / rows, row % rows);
                let query = round(&q[row * q_stride + width + head * DIM..][..DIM]);
                let of = |rows: &[f64]| rows[part * seen * width..(part + 1) * seen * width].to_vec();
                let sees = if causal { seen.min(place + 1) } else { seen };
                let expected = expected(&query, &of(&keys), &of(&values), width, head, sees);
                for (got, expected) in got.iter().zip(expected) {
                    // Weights and the result are rounded to the element type; values are of size 1.
                    let allowed = 4.0 * case.element.epsilon() * (1.0 + expected.abs());
                    assert!(
                        (got - expected).abs() <= allowed,
                        "{got}, not {expected}: {} row {row} head {head} of {batch:?}, seed {}",
                        case.element.name(),
                        case.random.seed
                    );
                }
            }
        }
    });
}

pub fn a_row_attends_with_the_same_bits_alone_and_among_others(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        let (rows, seen) = (100, 90);
        let (q, kv) = (case.random.normal(rows * DIM), case.random.normal(seen * 2 * DIM));
        let both = case.reals(&kv);
        let (keys, values) =
            (Rows { at: both.ptr(), stride: 2 * DIM }, Rows { at: both.ptr().at(DIM * 2), stride: 2 * DIM });
        let mut run = |q: &[f32]| -> Vec<u16> {
            let (queries, out) = (case.reals(q), case.poisoned(q.len() * 2));
            let batch = Batch { parts: 1, rows: q.len() / DIM, seen, heads: 1, causal: false, scale: SCALE };
            let queries = Rows { at: queries.ptr(), stride: DIM };
            case.run(&attend::attend(case.element, &batch, queries, keys, values, out.ptr()));
            out.read()
        };
        let all = run(&q);
        for row in [0, 15, 64, 99] {
            assert_eq!(run(&q[row * DIM..][..DIM]), all[row * DIM..][..DIM], "row {row}");
        }
    });
}
