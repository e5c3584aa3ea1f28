//! Attention over memories against a plain one in f64, alone and in company, on every path.

use super::*;
use crate::simd::Simd;
use crate::testing::{Random, same_bits};

struct Case {
    shape: Shape,
    k: Vec<f32>,
    v: Vec<f32>,
    memory: Memory,
}

/// A memory whose first `written` positions are there, written in uneven parts.
fn case(random: &mut Random, shape: Shape, written: usize, half: bool, pool: &Pool) -> Case {
    let width = shape.heads * shape.dim;
    let (k, v) = (random.normal(written * width), random.normal(written * width));
    let mut memory = Memory::new(shape, half);
    let mut first = 0;
    while first < written {
        let n = (1 + random.below(150)).min(written - first);
        memory.write(first, n, (&k[first * width..], width), (&v[first * width..], width), pool);
        first += n;
    }
    Case { shape, k, v, memory }
}

fn expected(case: &Case, q: &[f32], scale: f32, seen: usize, head: usize) -> Vec<f64> {
    let (dim, width) = (case.shape.dim, case.shape.heads * case.shape.dim);
    let at = |position: usize| position * width + head * dim;
    let scores: Vec<f64> = (0..seen)
        .map(|p| q.iter().zip(&case.k[at(p)..]).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * scale as f64)
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..dim).map(|d| weights.iter().enumerate().map(|(p, w)| w / total * f64::from(case.v[at(p) + d])).sum()).collect()
}

#[test]
fn every_row_sees_what_it_says_and_the_same_bits_in_any_company() {
    let mut random = Random::fresh();
    let cases = [
        (2, 64, 200, false),
        (3, 16, 65, true),
        (1, 64, 1, false),
        (6, 64, 150, true),
        (5, 8, 77, false),
        (2, 40, 130, true),
        (1, 512, 90, false),
    ];
    for (heads, dim, written, half) in cases {
        let shape = Shape { positions: 300, heads, dim };
        let width = heads * dim;
        let plain = Pool::new(1);
        let (one, two) =
            (case(&mut random, shape, written, half, &plain), case(&mut random, shape, written, half, &plain));
        let rows = 130;
        let q = random.normal(rows * width);
        let seen: Vec<usize> = (0..rows).map(|_| 1 + random.below(written)).collect();
        let of = |row: usize| if row % 100 < 97 { &one } else { &two };
        let sights: Vec<Sight> = (0..rows).map(|row| Sight { memory: &of(row).memory, seen: seen[row] }).collect();
        let mut first: Option<Vec<f32>> = None;
        for (simd, threads) in Simd::available().into_iter().flat_map(|s| [(s, 1), (s, 3)]) {
            let pool = Pool::with_simd(threads, simd);
            let name = || format!("{shape:?}, {written} written, half {half}, {}, seed {}", simd.name(), random.seed);
            let queries = Queries { values: &q, stride: width, scale: 0.125 };
            let mut y = vec![f32::NAN; rows * width];
            attend(queries, &sights, &mut y, &pool);
            same_bits(first.get_or_insert_with(|| y.clone()), &y, name);
            for row in [0, 64, 98, 129] {
                let mut alone = vec![f32::NAN; width];
                let queries = Queries { values: &q[row * width..], ..queries };
                attend(queries, &sights[row..row + 1], &mut alone, &pool);
                same_bits(&y[row * width..][..width], &alone, name);
                for head in 0..heads {
                    let q = &q[row * width + head * dim..][..dim];
                    let allowed = if half { 5e-3 } else { 1e-5 };
                    for (a, b) in expected(of(row), q, 0.125, seen[row], head).iter().zip(&alone[head * dim..]) {
                        assert!((a - f64::from(*b)).abs() < allowed, "row {row}: {a} and {b}, {}", name());
                    }
                }
            }
        }
    }
}

#[test]
fn a_copy_goes_on_as_the_original_would() {
    let mut random = Random::fresh();
    let shape = Shape { positions: 100, heads: 2, dim: 16 };
    let pool = Pool::new(1);
    let original = case(&mut random, shape, 70, false, &pool);
    let mut copy = case(&mut random, shape, 100, false, &pool).memory;
    copy.copy_from(&original.memory, 70);
    let q = random.normal(32);
    let queries = Queries { values: &q, stride: 32, scale: 1.0 };
    let (mut a, mut b) = (vec![0f32; 32], vec![0f32; 32]);
    attend(queries, &[Sight { memory: &original.memory, seen: 70 }], &mut a, &pool);
    attend(queries, &[Sight { memory: &copy, seen: 70 }], &mut b, &pool);
    same_bits(&a, &b, || format!("seed {}", random.seed));
}

#[test]
fn scores_are_the_products_of_queries_and_keys() {
    let mut random = Random::fresh();
    let shape = Shape { positions: 90, heads: 3, dim: 16 };
    let pool = Pool::new(1);
    let case = case(&mut random, shape, 90, false, &pool);
    let q = random.normal(5 * 48);
    let got = scores(Queries { values: &q, stride: 48, scale: 0.5 }, 5, 2, &case.memory, 75, &pool);
    assert_eq!(got.len(), 5 * 75);
    for (i, score) in got.iter().enumerate() {
        let (q, k) = (&q[i / 75 * 48 + 32..][..16], &case.k[i % 75 * 48 + 32..][..16]);
        let expected: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k) * 0.5).sum();
        assert!((expected - f64::from(*score)).abs() < 1e-5, "seed {}", random.seed);
    }
}
