//! One prediction inside the pipeline: what it still has to read, what it has said, and when it ends. Knows tokens and
//! text; refuses to know the net and the other predictions.

use std::time::Instant;

use prediction::{Event, Id, Outcome, Output};
use serde_json::Value;

use super::input::Asked;
use super::sampler::{NotANumber, Sampler};
use super::text::{Characters, StopCutter};
use super::tokenizer::Tokenizer;

pub struct Running {
    pub id: Id,
    pub slot: usize,
    prompt: Vec<u32>,
    /// Prompt tokens whose keys and values are in the cache.
    read: usize,
    /// Tokens generated, the end token among them; the last one has not been read yet.
    generated: usize,
    last: u32,
    max_tokens: usize,
    /// `max_tokens` as asked, where the context holds less.
    clamped_from: Option<usize>,
    sampler: Sampler,
    seed: u64,
    ends: Vec<u32>,
    characters: Characters,
    stops: StopCutter,
    log_performance: bool,
    /// Something was shown.
    shown: bool,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// What one forward is to do for a prediction.
pub struct Next<'a> {
    pub tokens: &'a [u32],
    pub position: usize,
    /// Its logits are wanted: it reads its last prompt token, or the one it said last.
    pub speaks: bool,
}

impl Running {
    /// `prompt` has at least one token and leaves room for one more in `context`.
    pub fn new(
        id: Id,
        slot: usize,
        asked: Asked,
        prompt: Vec<u32>,
        ends: &[u32],
        tokenizer: &Tokenizer,
        context: usize,
    ) -> Self {
        let room = context - prompt.len();
        // A stop string that is a special token never shows as text: the token itself ends it.
        let (tokens, texts): (Vec<_>, Vec<_>) = asked
            .stops
            .into_iter()
            .map(|stop| (tokenizer.special(&stop), stop))
            .partition(|(token, _)| token.is_some());
        let stops = tokens.into_iter().filter_map(|(token, _)| token);
        Self {
            id,
            slot,
            read: 0,
            generated: 0,
            last: 0,
            max_tokens: asked.max_tokens.min(room),
            clamped_from: Some(asked.max_tokens).filter(|&asked| asked > room),
            seed: asked.sampling.seed,
            sampler: Sampler::new(asked.sampling, &prompt),
            ends: ends.iter().copied().chain(stops).collect(),
            characters: Characters::default(),
            stops: StopCutter::new(texts.into_iter().map(|(_, text)| text)),
            log_performance: asked.log_performance,
            shown: false,
            started: None,
            first_token: None,
            prompt,
        }
    }

    /// The first step it takes part in.
    pub fn start(&mut self, emit: &mut dyn FnMut(&Id, Event)) {
        if self.started.is_some() {
            return;
        }
        self.started = Some(Instant::now());
        emit(&self.id, Event::Started);
        emit(&self.id, Event::Log(format!("Using seed: {}\n", self.seed)));
        if let Some(asked) = self.clamped_from {
            let (prompt, room) = (self.prompt.len(), self.max_tokens);
            emit(
                &self.id,
                Event::Log(format!("max_tokens is {asked}; behind {prompt} prompt tokens {room} fit the context\n")),
            );
        }
    }

    /// Prompt tokens still to be read.
    pub fn unread(&self) -> usize {
        self.prompt.len() - self.read
    }

    /// The next tokens to go through the net, at most `budget` of the prompt. Counts them as read.
    pub fn next(&mut self, budget: usize) -> Next<'_> {
        if self.unread() == 0 {
            let position = self.prompt.len() + self.generated - 1;
            return Next { tokens: std::slice::from_ref(&self.last), position, speaks: true };
        }
        let position = self.read;
        self.read += budget.min(self.unread());
        Next { tokens: &self.prompt[position..self.read], position, speaks: self.read == self.prompt.len() }
    }

    /// Chooses a token, shows what can be shown of it. True when it has ended, with the last event emitted.
    pub fn speak(&mut self, logits: &mut [f32], tokenizer: &Tokenizer, emit: &mut dyn FnMut(&Id, Event)) -> bool {
        let token = match self.sampler.next(logits, &self.ends) {
            Ok(token) => token,
            Err(NotANumber) => {
                let error = format!("The model computed no number for token {} (NaN or infinity)", self.generated + 1);
                emit(&self.id, Event::Ended(Outcome::Failed { error }));
                return true;
            }
        };
        self.first_token.get_or_insert_with(Instant::now);
        if self.ends.contains(&token) {
            self.finish(emit);
            return true;
        }
        let mut bytes = Vec::new();
        tokenizer.spell(token, self.generated == 0, &mut bytes);
        self.generated += 1;
        self.last = token;
        let characters = self.characters.push(&bytes);
        let text = self.stops.push(&characters);
        self.show(text, emit);
        let done = self.stops.stopped() || self.generated >= self.max_tokens;
        if done {
            self.finish(emit);
        }
        done
    }

    fn show(&mut self, text: String, emit: &mut dyn FnMut(&Id, Event)) {
        if !text.is_empty() {
            self.shown = true;
            emit(&self.id, Event::Output(Output::text(text)));
        }
    }

    fn finish(&mut self, emit: &mut dyn FnMut(&Id, Event)) {
        let tail = self.characters.finish();
        let mut text = self.stops.push(&tail);
        text.push_str(&self.stops.finish());
        self.show(text, emit);
        if !self.shown {
            emit(&self.id, Event::Output(Output::Whole(Value::Array(Vec::new()))));
        }
        let seconds = |to: Option<Instant>| self.started.zip(to).map_or(0.0, |(from, to)| (to - from).as_secs_f64());
        let (first, whole) = (seconds(self.first_token), seconds(Some(Instant::now())));
        let rate = if whole > 0.0 { self.generated as f64 / whole } else { 0.0 };
        if self.log_performance {
            let (read, said) = (self.prompt.len(), self.generated);
            emit(
                &self.id,
                Event::Log(format!(
                    "{read} tokens read, {said} generated in {whole:.3} s; the first after {first:.3} s; {rate:.1} tokens/s\n"
                )),
            );
        }
        for (name, value) in [
            ("input_token_count", Value::from(self.prompt.len())),
            ("output_token_count", Value::from(self.generated)),
            ("tokens_per_second", Value::from(rate)),
            ("time_to_first_token", Value::from(first)),
        ] {
            emit(&self.id, Event::Metric { name: name.into(), value });
        }
        emit(&self.id, Event::Ended(Outcome::Succeeded));
    }
}
