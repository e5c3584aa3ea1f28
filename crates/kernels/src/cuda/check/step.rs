//! Whole decode steps of a small Llama, in the order of `decoder`, against the same net in f64. Tokens of one step feed the next on
//! the device, while the rows change places.

use super::*;
use crate::cuda::attention;
use crate::cuda::decoder::{Decoder, Layer, Plan, Room, Told, room_bytes};
use crate::cuda::inputs::Layout;
use crate::cuda::params::Ask;
use crate::cuda::rows::{self, Choice};
use crate::cuda::stream::Work;

const HIDDEN: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
const FF: usize = 160;
const VOCABULARY: usize = 200;
const LAYERS: usize = 2;
const CONTEXT: usize = 128;
const EPS: f32 = 1e-5;
const STEPS: usize = 3;
/// Of a room's parts.
const LOGITS: usize = 5;
const DONE: usize = 7;

/// Shapes of qkv, o, gate over up, down.
const SHAPES: [(usize, usize); 4] =
    [((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), (HIDDEN, HEADS * DIM), (2 * FF, HIDDEN), (HIDDEN, FF)];

/// The net on both sides.
struct Net {
    placed: Vec<Placed>,
    values: Vec<Vec<f64>>,
    gammas: Vec<Vec<f32>>,
    gamma_buffers: Vec<Buffer>,
    rope: Vec<f32>,
}

impl Net {
    /// Embedding, layer by layer its four, head.
    fn new(case: &mut Case) -> Net {
        let shapes: Vec<(usize, usize)> =
            [vec![(VOCABULARY, HIDDEN)], SHAPES.repeat(LAYERS), vec![(VOCABULARY, HIDDEN)]].concat();
        let samples: Vec<Sample> =
            shapes.iter().map(|&(out, k)| sample(case.random, case.packing, case.element, out, k)).collect();
        // Norms so small that the softmax is not a step, which would make much of every rounding.
        let gammas: Vec<Vec<f32>> =
            (0..2 * LAYERS + 1).map(|_| case.random.normal(HIDDEN).iter().map(|v| v * 0.03).collect()).collect();
        let angle = |p: usize, i: usize| p as f64 * 10_000f64.powf(-2.0 * i as f64 / DIM as f64);
        let row = |p: usize, of: fn(f64) -> f64| (0..DIM / 2).map(move |i| of(angle(p, i)) as f32);
        Net {
            placed: samples.iter().map(|s| Placed::new(case, &s.packed)).collect(),
            values: samples.into_iter().map(|s| s.values).collect(),
            gamma_buffers: gammas.iter().map(|g| case.of(g)).collect(),
            gammas,
            rope: (0..CONTEXT).flat_map(|p| row(p, f64::cos).chain(row(p, f64::sin))).collect(),
        }
    }

    fn product(&self, weight: usize, x: &[f64]) -> Vec<f64> {
        self.values[weight].chunks(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }

    fn normed(&self, norm: usize, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
        x.iter().zip(&self.gammas[norm]).map(|(x, g)| x * factor * f64::from(*g)).collect()
    }

    /// The logits of the token that a sequence says next; `past` is its keys and values, `[layer][position]`.
    fn logits(&self, token: usize, past: &mut [Vec<(Vec<f64>, Vec<f64>)>]) -> Vec<f64> {
        let mut x = self.values[0][token * HIDDEN..][..HIDDEN].to_vec();
        for (layer, past) in past.iter_mut().enumerate() {
            let weight = |i: usize| 1 + 4 * layer + i;
            let mut qkv = self.product(weight(0), &self.normed(2 * layer, &x));
            let position = past.len();
            for head in qkv.chunks_mut(DIM).take(HEADS + KV_HEADS) {
                let angles = &self.rope[position * DIM..][..DIM];
                for i in 0..DIM / 2 {
                    let (cos, sin) = (f64::from(angles[i]), f64::from(angles[DIM / 2 + i]));
                    let (a, b) = (head[i], head[i + DIM / 2]);
                    (head[i], head[i + DIM / 2]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
            let (queries, rest) = qkv.split_at(HEADS * DIM);
            let (keys, values) = rest.split_at(KV_HEADS * DIM);
            past.push((keys.to_vec(), values.to_vec()));
            let seen: Vec<f64> = queries
                .chunks(DIM)
                .enumerate()
                .flat_map(|(head, query)| {
                    let at = head / (HEADS / KV_HEADS) * DIM;
                    let score = |k: &Vec<f64>| {
                        query.iter().zip(&k[at..]).map(|(q, k)| q * k).sum::<f64>() / (DIM as f64).sqrt()
                    };
                    let scores: Vec<f64> = past.iter().map(|(k, _)| score(k)).collect();
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let sum = |d: usize| past.iter().zip(&weights).map(|((_, v), w)| w / total * v[at + d]).sum();
                    (0..DIM).map(sum).collect::<Vec<f64>>()
                })
                .collect();
            let o = self.product(weight(1), &seen);
            x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
            let gate_up = self.product(weight(2), &self.normed(2 * layer + 1, &x));
            let hidden: Vec<f64> =
                (0..FF).map(|i| gate_up[i] / (1.0 + (-gate_up[i]).exp()) * gate_up[FF + i]).collect();
            let down = self.product(weight(3), &hidden);
            x.iter_mut().zip(down).for_each(|(x, d)| *x += d);
        }
        self.product(1 + 4 * LAYERS, &self.normed(2 * LAYERS, &x))
    }
}

/// Some of the rows of a bucket, in an order that changes with the step.
fn order(step: usize, sequences: usize) -> Vec<usize> {
    (0..sequences).map(|row| (row + step) % sequences).collect()
}

pub fn decode_steps_of_a_small_llama_equal_f64(bench: &mut Bench) {
    each(bench, &[Packing::Plain, Packing::Q8_0, Packing::Q4_1], |case| {
        for (bucket, sequences) in [(4, 3), (10, 10)] {
            steps(case, bucket, sequences);
        }
    });
}

fn steps(case: &mut Case, bucket: usize, sequences: usize) {
    let net = Net::new(case);
    let (gpu, element) = (case.machine.gpu(), case.element);
    let table_blocks = CONTEXT / attention::BLOCK;
    let layout = Layout { rows: bucket, choices: bucket, table_blocks, picks: 0, tiles: 0, bans: 0 };
    let plane = sequences * table_blocks * KV_HEADS * attention::BLOCK * DIM * 2;
    let caches: Vec<(Buffer, Buffer)> = (0..LAYERS).map(|_| (case.poisoned(plane), case.poisoned(plane))).collect();
    let (rope, chosen) = (case.of(&net.rope), case.of(&vec![0u32; bucket]));
    let weight = |i: usize| net.placed[i].matrix();
    let layer = |layer: usize| {
        let [qkv, o, gate_up, down] = [1, 2, 3, 4].map(|i| weight(4 * layer + i));
        let gamma = |i: usize| net.gamma_buffers[2 * layer + i].ptr();
        let (keys, values) = (caches[layer].0.ptr(), caches[layer].1.ptr());
        Layer { attn_gamma: gamma(0), qkv, o, ffn_gamma: gamma(1), gate_up, down, keys, values }
    };
    let decoder = Decoder {
        element,
        heads: HEADS,
        kv_heads: KV_HEADS,
        dim: DIM,
        eps: EPS,
        embedding: weight(0),
        layers: (0..LAYERS).map(layer).collect(),
        gamma: net.gamma_buffers[2 * LAYERS].ptr(),
        head: weight(1 + 4 * LAYERS),
        rope: rope.ptr(),
    };
    let sizes = room_bytes(&decoder, (bucket, bucket, bucket), false);
    // Counters start at zero, everything else as it comes.
    let rooms: Vec<Buffer> = sizes
        .iter()
        .enumerate()
        .map(|(i, &bytes)| if i == DONE { case.of(&vec![0u8; bytes]) } else { case.poisoned(bytes) })
        .collect();
    let room = Room::of(std::array::from_fn(|i| rooms[i].ptr()));
    let first_tokens: Vec<u32> = (0..sequences).map(|_| case.random.below(VOCABULARY) as u32).collect();
    let mut said = first_tokens.clone();
    let mut past = vec![vec![Vec::new(); LAYERS]; sequences];

    for step in 0..STEPS {
        let places = order(step, sequences);
        let mut words = vec![0u64; layout.bytes() / 8];
        let mut inputs = layout.inputs(&mut words);
        inputs.clear();
        for (row, &sequence) in places.iter().enumerate() {
            inputs.asks[row] = Ask::GREEDY;
            inputs.positions[row] = step as u32;
            for block in 0..table_blocks {
                inputs.tables[row * table_blocks + block] = (sequence * table_blocks + block) as u32;
            }
            if step == 0 {
                inputs.tokens[row] = first_tokens[sequence];
            } else {
                let before = order(step - 1, sequences).iter().position(|s| *s == sequence);
                inputs.from[row] = before.expect("in every step") as u32;
            }
        }
        let sent = case.of(&words);
        let at = sent.ptr();
        let told = Told {
            tokens: layout.tokens(at),
            from: layout.from(at),
            chosen: chosen.ptr(),
            positions: layout.positions(at),
            tables: layout.tables(at),
            table_blocks,
        };
        for work in decoder.forward(&gpu, &room, &told, &Plan::decode(bucket)) {
            let Work::Call(call) = work else { unreachable!("a decode step is our own calls") };
            case.run(&call);
        }
        let logits = &rooms[LOGITS];
        let got = logits.read::<f32>();
        let choice = Choice {
            logits: logits.ptr(),
            asks: layout.asks(at),
            counts: Ptr::NONE,
            bans: layout.bans(at),
            chosen: chosen.ptr(),
        };
        case.run(&rows::choose(&choice, bucket, VOCABULARY));
        let tokens = chosen.read::<u32>();
        for (row, &sequence) in places.iter().enumerate() {
            let got = &got[row * VOCABULARY..][..VOCABULARY];
            let expected = net.logits(said[sequence] as usize, &mut past[sequence]);
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let off = norm(&mut got.iter().zip(&expected).map(|(g, e)| f64::from(*g) - e));
            let size = norm(&mut expected.iter().copied());
            // Every value is rounded to the element type some ten times on its way.
            let allowed = 10.0 * element.epsilon() * size;
            assert!(off <= allowed, "step {step}: off by {off} of {size}, {}", case.name(bucket, 0, 0));
            let greatest = got.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(got[tokens[row] as usize], greatest, "{}", case.name(bucket, 0, 0));
            said[sequence] = tokens[row];
        }
    }
}
