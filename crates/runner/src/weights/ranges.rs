//! A large file over several connections at once. Its bytes go into the sink in their order, so that what an interrupted
//! download leaves is always a beginning, and goes on from there.
//!
//! Memory: `CONNECTIONS` times `PIECES` pieces of some hundred kilobytes; what else has come for a segment behind the one that is
//! being written waits in the system's buffers. So a near and fast server sends first what is written first.

use std::collections::VecDeque;

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Progress;
use super::http::{Address, Clients, Stop, chain, content_range, follow, refusal};
use super::sink::{Fault, Sink};

/// A file with more than this left is asked for in parts of this size.
const SEGMENT_BYTES: u64 = 8 << 20;
const CONNECTIONS: usize = 4;
/// Of a segment that wait in memory.
const PIECES: usize = 8;

/// A part of the file on its way: pieces in order, or why there are no more.
struct Segment {
    /// Without this byte.
    until: u64,
    pieces: mpsc::Receiver<Result<bytes::Bytes, String>>,
}

/// The range that the first request asks for: from its first byte up to, without, its second.
pub(super) fn first(done: u64, size: u64) -> Option<(u64, Option<u64>)> {
    match (done, size - done) {
        (_, left) if left > SEGMENT_BYTES => Some((done, Some(done + SEGMENT_BYTES))),
        (0, _) => None,
        _ => Some((done, None)),
    }
}

/// `answer` is the first segment; the others are asked for where it came from.
pub(super) async fn read(
    clients: &Clients,
    address: &Address,
    answer: Response,
    sink: &mut Sink<'_>,
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Stop> {
    let size = sink.file().size;
    let token = address.token.clone().filter(|_| answer.url().origin() == address.url.origin());
    let there = Address { url: answer.url().clone(), token, repo: address.repo.clone() };
    let mut running = JoinSet::new();
    let mut next = sink.done() + SEGMENT_BYTES;
    let (said, pieces) = mpsc::channel(PIECES);
    let until = next;
    let first = sink.done();
    running.spawn(async move { pour(answer, until - first, &said).await });
    let mut ahead = VecDeque::from([Segment { until, pieces }]);
    loop {
        while ahead.len() < CONNECTIONS && next < size {
            let (from, until) = (next, size.min(next + SEGMENT_BYTES));
            let (said, pieces) = mpsc::channel(PIECES);
            let (clients, there) = (clients.clone(), there.clone());
            running.spawn(async move { ask(&clients, &there, from, until, size, &said).await });
            ahead.push_back(Segment { until, pieces });
            next = until;
        }
        let Some(mut segment) = ahead.pop_front() else { return Ok(()) };
        while let Some(piece) = segment.pieces.recv().await {
            let piece = piece.map_err(|why| Fault::Cut(format!("cut after {} bytes: {why}", sink.done())))?;
            sink.write(piece, report)?;
        }
        if sink.done() != segment.until {
            return Err(Fault::Cut(format!("cut after {} bytes", sink.done())).into());
        }
    }
}

type Said = mpsc::Sender<Result<bytes::Bytes, String>>;

/// Fetches one segment. Whoever does not listen any more has what it needs to know.
async fn ask(clients: &Clients, there: &Address, from: u64, until: u64, size: u64, said: &Said) {
    let answer = match follow(clients, there, Some((from, Some(until))), |_| Ok(())).await {
        Ok(answer) => answer,
        Err(fault) => return drop(said.send(Err(fault.why())).await),
    };
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return drop(said.send(Err(refusal(&answer, there).why())).await);
    }
    let range = answer.headers().get(CONTENT_RANGE).and_then(|range| content_range(range.to_str().ok()?));
    match range {
        Some((start, total)) if start == from && total.is_none_or(|total| total == size) => {
            pour(answer, until - from, said).await;
        }
        other => drop(said.send(Err(format!("asked for bytes from {from}, it sends {other:?}"))).await),
    }
}

/// At most `most` bytes of the answer: a segment must not run into the next.
async fn pour(mut answer: Response, most: u64, said: &Said) {
    let mut left = usize::try_from(most).unwrap_or(usize::MAX);
    while left > 0 {
        let piece = match answer.chunk().await {
            Ok(Some(mut piece)) => {
                piece.truncate(left);
                left -= piece.len();
                Ok(piece)
            }
            Ok(None) => return,
            Err(e) => {
                left = 0;
                Err(chain(&e.without_url()))
            }
        };
        if said.send(piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_large_is_asked_for_in_parts() {
        assert_eq!(first(0, SEGMENT_BYTES), None);
        assert_eq!(first(5, SEGMENT_BYTES), Some((5, None)));
        assert_eq!(first(0, SEGMENT_BYTES + 1), Some((0, Some(SEGMENT_BYTES))));
        assert_eq!(first(7, SEGMENT_BYTES + 8), Some((7, Some(SEGMENT_BYTES + 7))));
    }
}
