//! Weights that were unloaded and come back from the host's memory, on the emulator: to the bit what was there, and from no file.

use std::path::Path;

use kernels::Pool;
use kernels::cuda::emulated::Emulated;
use kernels::cuda::emulator::emulator;
use kernels::cuda::kept::{CHUNK_BYTES, HostCopy};
use runner::synth::Synth;

use super::super::engine::Engine;
use super::super::gpu::kept::Identity;
use super::super::gpu::{Fit, Gpu};
use super::super::weights::Opened;
use super::gpu::{load, schedule};
use crate::shared::kept::fitting;
use crate::shared::spoilt::{spoil, touch};

const BLOCKS: usize = 8;

fn written(dtype: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shape = super::super::ENTRY.shape("tiny-64").unwrap();
    Synth::new(shape, dtype, 3).unwrap().write(folder.path(), &mut |_, _| ()).unwrap();
    folder
}

/// An engine for the folder, from what was kept if that fits, and the lines of the way there; none without an emulator.
fn engine(
    folder: &Path,
    precision: Option<&str>,
    kept: Option<Box<dyn prediction::Kept>>,
) -> Option<(Gpu<Emulated>, Vec<String>)> {
    let (opened, load, mut lines) = (Opened::open(folder).unwrap(), load(precision, BLOCKS, false), Vec::new());
    let fit = Fit::of(&opened, precision, true).unwrap();
    let identity = Identity::of(&opened, fit, &load);
    let copy: Option<HostCopy<Emulated>> = fitting(kept, &identity, &mut |line| lines.push(line.to_owned()));
    let stream = Emulated::new(emulator()?);
    Some((Gpu::load(stream, &opened, fit, &load, &Pool::new(2), copy, &mut |_, _| ()).unwrap(), lines))
}

fn bits(logits: Vec<Vec<f32>>) -> Vec<Vec<u32>> {
    logits.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect()
}

#[test]
fn a_model_that_comes_back_says_the_same_to_the_bit_and_reads_no_tensor() {
    for (stored, precision) in [("f16", None), ("bf16", Some("q8_0")), ("f16", Some("int8"))] {
        let folder = written(stored);
        let Some((mut first, lines)) = engine(folder.path(), precision, None) else { return };
        assert!(lines.is_empty(), "{lines:?}");
        let said = bits(schedule(&mut first));
        let kept = first.keep().unwrap().unwrap();
        assert_eq!((kept.bytes(), first.kept_bytes()), (CHUNK_BYTES as u64, CHUNK_BYTES as u64));
        drop(first);
        spoil(folder.path());
        let (mut second, lines) = engine(folder.path(), precision, Some(kept)).unwrap();
        assert!(lines[0].contains("come back from host memory"), "{lines:?}");
        assert_eq!(bits(schedule(&mut second)), said, "{stored} {precision:?}");
        // Once more, from what came back.
        let kept = second.keep().unwrap();
        drop(second);
        let (mut third, _) = engine(folder.path(), precision, kept).unwrap();
        assert_eq!(bits(schedule(&mut third)), said, "{stored} {precision:?}");
        // The rubbish is what else would have been read.
        let (mut read, _) = engine(folder.path(), precision, None).unwrap();
        assert_ne!(bits(schedule(&mut read)), said, "{stored} {precision:?}");
    }
}

#[test]
fn files_that_were_touched_and_another_precision_are_read_again() {
    let folder = written("f16");
    let Some((first, _)) = engine(folder.path(), None, None) else { return };
    let (_, lines) = engine(folder.path(), Some("q4_0"), first.keep().unwrap()).unwrap();
    assert!(lines[0].ends_with("the files are read"), "{lines:?}");
    let kept = first.keep().unwrap();
    touch(folder.path());
    let (_, lines) = engine(folder.path(), None, kept).unwrap();
    assert!(lines[0].ends_with("the files are read"), "{lines:?}");
    let other = written("f16");
    let (_, lines) = engine(other.path(), None, first.keep().unwrap()).unwrap();
    assert!(lines[0].ends_with("the files are read"), "{lines:?}");
}
