//! Two models that take turns on one device, through the whole loop of a worker, on the emulator: whoever comes back does so from the
//! host's memory, and says what it said.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ::prediction::frame::{FromWorker, ToWorker};
use ::prediction::{Event, Id, Job, LoadSpec, Output, Weights};
use kernels::cuda::kept::CHUNK_BYTES;
use kernels::op;
use runner::synth::Synth;
use serde_json::{Value, json};
use worker::Owned;

use crate::shared::spoilt::spoil;

/// The emulator is slow, and other tests run beside this one.
const PATIENCE: Duration = Duration::from_secs(300);
const CHUNK: u64 = CHUNK_BYTES as u64;

struct Bench {
    to: Sender<ToWorker>,
    from: Receiver<FromWorker>,
}

impl Bench {
    /// None without an emulator.
    fn new(host_cache_bytes: u64) -> Option<Self> {
        drop(op::emulate()?);
        let ((to, inbox), (out, from)) = (channel(), channel());
        std::thread::spawn(move || {
            let _gpu = op::emulate();
            let registry: worker::Registry =
                crate::ALL.iter().map(|entry| (entry.name.to_owned(), (entry.model)())).collect::<BTreeMap<_, _>>();
            let owned = Owned { host_cache_bytes, ..Owned::cpu() };
            worker::run(registry, owned, inbox, move |frame| out.send(frame).is_ok());
        });
        Some(Self { to, from })
    }

    fn next(&self) -> FromWorker {
        self.from.recv_timeout(PATIENCE).expect("it answers")
    }

    /// Loads a model of the folder, lets it work on one input, and has it leave: its outputs, whether it came back from the host's
    /// memory, and what that holds afterwards if it changed.
    fn turn(&self, model: &str, folder: &Path, input: Value) -> (Vec<Output>, bool, Option<u64>) {
        let spec = LoadSpec { threads: Some(2), ..LoadSpec::new(model, model, Weights::Path(folder.to_owned())) };
        self.to.send(ToWorker::Load { spec, room_bytes: Some(u64::MAX) }).unwrap();
        let (mut came_back, mut outputs, mut cache) = (false, Vec::new(), None);
        let job = Job { id: Id::from(model), input: input.as_object().unwrap().clone(), seed: 3 };
        loop {
            match self.next() {
                FromWorker::Loading { line, .. } => came_back |= line.contains("come back from host memory"),
                FromWorker::Loaded { .. } => {
                    let job = job.clone();
                    self.to.send(ToWorker::Admit { target: model.into(), attempt: 1, job }).unwrap();
                }
                FromWorker::Events(events) => {
                    for event in events.into_iter().map(|emitted| emitted.event) {
                        match event {
                            Event::Output(output) => outputs.push(output),
                            Event::Ended(outcome) => {
                                assert_eq!(outcome, ::prediction::Outcome::Succeeded);
                                self.to.send(ToWorker::Unload { target: model.into() }).unwrap();
                            }
                            _ => {}
                        }
                    }
                }
                FromWorker::Unloaded { why: None, .. } => break,
                FromWorker::HostCache { .. } | FromWorker::Heartbeat | FromWorker::Hello(_) => {}
                other => panic!("{other:?}"),
            }
        }
        // Said behind the unload; nothing is said where nothing changed, so something else has to be heard.
        self.to
            .send(ToWorker::Load { spec: LoadSpec::new("no", "no", Weights::Path("".into())), room_bytes: None })
            .unwrap();
        loop {
            match self.next() {
                FromWorker::HostCache { bytes } => cache = Some(bytes),
                FromWorker::LoadFailed { .. } => return (outputs, came_back, cache),
                _ => {}
            }
        }
    }
}

#[test]
fn models_that_take_turns_come_back_from_host_memory_and_say_what_they_said() {
    let Some(bench) = Bench::new(4 * CHUNK) else { return };
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [hears, draws] = folders.each_ref().map(tempfile::TempDir::path);
    for (shape, folder) in [("whisper-test", hears), ("sdxl-tiny", draws)] {
        Synth::new(crate::shape(shape).unwrap(), "f32", 5).unwrap().write(folder, &mut |_, _| ()).unwrap();
    }
    let audio = hears.join("tone.wav");
    let samples: Vec<i16> = (0..16_000).map(|at| (6000.0 * (at as f64 * 0.1).sin()) as i16).collect();
    std::fs::write(&audio, crate::whisper::tests::wav(16_000, 1, &samples)).unwrap();
    let listen = json!({ "audio": format!("file://{}", audio.display()), "temperature": 0 });
    let draw = json!({ "prompt": "a clock", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 3 });

    let (heard, came_back, cache) = bench.turn("whisper", hears, listen.clone());
    assert_eq!((heard.len(), came_back, cache), (1, false, Some(CHUNK)));
    let (drawn, came_back, cache) = bench.turn("sdxl", draws, draw.clone());
    assert_eq!((drawn.len(), came_back, cache), (1, false, Some(2 * CHUNK)));
    // From now on nobody finds anything in the files.
    folders.iter().for_each(|folder| spoil(folder.path()));
    for _ in 0..2 {
        assert_eq!(bench.turn("whisper", hears, listen.clone()), (heard.clone(), true, Some(2 * CHUNK)));
        assert_eq!(bench.turn("sdxl", draws, draw.clone()), (drawn.clone(), true, Some(2 * CHUNK)));
    }
}
