//! Whisper: speech to text, tiny to large-v3 and turbo, English-only and multilingual.

mod config;
mod net;
mod weights;
