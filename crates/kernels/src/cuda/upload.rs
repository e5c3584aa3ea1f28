//! Bytes on their way to a device, in pieces of page-locked memory: while the device takes one piece, the host fills the next.
//! From pageable memory the driver would copy them into pieces of its own first, on one thread, and the host would wait.
//! Refuses to know what the bytes are.
//!
//! Floor: (bytes) / (the bus: 25 GB/s of PCIe 4, 50 GB/s of PCIe 5), once filling a piece is faster than that.

use candle_core::Result;

use super::stream::Stream;

/// Pieces that the device may still be taking while the next is filled, and that one.
const PIECES: usize = 2;

pub struct Upload<S: Stream> {
    pieces: [S::Staged; PIECES],
    next: usize,
    bytes: usize,
}

impl<S: Stream> Upload<S> {
    /// In pieces of so many bytes.
    pub fn new(stream: &S, bytes: usize) -> Result<Self> {
        // None at all cannot be had page-locked.
        let bytes = bytes.max(size_of::<u64>());
        Ok(Self { pieces: [stream.staged(bytes)?, stream.staged(bytes)?], next: 0, bytes })
    }

    /// Bytes of a piece.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first `bytes` of the next piece, to be filled; waits until the device has taken what was in it. What is in it is
    /// whatever was sent before.
    pub fn room(&mut self, stream: &S, bytes: usize) -> Result<&mut [u8]> {
        if bytes > self.bytes {
            candle_core::bail!("{bytes} bytes at once in pieces of {}", self.bytes);
        }
        let words = stream.ready(&mut self.pieces[self.next])?;
        // SAFETY: u64s as bytes, and there are at least as many.
        Ok(unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), bytes) })
    }

    /// Begins to copy the first `bytes` of the piece to `at` in `to`.
    pub fn send(&mut self, stream: &S, bytes: usize, to: &mut S::Memory, at: usize) -> Result<()> {
        stream.send(&mut self.pieces[self.next], bytes, to, at)?;
        self.next = (self.next + 1) % PIECES;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::emulated::Emulated;
    use crate::cuda::emulator::emulator;

    #[test]
    fn a_piece_is_filled_again_only_when_the_device_has_taken_it() {
        // It takes nothing before somebody waits for it.
        let Some(stream) = emulator().map(Emulated::new) else { return };
        let mut upload = Upload::new(&stream, 16).unwrap();
        let mut memory = stream.zeros(80).unwrap();
        for n in 0..5 {
            upload.room(&stream, 16).unwrap().fill(n as u8 + 1);
            upload.send(&stream, 16, &mut memory, 16 * n).unwrap();
        }
        let taken = stream.read(&memory, 80).unwrap();
        assert!(taken.chunks(16).zip(1..).all(|(piece, n)| piece.iter().all(|byte| *byte == n)), "{taken:?}");
        let larger = upload.room(&stream, 17).unwrap_err().to_string();
        assert!(larger.starts_with("17 bytes at once in pieces of 16"), "{larger}");
        let beyond = upload.send(&stream, 16, &mut memory, 65).unwrap_err().to_string();
        assert!(beyond.starts_with("16 bytes of 16 staged ones to 65 of 80"), "{beyond}");
    }
}
