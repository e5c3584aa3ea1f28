//! What the host tells each step, and the tokens that come back: one copy up, one copy down, two of each on the host, so that a step
//! can be told while one runs. Refuses to know which work a step is made of.
//!
//! Floor: (bytes of the inputs) / 25 GB/s beside the launch: 0.1 us for one row of 8k context, 6 us for 256.

use candle_core::Result;

use super::inputs::{Inputs, Layout};
use super::params::Ptr;
use super::stream::{Memory, Stream};

pub struct Exchange<S: Stream> {
    inputs: S::Memory,
    chosen: S::Memory,
    up: [S::Staged; 2],
    down: [S::Staged; 2],
    next: usize,
}

/// The device's memory that an exchange of this size takes.
pub fn bytes_for(bytes: usize, choices: usize) -> usize {
    bytes + choices * 4
}

/// A step that was sent off.
#[derive(Debug)]
#[must_use = "its tokens are there once"]
pub struct Sent {
    slot: usize,
    choices: usize,
}

impl<S: Stream> Exchange<S> {
    /// Room for steps of at most `bytes` of inputs that choose at most `choices` tokens.
    pub fn new(stream: &S, bytes: usize, choices: usize) -> Result<Self> {
        let staged = |bytes| Ok::<_, candle_core::Error>([stream.staged(bytes)?, stream.staged(bytes)?]);
        let (inputs, chosen) = (stream.zeros(bytes)?, stream.zeros(choices * 4)?);
        Ok(Self { inputs, chosen, up: staged(bytes)?, down: staged(choices * 4)?, next: 0 })
    }

    /// Where a step's inputs are, for `Layout`'s offsets.
    pub fn inputs(&self) -> Ptr {
        self.inputs.ptr()
    }

    /// u32: where a step leaves its tokens, and the next one finds them.
    pub fn chosen(&self) -> Ptr {
        self.chosen.ptr()
    }

    /// Bytes of inputs that there is room for.
    pub fn room(&self) -> usize {
        self.inputs.bytes()
    }

    /// Writes inputs with no row in use.
    pub fn clear(&mut self, stream: &S, layout: &Layout) -> Result<()> {
        let mut words = vec![0u64; layout.bytes() / 8];
        layout.inputs(&mut words).clear();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        stream.write(&mut self.inputs, 0, &bytes)
    }

    /// Sends off a step: `fill` writes its inputs, which start as "no row in use", `run` puts its work on the stream. Waits for
    /// nothing but the copy of the inputs of the step before the last. At most two steps may be under way: take the tokens of
    /// the one before the last first.
    pub fn send(
        &mut self,
        stream: &S,
        layout: &Layout,
        fill: impl FnOnce(&mut Inputs),
        run: impl FnOnce(&S) -> Result<()>,
    ) -> Result<Sent> {
        let (slot, bytes, choices) = (self.next, layout.bytes(), layout.choices);
        if bytes > self.inputs.bytes() || choices * 4 > self.chosen.bytes() {
            let (room, most) = (self.room(), self.chosen.bytes() / 4);
            candle_core::bail!("inputs of {bytes} bytes and {choices} choices; there is room for {room} and {most}");
        }
        self.next ^= 1;
        let mut inputs = layout.inputs(stream.ready(&mut self.up[slot])?);
        inputs.clear();
        fill(&mut inputs);
        stream.send(&mut self.up[slot], bytes, &mut self.inputs, 0)?;
        run(stream)?;
        stream.fetch(&self.chosen, choices * 4, &mut self.down[slot])?;
        Ok(Sent { slot, choices })
    }

    /// Waits for a step and gives its tokens; `u32::MAX` where the logits were broken.
    pub fn tokens(&mut self, stream: &S, sent: Sent) -> Result<Vec<u32>> {
        let words = stream.ready(&mut self.down[sent.slot])?;
        Ok(words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).take(sent.choices).collect())
    }
}
