//! A worker that says files, and what dispatch hears of it.

use dispatch::Gone;
use prediction::{Job, Outcome};
use schema::Output as Shape;
use serde_json::json;
use store::MemoryStore;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;

/// A worker whose part the test speaks.
struct Stage(UnboundedSender<(UnboundedReceiver<ToWorker>, UnboundedSender<FromWorker>)>);

impl Launch for Stage {
    fn launch(&self, _: &str) -> io::Result<Link> {
        let (to, hears) = unbounded_channel();
        let (says, from) = unbounded_channel();
        self.0.send((hears, says)).map_err(io::Error::other)?;
        Ok(Link { to: Box::new(move |frame| to.send(frame).map_err(|_| Gone)), from })
    }
}

struct Bench {
    folder: TempDir,
    files: Files,
    link: Link,
    hears: UnboundedReceiver<ToWorker>,
    says: UnboundedSender<FromWorker>,
}

impl Bench {
    /// Serves `images` (a list of files) and `text`.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(Arc::new(MemoryStore::new()), folder.path()).await.unwrap();
        let shape = |output| ModelSchema { input: Vec::new(), output };
        let schemas = [("images".to_owned(), shape(Shape::UriList)), ("text".to_owned(), shape(Shape::TextIterator))];
        let (launched, mut stage) = unbounded_channel();
        let link = Keeping::new(Arc::new(Stage(launched)), files.clone(), 60, schemas).launch("cpu").unwrap();
        let (hears, says) = stage.try_recv().unwrap();
        Self { folder, files, link, hears, says }
    }

    fn admit(&mut self, target: &str, id: &str) {
        let job = Job { id: Id::from(id), input: Map::new(), seed: 1 };
        (self.link.to)(ToWorker::Admit { target: target.into(), attempt: 1, job }).unwrap();
        assert!(matches!(self.hears.try_recv(), Ok(ToWorker::Admit { .. })), "the worker is told");
    }

    async fn passes(&mut self, id: &str, event: Event) -> Event {
        self.says.send(FromWorker::Events(vec![Emitted { id: Id::from(id), attempt: 1, event }])).unwrap();
        match self.link.from.recv().await {
            Some(FromWorker::Events(mut events)) => events.remove(0).event,
            other => panic!("{other:?}"),
        }
    }

    async fn content(&self, reference: &Value) -> (File, Vec<u8>) {
        let id = store::files::referred(reference.as_str().unwrap()).unwrap();
        let file = self.files.get(id).await.unwrap().unwrap();
        let bytes = std::fs::read(self.files.path(&file)).unwrap();
        (file, bytes)
    }
}

fn whole(value: Value) -> Event {
    Event::Output(Output::Whole(value))
}

#[tokio::test]
async fn data_uris_become_files_where_the_schema_says_files() {
    let mut bench = Bench::new().await;
    bench.admit("images", "p");
    let said =
        whole(json!(["data:image/png;base64,aGk=", "https://gears.example/kept", "data:image/png;name=b c.png,x"]));
    let Event::Output(Output::Whole(output)) = bench.passes("p", said).await else { panic!("no output") };
    let (file, bytes) = bench.content(&output[0]).await;
    assert_eq!(
        (file.name.as_str(), file.content_type.as_str(), bytes.as_slice()),
        ("out-0.png", "image/png", &b"hi"[..])
    );
    assert_eq!((file.kind, file.expires_at), (FileKind::Output, file.created_at.plus_millis(60_000)));
    assert_eq!(output[1], "https://gears.example/kept");
    assert_eq!(bench.content(&output[2]).await.0.name, "b_c.png");
}

#[tokio::test]
async fn text_that_looks_like_a_file_stays_text() {
    let mut bench = Bench::new().await;
    bench.admit("text", "p");
    let said = Event::Output(Output::text("data:image/png;base64,aGk="));
    assert_eq!(bench.passes("p", said.clone()).await, said);
    let stranger = whole(json!(["data:,x"]));
    assert_eq!(bench.passes("unknown", stranger.clone()).await, stranger);
}

#[tokio::test]
async fn what_cannot_be_stored_stays_in_the_output() {
    let mut bench = Bench::new().await;
    bench.admit("images", "p");
    std::fs::remove_dir_all(bench.folder.path()).unwrap();
    let said = whole(json!(["data:image/png;base64,aGk="]));
    assert_eq!(bench.passes("p", said.clone()).await, said);
    let broken = whole(json!(["data:image/png;base64,&"]));
    assert_eq!(bench.passes("p", broken.clone()).await, broken);
}

#[tokio::test]
async fn everything_else_passes_in_order_and_both_ends_end_together() {
    let mut bench = Bench::new().await;
    bench.admit("images", "p");
    bench.says.send(FromWorker::Heartbeat).unwrap();
    bench.says.send(FromWorker::Events(vec![])).unwrap();
    assert_eq!(bench.link.from.recv().await, Some(FromWorker::Heartbeat));
    assert_eq!(bench.link.from.recv().await, Some(FromWorker::Events(vec![])));
    let end = Event::Ended(Outcome::Succeeded);
    assert_eq!(bench.passes("p", end.clone()).await, end);
    let Bench { link, mut hears, says, .. } = bench;
    drop(link);
    assert_eq!(hears.recv().await, None, "the worker's link is dropped");
    says.closed().await;
    let mut other = Bench::new().await;
    drop(other.says);
    assert_eq!(other.link.from.recv().await, None, "a worker that ended is heard to have ended");
}
