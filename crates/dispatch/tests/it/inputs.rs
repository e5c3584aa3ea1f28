//! Predictions whose inputs have to be brought here first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dispatch::{Asked, Dispatch, Inputs, Prepared, Say};
use prediction::frame::ToWorker;
use prediction::{Id, Map, Request, Status};
use serde_json::json;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::puppet::*;

/// One preparation that the test ends as it likes.
struct Errand {
    asked: Asked,
    say: Say,
    end: oneshot::Sender<Result<Prepared, String>>,
}

/// Hands every preparation to the test; concerned with inputs that have a `file`.
struct Porter(mpsc::UnboundedSender<Errand>);

#[async_trait::async_trait]
impl Inputs for Porter {
    fn concerns(&self, _: &str, input: &Map) -> bool {
        input.contains_key("file")
    }

    async fn prepare(&self, asked: Asked, say: Say) -> Result<Prepared, String> {
        let (end, ended) = oneshot::channel();
        self.0.send(Errand { asked, say, end }).map_err(|_| "the test is over")?;
        ended.await.map_err(|_| "the test let go")?
    }
}

/// Says when it is dropped.
struct Kept(Arc<AtomicBool>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Errands(Mutex<mpsc::UnboundedReceiver<Errand>>);

impl Errands {
    async fn next(&self) -> Errand {
        self.0.lock().await.recv().await.expect("dispatch is there")
    }
}

async fn bench() -> (Bench, Errands) {
    let (errands, sent) = mpsc::unbounded_channel();
    (Bench::bringing(Arc::new(Porter(errands))).await, Errands(Mutex::new(sent)))
}

async fn submit(dispatch: &Dispatch, id: &str) {
    let input = Map::from_iter([("file".to_owned(), json!("https://gears.example/a.wav"))]);
    dispatch.submit(Request { input, ..request(id) }).await.unwrap();
}

fn local() -> Map {
    Map::from_iter([("file".to_owned(), json!("file:///inputs/a.wav"))])
}

#[tokio::test(start_paused = true)]
async fn a_model_gets_the_prepared_input_and_the_row_keeps_what_was_asked() {
    let (mut bench, errands) = bench().await;
    let mut worker = bench.loaded(1).await;
    submit(&bench.dispatch, "p").await;
    let errand = errands.next().await;
    assert_eq!((errand.asked.target.as_str(), errand.asked.origin.as_str()), ("echo", "http://127.0.0.1:5000"));
    (errand.say)("fetching file: 1 of 3 MB\n".into());
    settle().await;
    let waiting = bench.state("p").await;
    assert_eq!((waiting.status, waiting.logs.as_str()), (Status::Starting, "fetching file: 1 of 3 MB\n"));
    assert_eq!(bench.dispatch.health().waiting, 1);
    let gone = Arc::new(AtomicBool::new(false));
    let _ = errand.end.send(Ok(Prepared { input: local(), keep: Box::new(Kept(gone.clone())) }));
    let ToWorker::Admit { attempt, job, .. } = worker.frame().await else { panic!("not admitted") };
    assert_eq!(job.input, local());
    assert!(!gone.load(Ordering::SeqCst), "kept while it runs");
    worker.emits("p", attempt, [succeeded()]);
    let ended = bench.end("p").await;
    settle().await;
    assert!(gone.load(Ordering::SeqCst), "and no longer");
    assert_eq!(ended.request.input["file"], "https://gears.example/a.wav");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_file_holds_up_nobody() {
    let (mut bench, errands) = bench().await;
    let mut worker = bench.loaded(1).await;
    submit(&bench.dispatch, "slow").await;
    let errand = errands.next().await;
    bench.submit("quick").await;
    let (id, attempt) = worker.admits().await;
    assert_eq!(id, Id::from("quick"));
    worker.emits("quick", attempt, [succeeded()]);
    let _ = errand.end.send(Ok(Prepared { input: local(), keep: Box::new(()) }));
    assert_eq!(worker.admits().await.0, Id::from("slow"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_brought_is_the_predictions_error() {
    let (mut bench, errands) = bench().await;
    let mut worker = bench.loaded(1).await;
    submit(&bench.dispatch, "p").await;
    let _ = errands.next().await.end.send(Err("input file: answered 404 Not Found".into()));
    let ended = bench.end("p").await;
    assert_eq!((ended.status, ended.started_at), (Status::Failed, None));
    assert_eq!(ended.error.as_deref(), Some("input file: answered 404 Not Found"));
    assert!(worker.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_cancel_stops_the_errand() {
    let (mut bench, errands) = bench().await;
    let mut worker = bench.loaded(1).await;
    submit(&bench.dispatch, "p").await;
    let mut errand = errands.next().await;
    let canceled = bench.dispatch.cancel(&Id::from("p")).await.unwrap().unwrap();
    assert_eq!(canceled.status, Status::Canceled);
    errand.end.closed().await;
    assert!(worker.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_second_run_uses_what_is_here_already() {
    let (mut bench, errands) = bench().await;
    let mut worker = bench.loaded(1).await;
    submit(&bench.dispatch, "p").await;
    let _ = errands.next().await.end.send(Ok(Prepared { input: local(), keep: Box::new(()) }));
    worker.admits().await;
    drop(worker);
    let mut second = bench.worker().await;
    second.loads("echo", 1).await;
    let ToWorker::Admit { job, .. } = second.frame().await else { panic!("not admitted") };
    assert_eq!(job.input, local());
}
