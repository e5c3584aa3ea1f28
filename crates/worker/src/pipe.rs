//! Frames on a pipe: four bytes of length (little endian), then that many bytes of JSON. Knows bytes; refuses to know
//! what a frame means and who is at the other end.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame, in bytes. Four letters of text read as a length are larger: a print that went astray onto the pipe
/// is noticed at its first word.
pub const FRAME_BYTES_MAX: usize = 256 << 20;
/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;
/// Bytes asked of the pipe at once: what a Linux pipe holds.
const READ_BYTES: usize = 64 << 10;
/// A buffer that one large frame has stretched beyond this is given back.
const KEEP_BYTES: usize = 1 << 20;

/// Appends a frame to `batch`. One that is too large leaves the batch as it was.
pub fn encode<T: Serialize>(frame: &T, batch: &mut Vec<u8>) -> io::Result<()> {
    encode_within(frame, batch, FRAME_BYTES_MAX)
}

fn encode_within<T: Serialize>(frame: &T, batch: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let begin = batch.len();
    batch.extend_from_slice(&[0; LENGTH_BYTES]);
    let written = serde_json::to_writer(&mut *batch, frame).map_err(io::Error::from).and_then(|()| {
        let length = batch.len() - begin - LENGTH_BYTES;
        if length > limit { Err(too_large(length, limit)) } else { Ok(length as u32) }
    });
    match written {
        Ok(length) => batch[begin..begin + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes()),
        Err(_) => batch.truncate(begin),
    }
    written.map(|_| ())
}

fn too_large(length: usize, limit: usize) -> io::Error {
    let why = format!("a frame between server and worker of {length} bytes; at most {limit} (FRAME_BYTES_MAX)");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// What has come of frames so far, in whatever pieces it came.
#[derive(Default)]
pub struct Held {
    bytes: Vec<u8>,
    /// Before this, everything was taken.
    taken: usize,
}

impl Held {
    pub fn push(&mut self, piece: &[u8]) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEEP_BYTES);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(piece);
    }

    /// The next frame, if all of it is here. After an error the pipe is of no more use.
    pub fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let rest = &self.bytes[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(self.wait()) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(too_large(length, FRAME_BYTES_MAX));
        }
        let Some(body) = rest.get(..length) else { return Ok(self.wait()) };
        let frame = serde_json::from_slice(body)?;
        self.taken += LENGTH_BYTES + length;
        Ok(Some(frame))
    }

    /// What was taken need not be kept while the rest is on its way.
    fn wait<T>(&mut self) -> Option<T> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        None
    }

    /// Whether the pipe may end here: no frame has begun.
    pub fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }
}

/// Frames from a pipe.
pub struct Reader<R> {
    from: R,
    held: Held,
    piece: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, held: Held::default(), piece: vec![0; READ_BYTES] }
    }

    /// Waits for the next frame; none when the pipe has ended between two.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(frame) = self.held.take()? {
                return Ok(Some(frame));
            }
            match self.from.read(&mut self.piece) {
                Ok(0) if self.held.is_empty() => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.held.push(&self.piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Frames onto a pipe, several in one write.
pub struct Writer<W> {
    to: W,
    batch: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> Self {
        Self { to, batch: Vec::new() }
    }

    /// Keeps the frame for the next `flush`. An error is a frame that cannot be sent; the pipe is as good as before.
    pub fn put<T: Serialize>(&mut self, frame: &T) -> io::Result<()> {
        encode(frame, &mut self.batch)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.batch)?;
        self.batch.clear();
        self.batch.shrink_to(KEEP_BYTES);
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_too_large_is_refused_with_the_limit_and_leaves_the_batch_alone() {
        let mut batch = Vec::new();
        encode_within(&"fits", &mut batch, 6).unwrap();
        let before = batch.clone();
        let refused = encode_within(&"fits not", &mut batch, 6).unwrap_err();
        assert_eq!(refused.to_string(), "a frame between server and worker of 10 bytes; at most 6 (FRAME_BYTES_MAX)");
        assert_eq!(batch, before);
    }

    #[test]
    fn a_print_that_went_astray_is_noticed_at_its_first_word() {
        let mut reader = Reader::new(&b"loading the model\n"[..]);
        let error = reader.receive::<String>().unwrap_err();
        assert!(error.to_string().contains("FRAME_BYTES_MAX"), "{error}");
    }
}
