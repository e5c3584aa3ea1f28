//! A Whisper of one small layer with random weights, multilingual, written where it is wanted: everything but sense.

use runner::synth::Synth;

/// Writes config.json, safetensors and tokenizer.json; gives the folder.
pub fn write(seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shape = super::super::ENTRY.shape("whisper-test").unwrap();
    Synth::new(shape, "f32", seed).unwrap().write(folder.path(), &mut |_, _| ()).unwrap();
    folder
}
