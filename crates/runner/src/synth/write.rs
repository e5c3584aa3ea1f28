//! Random weights as a folder: safetensors in shards with an index, and the files beside them. Refuses a folder that holds
//! something, and a disk that is too small, before anything is written.
//!
//! Blocks are made and written by as many threads as there are cores, each with one block in hand. The files beside the
//! shards come last: a folder that was left half-way has no configuration, and is not taken for weights.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use candle_core::DType;
use prediction::PredictError;
use serde_json::json;

use super::{BLOCK_BYTES, Synth, threads};

/// A shard ends before the tensor that would make it larger.
pub(super) const SHARD_BYTES: u64 = 5_000_000_000;
/// Room on the disk for the file system's own bookkeeping, beside the files.
const SPARE_BYTES: u64 = 16 << 20;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub files: usize,
    pub bytes: u64,
}

/// One safetensors file: its header, and which tensors of the plan follow in which order.
pub(super) struct Shard {
    pub name: String,
    header: Vec<u8>,
    pub tensors: Vec<Placed>,
    bytes: u64,
    /// What its name begins with: the same for all shards of one file.
    stem: String,
}

pub(super) struct Placed {
    tensor: usize,
    /// From the file's first byte.
    offset: u64,
    bytes: u64,
}

/// A piece of work: one block of one tensor.
struct Block {
    shard: usize,
    tensor: usize,
    number: usize,
    offset: u64,
    bytes: usize,
}

