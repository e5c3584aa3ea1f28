//! A file of any kind to 16 kHz mono, piece by piece: memory does not grow with the file. Knows containers, codecs and
//! rates; refuses to know speech.

use std::fmt::Display;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use prediction::PredictError;
use rubato::audioadapter_buffers::direct::SequentialSliceOfVecs;
use rubato::{Fft, FixedSync, Indexing, Resampler};
use schema::Uri;
use symphonia::core::codecs::audio::well_known::*;
use symphonia::core::codecs::audio::{AudioCodecId, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

/// Samples of one second.
pub const RATE: usize = 16_000;
/// Frames the resampler takes at once.
const RESAMPLED_FRAMES: usize = 1024;
/// No recording has more; a header that claims it is broken.
const MAX_RATE: u32 = 768_000;
/// Of a URI that an error shows.
const SHOWN_CHARACTERS: usize = 80;
const READABLE: &str = "wav, aiff, caf, mp3, flac, ogg (Vorbis, FLAC), m4a and mp4 (AAC-LC, ALAC), webm and mkv (Vorbis, FLAC, \
                        AAC-LC, MP3, PCM)";

/// An open recording.
pub struct Audio {
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    /// Interleaved, as decoded.
    interleaved: Vec<f32>,
    /// Made when the first packet says the rate; none where it is 16 kHz already.
    resampler: Option<Resampling>,
    rate: Option<u32>,
    /// What was wrong on the way: packets that could not be decoded, and why the end came early.
    broken_packets: usize,
    cut: Option<String>,
    ended: bool,
}

/// The file that an input names: those above have fetched it.
pub fn file(uri: &Uri) -> Result<PathBuf, PredictError> {
    let shown = || uri.0.chars().take(SHOWN_CHARACTERS).collect::<String>();
    uri.path().ok_or_else(|| refuse(format!("{:?} was not fetched; a file of this machine is read", shown())))
}

fn refuse(why: impl Display) -> PredictError {
    PredictError::FixInput(format!("audio: {why}"))
}

impl Audio {
    pub fn open(path: &Path) -> Result<Self, PredictError> {
        let unread = |error| refuse(format!("the file cannot be read: {error}"));
        let file = File::open(path).map_err(unread)?;
        if file.metadata().map_err(unread)?.len() == 0 {
            return Err(refuse("the file is empty (0 bytes)"));
        }
        let stream = MediaSourceStream::new(Box::new(file), Default::default());
        let (hint, options, about) = (Hint::new(), FormatOptions::default(), MetadataOptions::default());
        let format = symphonia::default::get_probe().probe(&hint, stream, options, about).map_err(|error| {
            refuse(format!("the file is not audio of a kind that is read ({error}); readable are {READABLE}"))
        })?;
        let track = format.default_track(TrackType::Audio).ok_or_else(|| refuse("the file has no audio track"))?;
        let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio());
        let parameters = parameters.ok_or_else(|| refuse("the audio track does not say its codec"))?;
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(parameters, &AudioDecoderOptions::default())
            .map_err(|error| match error {
                Error::Unsupported(_) => {
                    refuse(format!("the codec {} is not read; readable are {READABLE}", codec(parameters.codec)))
                }
                other => refuse(format!("the codec {}: {other}", codec(parameters.codec))),
            })?;
        Ok(Self {
            track: track.id,
            decoder,
            format,
            interleaved: Vec::new(),
            resampler: None,
            rate: None,
            broken_packets: 0,
            cut: None,
            ended: false,
        })
    }

    /// Appends the next samples to `out`, some at least; false where there are no more.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool, PredictError> {
        let before = out.len();
        while out.len() == before && !self.ended {
            if !self.packet(out)? {
                self.ended = true;
                if let Some(resampler) = &mut self.resampler {
                    resampler.finish(out)?;
                }
            }
        }
        Ok(out.len() > before)
    }

    /// What was wrong with the file, for the logs, once it has been read to its end.
    pub fn complaint(&self) -> Option<String> {
        let broken = match self.broken_packets {
            0 => None,
            1 => Some("one packet could not be decoded and was left out".to_owned()),
            n => Some(format!("{n} packets could not be decoded and were left out")),
        };
        let parts: Vec<String> = broken.into_iter().chain(self.cut.clone()).collect();
        Some(parts.join("; ")).filter(|text| !text.is_empty())
    }

    /// Decodes one packet; false at the end.
    fn packet(&mut self, out: &mut Vec<f32>) -> Result<bool, PredictError> {
        let packet = match self.format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(false),
            Err(error) => {
                self.cut = Some(match error {
                    Error::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
                        "the file ends in the middle; what was there is used".to_owned()
                    }
                    Error::ResetRequired => "the stream changes its tracks; what came before is used".to_owned(),
                    other => format!("the file is broken ({other}); what came before is used"),
                });
                return Ok(false);
            }
        };
        if packet.track_id != self.track {
            return Ok(true);
        }
        let (rate, channels) = match self.decoder.decode(&packet) {
            Ok(decoded) => {
                let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
                decoded.copy_to_vec_interleaved(&mut self.interleaved);
                (rate, channels)
            }
            Err(Error::DecodeError(_) | Error::IoError(_)) => {
                self.broken_packets += 1;
                return Ok(true);
            }
            Err(error) => {
                self.cut = Some(format!("decoding stopped ({error}); what came before is used"));
                return Ok(false);
            }
        };
        if channels == 0 || self.interleaved.is_empty() {
            return Ok(true);
        }
        if self.rate != Some(rate) {
            self.begin_rate(rate, out)?;
        }
        // What is no number would be one everywhere after the transform.
        let mono = self.interleaved.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32);
        let mono = mono.map(|sample| if sample.is_finite() { sample } else { 0.0 });
        match &mut self.resampler {
            None => out.extend(mono),
            Some(resampler) => resampler.push(mono, out)?,
        }
        Ok(true)
    }

    /// The first rate, or another one in the middle of the file.
    fn begin_rate(&mut self, rate: u32, out: &mut Vec<f32>) -> Result<(), PredictError> {
        if rate == 0 || rate > MAX_RATE {
            return Err(refuse(format!("the sample rate is {rate}; 1 to {MAX_RATE} Hz")));
        }
        if let Some(mut resampler) = self.resampler.take() {
            resampler.finish(out)?;
        }
        self.rate = Some(rate);
        self.resampler = if rate as usize == RATE { None } else { Some(Resampling::new(rate as usize)?) };
        Ok(())
    }
}

