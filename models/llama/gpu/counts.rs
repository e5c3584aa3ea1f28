//! What rows ask of the choice of their token, as the device reads it: settings, banned tokens, and for those with penalties a row
//! of counts that stays on the device and grows there. Refuses to know logits.

use std::collections::HashMap;

use candle_core::Result;
use kernels::cuda::params::{self, Ptr};
use kernels::cuda::rows::IN_PROMPT;
use kernels::cuda::stream::{Memory, Stream};
use kernels::op::Ask;
use kernels::sample::GREEDY_TEMPERATURE;

/// A row of counts per prediction that has penalties, of all that can be at once.
pub struct Counts<S: Stream> {
    memory: S::Memory,
    rows: Vec<Row>,
    vocabulary: usize,
    steps: u64,
}

/// The device's memory that rows of counts take.
pub fn bytes_for(rows: usize, vocabulary: usize) -> usize {
    rows * vocabulary * 4
}

/// Whose counts a row holds.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// None at first.
    whose: Option<u64>,
    /// How many tokens it will have drawn when it asks next.
    place: u64,
    /// The step that used it last.
    used: u64,
}

impl<S: Stream> Counts<S> {
    pub fn new(stream: &S, rows: usize, vocabulary: usize) -> Result<Self> {
        let row = Row { whose: None, place: 0, used: 0 };
        let memory = stream.zeros(bytes_for(rows, vocabulary))?;
        Ok(Self { memory, rows: vec![row; rows], vocabulary, steps: 0 })
    }

    pub fn ptr(&self) -> Ptr {
        self.memory.ptr()
    }

    /// The asks of a step and its banned tokens. What the device does not know yet of somebody's counts is on its way there.
    pub fn asks(&mut self, stream: &S, asks: &[Ask], whose: &[u64]) -> Result<(Vec<params::Ask>, Vec<u32>)> {
        self.steps += 1;
        let mut bans = Vec::new();
        // Most have the same ones.
        let mut known: HashMap<&[u32], usize> = HashMap::new();
        let mut told = Vec::with_capacity(asks.len());
        for (ask, &whose) in asks.iter().zip(whose) {
            let first_ban = *known.entry(ask.banned).or_insert_with(|| {
                bans.extend_from_slice(ask.banned);
                bans.len() - ask.banned.len()
            });
            told.push(params::Ask {
                seed: ask.seed,
                place: ask.place,
                top_p: ask.top_p,
                // As the CPU divides.
                by: if ask.temperature < GREEDY_TEMPERATURE { 0.0 } else { 1.0 / ask.temperature as f32 },
                presence: ask.presence_penalty,
                frequency: ask.frequency_penalty,
                repetition: ask.repetition_penalty,
                top_k: i32::try_from(ask.top_k).unwrap_or(i32::MAX),
                counts: self.counts(stream, ask, whose)?,
                first_ban: first_ban as u32,
                ban_count: ask.banned.len() as u32,
            });
        }
        Ok((told, bans))
    }

    /// The row that holds somebody's counts, filled if it was not theirs; -1 for those without penalties.
    fn counts(&mut self, stream: &S, ask: &Ask, whose: u64) -> Result<i32> {
        let Ask { presence_penalty, frequency_penalty, repetition_penalty, .. } = *ask;
        if presence_penalty == 0.0 && frequency_penalty == 0.0 && repetition_penalty == 1.0 {
            return Ok(-1);
        }
        let own = self.rows.iter().position(|row| row.whose == Some(whose));
        let least = (0..self.rows.len()).min_by_key(|&row| self.rows[row].used);
        let Some(at) = own.or(least.filter(|&row| self.rows[row].used < self.steps)) else {
            candle_core::bail!(
                "more predictions with penalties in a step than the {} there is room for",
                self.rows.len()
            );
        };
        // Behind what it was told, the device counts by itself.
        let in_step = own.is_some() && self.rows[at].place == ask.place;
        if !in_step {
            let mut counts = vec![0u32; self.vocabulary];
            for &(token, times) in ask.seen {
                if let Some(count) = counts.get_mut(token as usize) {
                    *count = times | if repetition_penalty == 1.0 { 0 } else { IN_PROMPT };
                }
            }
            let bytes: Vec<u8> = counts.iter().flat_map(|count| count.to_ne_bytes()).collect();
            stream.write(&mut self.memory, at * self.vocabulary * 4, &bytes)?;
        }
        self.rows[at] = Row { whose: Some(whose), place: ask.place + 1, used: self.steps };
        Ok(at as i32)
    }
}
