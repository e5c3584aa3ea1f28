//! Embedding, norm, placing, SiLU and unpacking.

use super::*;
use crate::cuda::params::Ptr;
use crate::cuda::rows;

const NOBODY: u32 = u32::MAX;

pub fn a_row_says_its_token_or_what_an_earlier_row_chose(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        let (vocabulary, k) = (20, [32, 160, 576][case.random.below(3)]);
        let sample = sample(case.random, case.packing, case.element, vocabulary, k);
        let table = Placed::new(case, &sample.packed);
        let (tokens, from) = (case.of(&[3u32, 19, 7, 99]), case.of(&[NOBODY, NOBODY, 1, NOBODY]));
        let (chosen, stream) = (case.of(&[11u32, 13]), case.poisoned(4 * k * 4));
        let feed = (from.ptr(), chosen.ptr());
        case.run(&rows::embed(case.element, &table.matrix(), 4, tokens.ptr(), feed, stream.ptr()));
        let got = stream.read::<f32>();
        // The last one is outside the table.
        for (row, token) in [3, 19, 13, 0].into_iter().enumerate() {
            for i in 0..k {
                let (got, expected) = (f64::from(got[row * k + i]), sample.values[token * k + i]);
                assert!(
                    (got - expected).abs() <= 1e-6 * expected.abs() + 1e-7,
                    "{got}, not {expected}: {}",
                    case.name(4, 0, k)
                );
            }
        }
    });
}

pub fn an_unpacked_weight_is_the_weight_rounded_once(bench: &mut Bench) {
    each(bench, &Packing::ALL, |case| {
        let (out, k) = (9, 608);
        let sample = sample(case.random, case.packing, case.element, out, k);
        let placed = Placed::new(case, &sample.packed);
        let plain = case.poisoned(6 * k * 2);
        case.run(&rows::unpack(case.element, &placed.matrix(), 3, 6, plain.ptr()));
        for (got, expected) in case.element.read(&plain).into_iter().zip(&sample.values[3 * k..]) {
            let allowed = case.element.epsilon() * expected.abs() + 1e-7;
            assert!((got - expected).abs() <= allowed, "{got}, not {expected}: {}", case.name(6, out, k));
        }
    });
}

pub fn norm_equals_f64_and_takes_the_rows_it_is_told(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        for k in [32, 96, 4096] {
            let (x, gamma) = (case.random.normal(5 * k), case.random.normal(k));
            let (stream, weight, from) = (case.of(&x), case.of(&gamma), case.of(&[4u32, 0]));
            let expected = normed(&x, &gamma, 1e-5);
            for list in [Ptr::NONE, from.ptr()] {
                let y = case.poisoned(2 * k * 2);
                case.run(&rows::norm(case.element, stream.ptr(), weight.ptr(), 1e-5, list, (2, k), y.ptr()));
                for (i, got) in case.element.read(&y).into_iter().enumerate() {
                    let row = if list == Ptr::NONE { i / k } else { [4, 0][i / k] };
                    let expected = expected[row * k + i % k];
                    let allowed = 1.01 * case.element.epsilon() * expected.abs() + 1e-6;
                    assert!((got - expected).abs() <= allowed, "{got}, not {expected}: {}", case.name(2, 0, k));
                }
            }
        }
    });
}

pub fn swiglu_equals_f64_also_far_out(bench: &mut Bench) {
    each(bench, &[Packing::Plain], |case| {
        let (rows, ff) = (3, 1030);
        let mut x: Vec<f32> = case.random.normal(rows * 2 * ff).iter().map(|v| v * 4.0).collect();
        (x[0], x[1], x[2]) = (-1e4, 1e3, -100.0);
        let (from, to) = (case.reals(&x), case.poisoned(rows * ff * 2));
        case.run(&rows::swiglu(case.element, from.ptr(), rows, ff, to.ptr()));
        for (i, got) in case.element.read(&to).into_iter().enumerate() {
            let at = i / ff * 2 * ff + i % ff;
            let (gate, up) = (case.element.round(x[at]), case.element.round(x[at + ff]));
            let expected = gate / (1.0 + (-gate).exp()) * up;
            let allowed = 1.01 * case.element.epsilon() * expected.abs() + 1e-6;
            assert!((got - expected).abs() <= allowed, "{got}, not {expected}, seed {}", case.random.seed);
        }
    });
}
