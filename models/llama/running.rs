//! One prediction inside the pipeline: what it has said, what of that was shown, and when it ends. Knows tokens and text;
//! refuses to know the net, blocks and the other predictions.

use std::time::Instant;

use kernels::op::{Ask, NotANumber};
use prediction::{Event, Id, Outcome, Output};
use serde_json::Value;

use super::input::Asked;
use super::sampler::Sampler;
use super::schedule::{Past, Turn};
use super::text::{Characters, StopCutter};
use super::tokenizer::Tokenizer;

pub struct Running {
    pub id: Id,
    prompt_tokens: usize,
    /// Tokens generated, the end token not among them.
    generated: usize,
    max_tokens: usize,
    /// `max_tokens` as asked, where less fits.
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

impl Running {
    /// `room`: how many tokens fit behind `prompt`, at least one.
    pub fn new(id: Id, asked: Asked, prompt: &[u32], room: usize, ends: &[u32], tokenizer: &Tokenizer) -> Self {
        // A stop string that is a special token never shows as text: the token itself ends it.
        let (tokens, texts): (Vec<_>, Vec<_>) = asked
            .stops
            .into_iter()
            .map(|stop| (tokenizer.special(&stop), stop))
            .partition(|(token, _)| token.is_some());
        let stops = tokens.into_iter().filter_map(|(token, _)| token);
        Self {
            id,
            prompt_tokens: prompt.len(),
            generated: 0,
            max_tokens: asked.max_tokens.min(room),
            clamped_from: Some(asked.max_tokens).filter(|&asked| asked > room),
            seed: asked.sampling.seed,
            sampler: Sampler::new(asked.sampling, prompt),
            ends: ends.iter().copied().chain(stops).collect(),
            characters: Characters::default(),
            stops: StopCutter::new(texts.into_iter().map(|(_, text)| text)),
            log_performance: asked.log_performance,
            shown: false,
            started: None,
            first_token: None,
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
            let (prompt, room) = (self.prompt_tokens, self.max_tokens);
            emit(
                &self.id,
                Event::Log(format!("max_tokens is {asked}; behind {prompt} prompt tokens {room} fit the context\n")),
            );
        }
    }

    /// What is asked of its next logits.
    pub fn ask(&self) -> Ask<'_> {
        self.sampler.ask(&self.ends, 0)
    }

    /// What is asked of those behind the token that is being chosen.
    pub fn ask_ahead(&self) -> Ask<'_> {
        self.sampler.ask(&self.ends, 1)
    }

    /// Whether the token that is being chosen is not the last for sure.
    pub fn goes_on(&self) -> bool {
        self.generated + 1 < self.max_tokens
    }

    /// Takes the token that was chosen, shows what can be shown of it. Where it has ended, the last event was emitted.
    pub fn take(
        &mut self,
        chosen: Result<u32, NotANumber>,
        past: Past,
        tokenizer: &Tokenizer,
        emit: &mut dyn FnMut(&Id, Event),
    ) -> Turn {
        let Ok(token) = chosen else {
            let error = format!("The model computed no number for token {} (NaN or infinity)", self.generated + 1);
            emit(&self.id, Event::Ended(Outcome::Failed { error }));
            return Turn::Broken;
        };
        self.sampler.took(token);
        self.first_token.get_or_insert_with(Instant::now);
        if self.ends.contains(&token) {
            self.finish(past, emit);
            return Turn::Ended;
        }
        let mut bytes = Vec::new();
        tokenizer.spell(token, self.generated == 0, &mut bytes);
        self.generated += 1;
        let characters = self.characters.push(&bytes);
        let text = self.stops.push(&characters);
        self.show(text, emit);
        if self.stops.stopped() || self.generated >= self.max_tokens {
            self.finish(past, emit);
            return Turn::Ended;
        }
        Turn::Said(token)
    }

    fn show(&mut self, text: String, emit: &mut dyn FnMut(&Id, Event)) {
        if !text.is_empty() {
            self.shown = true;
            emit(&self.id, Event::Output(Output::text(text)));
        }
    }

    fn finish(&mut self, past: Past, emit: &mut dyn FnMut(&Id, Event)) {
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
            let (read, said, Past { found, preempted }) = (self.prompt_tokens, self.generated, past);
            emit(
                &self.id,
                Event::Log(format!(
                    "{read} tokens read, {said} generated in {whole:.3} s; the first after {first:.3} s; {rate:.1} \
                     tokens/s; {found} found in the cache; stopped {preempted} times for others\n"
                )),
            );
        }
        for (name, value) in [
            ("input_token_count", Value::from(self.prompt_tokens)),
            ("output_token_count", Value::from(self.generated)),
            ("tokens_per_second", Value::from(rate)),
            ("time_to_first_token", Value::from(first)),
        ] {
            emit(&self.id, Event::Metric { name: name.into(), value });
        }
        emit(&self.id, Event::Ended(Outcome::Succeeded));
    }
}
