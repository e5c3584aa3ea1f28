//! A prediction's two durable moments in the store alone: create, then lease and finish, beside two plain fsyncs.

#[path = "common/disk.rs"]
mod disk;

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use prediction::{Event, Id, Map, Numbered, Outcome, Output, Request, Timestamp};
use store::{SqliteStore, Store};

/// Predictions behind the quantiles.
const SAMPLES: usize = 1000;

fn request() -> Request {
    Request {
        id: Id::random(),
        model: "pinion/echo".into(),
        version: "0".repeat(64),
        target: "echo".into(),
        input: Map::from_iter([("text".to_owned(), "hello there".into())]),
        seed: 1,
        created_at: Timestamp::now(),
        deadline: None,
        webhook: None,
        webhook_events_filter: None,
        origin: "http://127.0.0.1:5000".into(),
        stream_key: prediction::secret_text(52),
        streams: true,
    }
}

/// Create, lease, and append everything up to the end.
async fn create_and_finish(store: &SqliteStore) -> Duration {
    let request = request();
    let began = Instant::now();
    store.create(&request).await.expect("created");
    let leased = store.lease("bench", 1).await.expect("leased");
    let events = [Event::Started, Event::Output(Output::text("hello")), Event::Ended(Outcome::Succeeded)];
    let number = |(i, event)| Numbered { seq: i as u64 + 1, at: Timestamp::now(), event };
    let events: Vec<Numbered> = events.into_iter().enumerate().map(number).collect();
    let appended = store.append(&leased[0].prediction.request.id, leased[0].attempt, &events).await.expect("appended");
    assert_eq!(appended, store::Appended::Applied);
    began.elapsed()
}

fn durable(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = runtime.block_on(SqliteStore::open(&folder.path().join("bench.sqlite"))).expect("opens");
    let mut disk = disk::TwoFsyncs::beside(folder.path());
    let work = || runtime.block_on(create_and_finish(&store));
    for _ in 0..50 {
        work();
    }
    let (floor, times) = (0..SAMPLES).map(|_| (disk.time(), work())).unzip();
    disk::print_above_floor("create and finish in the store", floor, times);

    let mut group = criterion.benchmark_group("store");
    group.bench_function("two plain fsyncs", |b| b.iter_custom(|n| (0..n).map(|_| disk.time()).sum()));
    group.bench_function("create and finish", |b| b.iter_custom(|n| (0..n).map(|_| work()).sum()));
    group.finish();
}

criterion_group!(benches, durable);
criterion_main!(benches);
