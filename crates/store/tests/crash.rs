//! `kill -9` at any moment: whatever was acknowledged is there after it, and everything there is of one piece.
//!
//! The test starts itself again as a child that writes and says what was acknowledged, and kills it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prediction::{Event, Id, Map, Numbered, Outcome, Output, Prediction, Request, Timestamp, secret_text};
use store::{Appended, CancelOutcome, ListQuery, SqliteStore, Store};

/// Where the child writes; unset in the parent.
const FOLDER: &str = "PINION_TEST_CRASH_FOLDER";
const KILLS: u32 = 8;
const WRITERS: usize = 6;

fn request(number: u32) -> Request {
    Request {
        id: Id::random(),
        model: "pinion/echo".into(),
        version: "v".into(),
        target: "echo".into(),
        input: Map::from_iter([("text".to_owned(), "x".repeat(number as usize % 9000).into())]),
        seed: 7,
        created_at: Timestamp::now(),
        deadline: None,
        webhook: number.is_multiple_of(2).then(|| "http://127.0.0.1:9/".into()),
        webhook_events_filter: None,
        origin: "http://127.0.0.1:5000".into(),
        stream_key: secret_text(26),
        streams: true,
    }
}

/// A line at once, so that what the parent reads was acknowledged before the kill.
fn say(what: &str, id: &Id) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{what} {id}").and_then(|()| out.flush());
}

async fn run_one(store: &SqliteStore, number: u32) {
    let asked = request(number);
    store.create(&asked).await.unwrap();
    say("created", &asked.id);
    if number.is_multiple_of(5) {
        let canceled = store.request_cancel(&asked.id).await.unwrap();
        assert!(matches!(canceled, CancelOutcome::Canceled(_)));
        say("ended", &asked.id);
        return;
    }
    let mut seq = 0;
    let mut next = |event| {
        seq += 1;
        Numbered { seq, at: Timestamp::now(), event }
    };
    for _ in 0..3 {
        let batch = [next(Event::Output(Output::text("word "))), next(Event::Log("line\n".into()))];
        assert_eq!(store.append(&asked.id, 0, &batch).await.unwrap(), Appended::Applied);
    }
    let end = [next(Event::Output(Output::text("last"))), next(Event::Ended(Outcome::Succeeded))];
    assert_eq!(store.append(&asked.id, 0, &end).await.unwrap(), Appended::Applied);
    say("ended", &asked.id);
}

async fn write_for_ever(folder: &Path) {
    let store = Arc::new(SqliteStore::open(&folder.join("store.db")).await.unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for number in 0.. {
                run_one(&store, number).await;
            }
        });
    }
    writers.join_all().await;
}

/// Writes until it is killed, after the parent has read enough lines.
fn start_child(folder: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "what_was_acknowledged_survives_a_kill", "--nocapture"]).env(FOLDER, folder);
    child.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Reads until `lines` were acknowledged, kills, and reads what was still in the pipe: that counts too.
fn kill_after(mut child: Child, lines: usize, said: &mut HashMap<Id, bool>) {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut count = 0;
    loop {
        let mut line = String::new();
        if out.read_line(&mut line).unwrap() == 0 {
            break;
        }
        // The last line may be cut.
        let whole = line.strip_suffix('\n').and_then(|line| line.split_once(' '));
        match whole {
            Some(("created", id)) => drop(said.entry(Id::from(id)).or_insert(false)),
            Some(("ended", id)) => drop(said.insert(Id::from(id), true)),
            _ => continue,
        }
        count += 1;
        if count == lines {
            // Off the beat of the commits.
            std::thread::sleep(Duration::from_micros(rand::random_range(0..3000)));
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(count >= lines, "the child stopped by itself after {count} lines");
}

async fn check(folder: &Path, said: &HashMap<Id, bool>) {
    let store = SqliteStore::open(&folder.join("store.db")).await.unwrap();
    for (id, ended) in said {
        let kept = store.get(id).await.unwrap().unwrap_or_else(|| panic!("{id} was acknowledged and is gone"));
        assert!(!ended || kept.status.is_terminal(), "the end of {id} was acknowledged and is gone");
    }
    let due = store.outbox_due(Timestamp(i64::MAX), usize::MAX >> 1).await.unwrap();
    let mut due: HashMap<Id, u32> = due.into_iter().map(|delivery| (delivery.id, 1)).collect();
    let mut query = ListQuery { page_size: 100, ..ListQuery::default() };
    let mut rows = 0;
    loop {
        let page = store.list(&query).await.unwrap();
        for row in page.predictions {
            rows += 1;
            let mut fold = Prediction::new(row.request.clone());
            for event in store.events(&row.request.id, 0).await.unwrap() {
                let _ = fold.apply(&event);
            }
            assert_eq!(fold, row, "the row is the fold of its events");
            let sends = row.status.is_terminal() && row.request.webhook.is_some();
            assert_eq!(due.remove(&row.request.id).is_some(), sends, "outbox of {}", row.request.id);
        }
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    assert!(due.is_empty() && rows >= said.len(), "{rows} rows, {} acknowledged, {due:?}", said.len());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return write_for_ever(Path::new(&folder)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut said = HashMap::new();
    for _ in 0..KILLS {
        let lines = rand::random_range(1..60);
        kill_after(start_child(folder.path()), lines, &mut said);
        check(folder.path(), &said).await;
    }
    assert!(said.values().any(|ended| *ended) && said.len() > KILLS as usize);
}
