//! A model without weights that says back what it was told: for the tests and benches of everything above the seam.
//! No `models/` folder names it: it is served only where a cog.yaml asks for `model: echo`.

use std::path::Path;
use std::time::Duration;

use prediction::{Event, Id, Job, LoadSpec, Loaded, Map, Model, Outcome, Output, PredictError};
use serde_json::Value;

use crate::echo_files::{self, Followed};

/// Predictions at once when the spec says nothing.
const CAPACITY: usize = 8;
/// Between two looks at nothing but held predictions: the loop would spin otherwise.
const HOLD_PAUSE: Duration = Duration::from_millis(1);

/// What it reads from the input; everything is optional.
///
/// - `text`: what to say, in `pieces` (1) items, one per step; `after: "path"`: once that file is there
/// - `file`: a `file://` URI; what it says in place of `text` is the size and the SHA-256 of what is there
/// - `gives`: `one`, `list`, `each` or `object`: gives `text` as files of the type `mime`, in place of pieces
/// - `log`: a line for the logs, said first; `follows: "path"`: what that file has of whole lines and gets, too
/// - `hold: true`: after the last piece, waits until it is cancelled; `until: "path"`: or until that file is there
/// - `fail: "why"`: fails after the last piece
/// - `refuse: "why"`: is refused at admission; `crash: "why"`: breaks the whole model in its first step;
///   `panic: "why"`: the same by a panic
pub struct Echo;

impl Model for Echo {
    fn needs(&self, spec: &LoadSpec, _: &mut dyn FnMut(&str)) -> Result<u64, PredictError> {
        Ok(bytes(spec))
    }

    /// The defaults of a spec may hold `load_fails: "why"`, `load_says: "line"`, `load_waits_for: "path"`, which is loaded
    /// when that is there, and `needs_bytes: N`, which it claims to hold.
    fn load(&self, spec: &LoadSpec, report: &mut dyn FnMut(&str)) -> Result<Box<dyn Loaded>, PredictError> {
        if let Some(line) = text(&spec.defaults, "load_says") {
            report(&line);
        }
        while text(&spec.defaults, "load_waits_for").is_some_and(|path| !Path::new(&path).exists()) {
            std::thread::sleep(HOLD_PAUSE);
        }
        match text(&spec.defaults, "load_fails") {
            Some(why) => Err(PredictError::Operator(why)),
            None => {
                let capacity = spec.concurrency.map_or(CAPACITY, |n| n as usize);
                Ok(Box::new(Room { capacity, bytes: bytes(spec), inside: Vec::new() }))
            }
        }
    }
}

fn bytes(spec: &LoadSpec) -> u64 {
    spec.defaults.get("needs_bytes").and_then(Value::as_u64).unwrap_or(0)
}

struct Room {
    capacity: usize,
    bytes: u64,
    inside: Vec<Guest>,
}

struct Guest {
    id: Id,
    log: Option<String>,
    /// In reverse: the next is the last.
    pieces: Vec<String>,
    files: Vec<Output>,
    words: u64,
    said: u64,
    hold: bool,
    until: Option<String>,
    after: Option<String>,
    follows: Option<Followed>,
    end: End,
}

enum End {
    Well,
    Fail(String),
    Crash(String),
    Panic(String),
}

fn text(input: &Map, name: &str) -> Option<String> {
    input.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// `text` in `count` pieces of whole characters, the longer ones first; at most one piece per character.
fn cut(text: &str, count: usize) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let count = count.clamp(1, letters.len().max(1));
    let bound = |piece: usize| (piece * letters.len()).div_ceil(count);
    (0..count).map(|piece| letters[bound(piece)..bound(piece + 1)].iter().collect()).collect()
}

impl Loaded for Room {
    fn admit(&mut self, job: Job) -> Result<(), PredictError> {
        if let Some(why) = text(&job.input, "refuse") {
            return Err(PredictError::FixInput(why));
        }
        let words = match text(&job.input, "file") {
            Some(uri) => echo_files::described(&uri)?,
            None => text(&job.input, "text").unwrap_or_default(),
        };
        let pieces = job.input.get("pieces").and_then(Value::as_u64).unwrap_or(1) as usize;
        let (files, mut pieces) = match text(&job.input, "gives") {
            Some(how) => (echo_files::given(&how, &text(&job.input, "mime").unwrap_or_default(), &words), Vec::new()),
            None => (Vec::new(), cut(&words, pieces)),
        };
        pieces.reverse();
        let end = if let Some(why) = text(&job.input, "panic") {
            End::Panic(why)
        } else if let Some(why) = text(&job.input, "crash") {
            End::Crash(why)
        } else if let Some(why) = text(&job.input, "fail") {
            End::Fail(why)
        } else {
            End::Well
        };
        let until = text(&job.input, "until");
        self.inside.push(Guest {
            id: job.id,
            log: text(&job.input, "log"),
            pieces,
            files,
            words: words.split_whitespace().count() as u64,
            said: 0,
            hold: until.is_some() || job.input.get("hold").and_then(Value::as_bool).unwrap_or(false),
            until,
            after: text(&job.input, "after"),
            follows: text(&job.input, "follows").map(Followed::new),
            end,
        });
        Ok(())
    }

    fn step(&mut self, emit: &mut dyn FnMut(&Id, Event)) -> Result<(), PredictError> {
        if self.inside.iter().all(Guest::waits) {
            std::thread::sleep(HOLD_PAUSE);
        }
        let mut broken = None;
        self.inside.retain_mut(|guest| {
            match &guest.end {
                End::Panic(why) => panic!("{why}"),
                End::Crash(why) => {
                    broken = Some(why.clone());
                    return true;
                }
                End::Well | End::Fail(_) => {}
            }
            if let Some(line) = guest.log.take() {
                emit(&guest.id, Event::Log(format!("{line}\n")));
            }
            // Before the lines are read: what was written before it is there is said.
            if is_there(&guest.until) {
                (guest.hold, guest.until) = (false, None);
            }
            if is_there(&guest.after) {
                guest.after = None;
            }
            if let Some(lines) = guest.follows.as_mut().and_then(Followed::news) {
                emit(&guest.id, Event::Log(lines));
            }
            if guest.after.is_none()
                && let Some(piece) = guest.pieces.pop()
            {
                guest.said += 1;
                emit(&guest.id, Event::Output(Output::text(piece)));
            }
            for file in guest.files.drain(..) {
                emit(&guest.id, Event::Output(file));
            }
            let stays = !guest.pieces.is_empty() || guest.hold;
            if !stays {
                guest.leave(emit);
            }
            stays
        });
        broken.map_or(Ok(()), |why| Err(PredictError::Operator(why)))
    }

    fn cancel(&mut self, id: &Id) {
        self.inside.retain(|guest| guest.id != *id);
    }

    fn active(&self) -> usize {
        self.inside.len()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn is_there(path: &Option<String>) -> bool {
    path.as_ref().is_some_and(|path| Path::new(path).exists())
}

impl Guest {
    /// For a file, or to be cancelled.
    fn waits(&self) -> bool {
        self.after.is_some() || self.hold && self.pieces.is_empty()
    }

    fn leave(&self, emit: &mut dyn FnMut(&Id, Event)) {
        for (name, value) in [("input_token_count", self.words), ("output_token_count", self.said)] {
            emit(&self.id, Event::Metric { name: name.to_owned(), value: value.into() });
        }
        let outcome = match &self.end {
            End::Fail(why) => Outcome::Failed { error: why.clone() },
            _ => Outcome::Succeeded,
        };
        emit(&self.id, Event::Ended(outcome));
    }
}