impl Synth {
    /// Writes the folder `to`; `report` is told (bytes done, bytes of all tensors). What was begun is removed if it fails.
    pub fn write(&self, to: &Path, report: &mut dyn FnMut(u64, u64)) -> Result<Written, PredictError> {
        let failed =
            |path: &Path, why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", path.display()));
        match fs::read_dir(to).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(PredictError::FixInput(format!("{} holds something already", to.display()))),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(PredictError::FixInput(format!("{}: {error}", to.display()))),
        }
        let shards = self.shards(SHARD_BYTES);
        let files = self.files_beside(&shards);
        let sizes = shards.iter().map(|shard| shard.bytes).chain(files.iter().map(|(_, text)| text.len() as u64));
        let written = Written { files: shards.len() + files.len(), bytes: sizes.sum() };
        let free = free_bytes(to).map_err(|error| failed(to, &error))?;
        if written.bytes + SPARE_BYTES > free {
            let needed = written.bytes + SPARE_BYTES;
            return Err(failed(to, &format_args!("{needed} bytes are needed; the disk has {free} bytes free")));
        }
        for name in shards.iter().map(|shard| &shard.name).chain(files.iter().map(|(name, _)| name)) {
            let path = to.join(name);
            let folder = path.parent().unwrap_or(to);
            fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        }
        let done = self.write_shards(to, &shards, report).and_then(|()| {
            let write = |(name, text): &(String, Vec<u8>)| fs::write(to.join(name), text);
            files.iter().try_for_each(write)
        });
        if let Err(error) = done {
            for name in shards.iter().map(|shard| &shard.name).chain(files.iter().map(|(name, _)| name)) {
                // It may never have been begun.
                let _ = fs::remove_file(to.join(name));
            }
            return Err(failed(to, &error));
        }
        Ok(written)
    }

    pub(super) fn write_shards(&self, to: &Path, shards: &[Shard], report: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let mut files = Vec::new();
        let mut blocks = Vec::new();
        for (at, shard) in shards.iter().enumerate() {
            let file = File::create_new(to.join(&shard.name))?;
            file.set_len(shard.bytes)?;
            file.write_all_at(&shard.header, 0)?;
            files.push(file);
            for &Placed { tensor, offset, bytes } in &shard.tensors {
                blocks.extend((0..bytes.div_ceil(BLOCK_BYTES as u64)).map(|number| {
                    let from = number * BLOCK_BYTES as u64;
                    let bytes = (bytes - from).min(BLOCK_BYTES as u64) as usize;
                    Block { shard: at, tensor, number: number as usize, offset: offset + from, bytes }
                }));
            }
        }
        let next = AtomicUsize::new(0);
        let (tell, told) = mpsc::channel::<io::Result<u64>>();
        let work = |tell: mpsc::Sender<io::Result<u64>>| {
            let mut bytes = vec![0; BLOCK_BYTES];
            while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let bytes = &mut bytes[..block.bytes];
                self.fill(&self.plan.tensors[block.tensor], block.number, bytes);
                let written = files[block.shard].write_all_at(bytes, block.offset).map(|()| block.bytes as u64);
                let failed = written.is_err();
                if tell.send(written).is_err() || failed {
                    return;
                }
            }
        };
        let (mut done, total) = (0, self.total_bytes());
        let outcome = std::thread::scope(|scope| {
            for _ in 0..threads() {
                let (tell, work) = (tell.clone(), &work);
                scope.spawn(move || work(tell));
            }
            drop(tell);
            let outcome = told.iter().try_for_each(|written| {
                done += written?;
                report(done, total);
                Ok(())
            });
            // One has failed: the others find nothing left to do.
            next.store(blocks.len(), Ordering::Relaxed);
            outcome
        });
        outcome.and_then(|()| files.iter().try_for_each(File::sync_all))
    }

    pub(super) fn shards(&self, most_bytes: u64) -> Vec<Shard> {
        let plan = &self.plan.tensors;
        let all: Vec<usize> = (0..plan.len()).collect();
        let files = all.chunk_by(|&a, &b| split(&plan[a].name).0 == split(&plan[b].name).0);
        let name = |file: &str, number: usize, count: usize| match count {
            1 => format!("{file}.safetensors"),
            _ => format!("{file}-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let mut shards = Vec::new();
        for tensors in files {
            let mut groups: Vec<(Vec<usize>, u64)> = Vec::new();
            for &at in tensors {
                let size = self.size(&plan[at]);
                match groups.last_mut() {
                    Some((tensors, bytes)) if *bytes + size <= most_bytes => {
                        tensors.push(at);
                        *bytes += size;
                    }
                    _ => groups.push((vec![at], size)),
                }
            }
            let (file, _) = split(&plan[tensors[0]].name);
            for (number, (tensors, _)) in groups.iter().enumerate() {
                shards.push(self.shard(file, name(file, number, groups.len()), tensors));
            }
        }
        shards
    }

    /// The format's header is its length (8 bytes, little-endian) and JSON, filled up with blanks to 8 bytes.
    fn shard(&self, stem: &str, name: String, tensors: &[usize]) -> Shard {
        let dtype = match self.dtype {
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            _ => "F32",
        };
        // Sorted names, here and inside, so that the bytes hang on nothing else.
        let mut entries = BTreeMap::new();
        entries.insert("__metadata__", json!({"format": "pt", "made_of": self.title()}));
        let mut placed = Vec::new();
        let mut end = 0;
        for &at in tensors {
            let tensor = &self.plan.tensors[at];
            let (offset, bytes) = (end, self.size(tensor));
            end += bytes;
            entries.insert(
                split(&tensor.name).1,
                json!({"data_offsets": [offset, end], "dtype": dtype, "shape": tensor.shape}),
            );
            placed.push(Placed { tensor: at, offset, bytes });
        }
        let mut text = serde_json::to_vec(&entries).expect("texts and numbers always serialise");
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.append(&mut text);
        placed.iter_mut().for_each(|tensor| tensor.offset += header.len() as u64);
        Shard { name, bytes: header.len() as u64 + end, header, tensors: placed, stem: stem.to_owned() }
    }

    pub(super) fn files_beside(&self, shards: &[Shard]) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = self.plan.files.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect();
        for shards in shards.chunk_by(|a, b| a.stem == b.stem).filter(|shards| shards.len() > 1) {
            let placed = shards.iter().flat_map(|shard| shard.tensors.iter().map(move |placed| (placed, shard)));
            let total: u64 = placed.clone().map(|(placed, _)| placed.bytes).sum();
            let weight_map: BTreeMap<_, _> = placed
                .map(|(placed, shard)| {
                    let shard = shard.name.rsplit_once('/').map_or(shard.name.as_str(), |(_, name)| name);
                    (split(&self.plan.tensors[placed.tensor].name).1, shard)
                })
                .collect();
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            let name = format!("{}.safetensors.index.json", shards[0].stem);
            files.insert(0, (name, index.to_string().into_bytes()));
        }
        files
    }
}

/// The file that a tensor of this name stands in, without its ending, and what the tensor is called there.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("model", name))
}

/// What may still be written to the disk that `path`, or the nearest folder above it that exists, lies on.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let absolute = std::path::absolute(path)?;
    let existing: PathBuf = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
    let path = std::ffi::CString::new(existing.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a path that ends in NUL, and room for the answer, which is read only after success.
    let about = unsafe {
        if libc::statvfs(path.as_ptr(), about.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        about.assume_init()
    };
    #[allow(clippy::unnecessary_cast)] // The width of these differs between systems.
    Ok(about.f_bavail as u64 * about.f_frsize as u64)
}