fn codec(id: AudioCodecId) -> String {
    let names = [
        (CODEC_ID_OPUS, "Opus"),
        (CODEC_ID_SPEEX, "Speex"),
        (CODEC_ID_MUSEPACK, "Musepack"),
        (CODEC_ID_MP1, "MP1"),
        (CODEC_ID_MP2, "MP2"),
        (CODEC_ID_AAC, "AAC (of a profile other than LC)"),
        (CODEC_ID_AC3, "AC-3"),
        (CODEC_ID_EAC3, "E-AC-3"),
        (CODEC_ID_DCA, "DTS"),
        (CODEC_ID_WMA, "WMA"),
        (CODEC_ID_WAVPACK, "WavPack"),
        (CODEC_ID_MONKEYS_AUDIO, "Monkey's Audio"),
        (CODEC_ID_TTA, "TTA"),
    ];
    names.iter().find(|(known, _)| *known == id).map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned())
}

/// One rate to 16 kHz, by Fourier transform, without the delay that its filter has.
struct Resampling {
    inner: Fft<f32>,
    from: usize,
    /// What has not been taken yet: fewer frames than `inner` takes at once.
    waiting: Vec<f32>,
    result: Vec<Vec<f32>>,
    /// Of the filter's delay, in frames of 16 kHz: still to be left out.
    delay: usize,
    taken: u64,
    given: u64,
}

impl Resampling {
    fn new(from: usize) -> Result<Self, PredictError> {
        let inner = Fft::new(from, RATE, RESAMPLED_FRAMES, 1, FixedSync::Input).map_err(|error| failed(&error))?;
        let result = vec![vec![0.0; inner.output_frames_max()]];
        let delay = inner.output_delay();
        Ok(Self { inner, from, waiting: Vec::new(), result, delay, taken: 0, given: 0 })
    }

    fn push(&mut self, samples: impl Iterator<Item = f32>, out: &mut Vec<f32>) -> Result<(), PredictError> {
        let before = self.waiting.len();
        self.waiting.extend(samples);
        self.taken += (self.waiting.len() - before) as u64;
        let mut start = 0;
        while self.waiting.len() - start >= self.inner.input_frames_next() {
            let next = start + self.inner.input_frames_next();
            let chunk = vec![self.waiting[start..next].to_vec()];
            self.step(&chunk, next - start, None, out)?;
            start = next;
        }
        self.waiting.drain(..start);
        Ok(())
    }

    fn step(
        &mut self,
        chunk: &[Vec<f32>],
        frames: usize,
        partial: Option<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), PredictError> {
        let room = self.result[0].len();
        let input = SequentialSliceOfVecs::new(chunk, 1, frames).map_err(|error| failed(&error))?;
        let mut output = SequentialSliceOfVecs::new_mut(&mut self.result, 1, room).map_err(|error| failed(&error))?;
        let indexing = partial.map(|frames| Indexing { partial_len: Some(frames), ..Indexing::default() });
        let (_, written) =
            self.inner.process_into_buffer(&input, &mut output, indexing.as_ref()).map_err(|error| failed(&error))?;
        let skip = self.delay.min(written);
        self.delay -= skip;
        self.given += (written - skip) as u64;
        out.extend_from_slice(&self.result[0][skip..written]);
        Ok(())
    }

    /// What is still inside: exactly as many samples as the duration has.
    fn finish(&mut self, out: &mut Vec<f32>) -> Result<(), PredictError> {
        let wanted = (self.taken * RATE as u64).div_ceil(self.from as u64);
        let mut rest = std::mem::take(&mut self.waiting);
        while self.given < wanted {
            let chunk = vec![std::mem::take(&mut rest)];
            let frames = chunk[0].len();
            self.step(&chunk, frames, Some(frames), out)?;
        }
        out.truncate(out.len() - (self.given - wanted) as usize);
        self.given = wanted;
        Ok(())
    }
}

fn failed(error: &dyn Display) -> PredictError {
    refuse(format!("resampling failed: {error}"))
}

#[cfg(test)]
#[path = "tests/audio.rs"]
mod tests;
