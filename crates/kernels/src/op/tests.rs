//! The fused ops against the same ops composed of candle's own.

use std::sync::Arc;

use super::*;
use crate::Format;
use crate::attention::Shape;
use crate::testing::Random;

fn tensor(random: &mut Random, dims: &[usize]) -> Tensor {
    Tensor::from_vec(random.normal(dims.iter().product()), dims, &Device::Cpu).unwrap()
}

fn close(fused: &Tensor, composed: &Tensor, allowed: f32, case: &str) {
    assert_eq!(fused.dims(), composed.dims(), "{case}");
    let worst = (fused - composed).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let worst = worst.to_scalar::<f32>().unwrap();
    assert!(worst <= allowed, "{case}: off by {worst}, {allowed} allowed");
}

#[test]
fn norm_rope_and_swiglu_equal_their_composition_on_strided_views() {
    let (mut random, pool) = (Random::fresh(), Pool::new(2));
    let wide = tensor(&mut random, &[13, 20, 64]);
    let case = format!("seed {}", random.seed);
    let view = wide.narrow(1, 3, 9).unwrap();
    let table = RopeTable::new(&(0..32).map(|i| 0.7f32.powi(i)).collect::<Vec<_>>(), 100);
    let positions: Vec<u32> = (0..13).map(|_| random.below(100) as u32).collect();
    let fused = rope(&view, &table, &positions, &pool).unwrap();
    close(&fused, &composed::rope(&view, &table, &positions).unwrap(), 1e-5, &case);

    let flat = wide.reshape((13, 1280)).unwrap();
    let part = flat.narrow(1, 100, 576).unwrap();
    let weight = tensor(&mut random, &[576]);
    let fused = rms_norm(&part, &weight, 1e-5, &pool).unwrap();
    close(&fused, &composed::rms_norm(&part.contiguous().unwrap(), &weight, 1e-5).unwrap(), 1e-5, &case);
    close(&swiglu(&flat, &pool).unwrap(), &composed::swiglu(&flat).unwrap(), 1e-5, &case);
    close(&swiglu(&part, &pool).unwrap(), &composed::swiglu(&part).unwrap(), 1e-5, &case);
}

#[test]
fn a_linear_equals_its_composition_and_finds_its_rows() {
    let (mut random, pool) = (Random::fresh(), Arc::new(Pool::new(2)));
    let case = format!("seed {}", random.seed);
    let pieces: Vec<Vec<u8>> =
        [30, 50].map(|out| random.normal(out * 64).iter().flat_map(|v| v.to_le_bytes()).collect()).to_vec();
    let parts: Vec<Part> =
        [30, 50].iter().zip(&pieces).map(|(out, bytes)| Part { format: Format::F32, out: *out, bytes }).collect();
    let fused = Linear::stack(&parts, 64, &Device::Cpu, &pool).unwrap();
    let composed = Linear::composed(&parts, 64, &Device::Cpu).unwrap();
    assert_eq!((fused.out_features(), fused.in_features(), fused.bytes()), (80, 64, 128 * 64 * 4));
    let (x, residual) = (tensor(&mut random, &[7, 64]), tensor(&mut random, &[7, 80]));
    close(&fused.forward(&x).unwrap(), &composed.forward(&x).unwrap(), 1e-4, &case);
    close(&fused.forward_add(&x, &residual).unwrap(), &composed.forward_add(&x, &residual).unwrap(), 1e-4, &case);
    let ids = [0, 29, 30, 79, 30];
    close(&fused.rows(&ids).unwrap(), &composed.rows(&ids).unwrap(), 0.0, &case);
    assert!(fused.rows(&[80]).is_err());
    assert!(fused.forward(&tensor(&mut random, &[7, 63])).is_err());
    assert!(fused.forward_add(&x, &tensor(&mut random, &[7, 64])).is_err());
}

#[test]
fn attention_equals_its_composition_on_views_and_several_sequences() {
    let (mut random, pool) = (Random::fresh(), Arc::new(Pool::new(2)));
    let case = format!("seed {}", random.seed);
    let shape = Shape { blocks: 12, kv_heads: 3, head_dim: 64 };
    let mut fused = KvCache::new(12, 3, 64, DType::F32, &Device::Cpu, &pool).unwrap();
    let mut composed = KvCache::composed(shape, DType::F32, &Device::Cpu).unwrap();
    // Three sequences of 1, 6 and 2 blocks, in no order; the first block of the third is the second's.
    let (starts, blocks) = ([0, 1, 7, 9], [11, 4, 9, 0, 1, 7, 3, 4, 8]);
    for (sequences, positions) in [
        (vec![1; 300], (0..300).collect::<Vec<u32>>()),
        ([vec![2; 20], vec![0; 30]].concat(), (64..84).chain(0..30).collect()),
        (vec![0, 1, 2], vec![30, 300, 84]),
        (vec![2, 2, 0], vec![85, 86, 31]),
        (vec![1], vec![301]),
    ] {
        let places = Places::new(&sequences, &positions, &starts, &blocks).unwrap();
        let qkv = tensor(&mut random, &[sequences.len(), 15, 64]);
        let (q, k, v) = (qkv.narrow(1, 0, 9).unwrap(), qkv.narrow(1, 9, 3).unwrap(), qkv.narrow(1, 12, 3).unwrap());
        fused.write(&k, &v, &places).unwrap();
        composed.write(&k, &v, &places).unwrap();
        let a = attention(&q, &fused, &places, 0.125).unwrap();
        let b = attention(&q, &composed, &places, 0.125).unwrap();
        close(&a, &b, 2e-5, &case);
    }
}

#[test]
fn tokens_are_chosen_where_the_logits_lie() {
    let pool = Pool::new(2);
    let wide =
        Tensor::new(&[[0f32, 9.0, 1.0, 2.0], [9.0, 1.0, 5.0, f32::NAN], [9.0, 4.0, 0.0, 3.0]], &Device::Cpu).unwrap();
    let asks = [Ask::greedy(), Ask::greedy(), Ask { banned: &[0], ..Ask::greedy() }];
    assert_eq!(sample(&wide, &asks, &pool).unwrap(), [Ok(1), Err(NotANumber), Ok(1)]);
    let part = wide.narrow(1, 1, 2).unwrap();
    assert_eq!(sample(&part, &asks, &pool).unwrap(), [Ok(0), Ok(1), Ok(1)], "a view is sampled as it is seen");
    assert!(sample(&wide, &asks[..2], &pool).is_err());
}

#[test]
fn what_is_out_of_bounds_is_an_error_that_names_the_limit() {
    let (mut random, pool) = (Random::fresh(), Arc::new(Pool::new(1)));
    let mut cache = KvCache::new(2, 1, 16, DType::F16, &Device::Cpu, &pool).unwrap();
    let row = tensor(&mut random, &[1, 1, 16]);
    let places = Places::new(&[0], &[0], &[0, 1], &[2]).unwrap();
    let error = |result: Result<()>| result.unwrap_err().to_string();
    assert!(error(cache.write(&row, &row, &places)).contains("block 2 of a cache of 2"));
    assert!(error(attention(&row, &cache, &places, 1.0).map(drop)).contains("block 2 of a cache of 2"));
    let table = RopeTable::new(&[1.0; 8], 10);
    assert!(error(rope(&row, &table, &[10], &pool).map(drop)).contains("outside the context of 10 tokens"));
    assert!(KvCache::new(1, 1, 1, DType::U8, &Device::Cpu, &pool).is_err());
}
