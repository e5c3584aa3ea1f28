//! What hostile bytes are given to, one function per format. Whatever they are, it returns: an answer or a refusal, never a
//! panic, never memory for what a header merely claims. Refuses to know who makes the bytes up.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, mpsc};

use prediction::{Id, Job, LoadSpec, Loaded, Map, Weights};
use runner::synth::Synth;
use runner::weights::{Lock, Options, declared, import};
use runner::{Ct2, Gguf, SafeTensors, archive};

/// A file of that name with these bytes.
fn with_file(name: &str, bytes: &[u8], look: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("a temporary file can be written");
    look(&path);
}

/// Reads every byte, so that one outside the file would be noticed.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&byte| u64::from(byte)).sum()
}

pub fn safetensors(bytes: &[u8]) {
    with_file("model.safetensors", bytes, |path| {
        let Ok(file) = SafeTensors::open(path) else { return };
        for name in file.names() {
            if let Ok(tensor) = file.tensor(name) {
                sum(tensor.bytes);
            }
            let _ = file.slice(name, 0, 0..1);
            let _ = file.slice(name, 1, 1..usize::MAX);
        }
    });
    with_file("model.safetensors.index.json", bytes, |path| drop(SafeTensors::open(path)));
}

pub fn gguf(bytes: &[u8]) {
    with_file("model.gguf", bytes, |path| {
        let Ok(file) = Gguf::open(path) else { return };
        for tensor in file.tensors() {
            sum(tensor.bytes);
        }
        for (key, value) in file.metadata() {
            // Every way of reading it, right or wrong.
            let _ = (file.u64(key), file.f32(key), file.bool(key), file.str(key), value.to_string());
            let _ = (file.floats(key), file.integers(key));
            if let Ok(strings) = file.strings(key) {
                sum(strings.iter().collect::<String>().as_bytes());
            }
        }
    });
}

pub fn ct2(bytes: &[u8]) {
    with_file("model.bin", bytes, |path| {
        let Ok(file) = Ct2::open(&[path.to_owned()]) else { return };
        for name in file.names() {
            if let Ok(variable) = file.variable(name) {
                sum(&variable.bytes);
            }
            file.advise_drop(name);
        }
    });
}

/// Locks, and the sets that a cog.yaml declares.
pub fn lock(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(lock) = Lock::parse(&text) {
        let again = Lock::parse(&lock.to_json());
        assert_eq!(again.as_ref(), Ok(&lock), "what is written is read back");
    }
    let _ = declared(&text);
    let _ = runner::weights::mirrors(&text, "tiny");
}

pub fn bundle(bytes: &[u8]) {
    let cache = tempfile::tempdir().expect("a temporary folder can be made");
    let options = Options { offline: true, cache_dir: cache.path().to_owned(), ..Options::from_env() };
    let _ = import(bytes, "bundle", &options, &mut |_| {});
}

/// `tokenizer.json` of a Llama whose weights are in order.
pub fn tokenizer(bytes: &[u8]) {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let (model, shape) = models::Entry::of_shape("tiny").expect("a shape for tests");
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let synth = Synth::new(shape, "f32", 0).expect("the shape is whole");
        synth.write(&folder.path().join("weights"), &mut |_, _| {}).expect("there is room for it");
        folder
    });
    let weights = folder.path().join("weights");
    fs::write(weights.join("tokenizer.json"), bytes).expect("a temporary file can be written");
    let spec = LoadSpec { threads: Some(1), ..LoadSpec::new("tiny", model.name, Weights::Path(weights)) };
    let _ = (model.model)().load(&spec, &mut |_| {});
}

/// A LoRA that a prediction brings to weights that are in order.
pub fn lora(bytes: &[u8]) {
    brought("lora.safetensors", bytes);
}

/// The tar that the hosted trainer gives, brought in the same way; as it is, and with the sums of its headers put right, which
/// would else refuse nearly every change.
pub fn trained(bytes: &[u8]) {
    let whole = summed(bytes);
    if whole != bytes {
        tar(bytes);
    }
    tar(&whole);
}

fn tar(bytes: &[u8]) {
    const NAME: &str = "trained_model.tar";
    with_file(NAME, bytes, |path| {
        for member in archive::members(path).unwrap_or_default() {
            let length = member.range.end - member.range.start;
            assert_eq!(member.read(path, length).map(|read| read.len() as u64), Ok(length), "{}", member.name);
        }
    });
    brought(NAME, bytes);
}

/// A tar whose headers have the sums that belong to them.
fn summed(bytes: &[u8]) -> Vec<u8> {
    const MARK: std::ops::Range<usize> = 257..262;
    const SUM: std::ops::Range<usize> = 148..156;
    let mut bytes = bytes.to_vec();
    for header in bytes.chunks_exact_mut(512).filter(|block| block[MARK] == *b"ustar") {
        header[SUM].fill(b' ');
        let text = format!("{:06o}\0 ", sum(header));
        header[SUM].copy_from_slice(text.as_bytes());
    }
    bytes
}

/// What its headers tell is refused as the prediction comes; what is left is added to the weights, elsewhere: nets that are read
/// again take their memory.
fn brought(name: &str, bytes: &[u8]) {
    thread_local! {
        static PAINTER: RefCell<Box<dyn Loaded>> = RefCell::new(painter());
    }
    static MERGER: OnceLock<Mutex<Merger>> = OnceLock::new();
    with_file(name, bytes, |path| {
        let is_taken = PAINTER.with_borrow_mut(|painter| {
            let taken = painter.admit(painting(path)).is_ok();
            painter.cancel(&Id::from(PAINTING));
            taken
        });
        if is_taken {
            let merger = MERGER.get_or_init(|| Mutex::new(Merger::start()));
            let merger = merger.lock().expect("nobody panics who has it");
            merger.paths.send(path.to_owned()).expect("the thread that merges lives");
            merger.done.recv().expect("merging does not panic");
        }
    });
}

const PAINTING: &str = "painting";

fn painting(brought: &Path) -> Job {
    let mut input = Map::new();
    input.insert("replicate_weights".into(), format!("file://{}", brought.display()).into());
    for size in ["width", "height"] {
        input.insert(size.into(), 64.into());
    }
    Job { id: Id::from(PAINTING), input, seed: 0 }
}

/// A small SDXL. It stays on the thread that loaded it.
fn painter() -> Box<dyn Loaded> {
    let (model, shape) = models::Entry::of_shape("sdxl-tiny").expect("a shape for tests");
    let weights = Weights::Synth { shape: shape.name.into(), dtype: shape.dtype.into(), seed: 0 };
    let spec = LoadSpec { threads: Some(1), ..LoadSpec::new("tiny", model.name, weights) };
    (model.model)().load(&spec, &mut |_| {}).expect("random weights can be loaded")
}

/// A thread that adds whatever it is told of to its nets.
struct Merger {
    paths: mpsc::Sender<PathBuf>,
    done: mpsc::Receiver<()>,
}

impl Merger {
    fn start() -> Self {
        let (paths, told) = mpsc::channel::<PathBuf>();
        let (say, done) = mpsc::channel();
        std::thread::spawn(move || {
            let mut painter = painter();
            for path in told {
                if painter.admit(painting(&path)).is_ok() {
                    // The first says that it begins, the second reads the nets.
                    (0..2).for_each(|_| drop(painter.step(&mut |_, _| {})));
                    painter.cancel(&Id::from(PAINTING));
                }
                if say.send(()).is_err() {
                    return;
                }
            }
        });
        Self { paths, done }
    }
}
