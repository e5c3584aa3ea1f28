//! The one writer: takes whatever waits, applies it in one transaction, commits once, then tells everybody.
//!
//! One fsync therefore serves every caller that came while the last one ran. Knows nothing of what a change does.

use std::future::Future;
use std::pin::Pin;

use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use super::checkpoint::Checkpoints;
use crate::StoreError;

/// Changes in one transaction.
const GROUP_CHANGES: usize = 256;
/// Changes that may wait for the writer before callers wait to hand theirs in.
const WAITING_CHANGES: usize = 1024;

/// Something done to rows, whole or not at all.
pub(super) trait Change: Send + Sync + 'static {
    type Answer: Send + 'static;

    /// Whether the answer is a promise that outlives a power cut. Others are kept in order, and soon.
    fn is_durable(&self) -> bool;

    /// The bulk of what it writes, on top of the few pages that every change touches.
    fn bytes(&self) -> usize {
        0
    }

    /// May run twice, the first time in a transaction that was undone.
    fn apply(&self, rows: &mut SqliteConnection) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

pub(super) enum Failure {
    /// The transaction cannot go on, for nobody in it.
    Broke(sqlx::Error),
    /// This change was refused before it touched anything; the others go on.
    Refused(StoreError),
}

impl From<sqlx::Error> for Failure {
    fn from(why: sqlx::Error) -> Self {
        Self::Broke(why)
    }
}

impl From<StoreError> for Failure {
    fn from(why: StoreError) -> Self {
        Self::Refused(why)
    }
}

#[derive(Clone)]
pub(super) struct Writer {
    inbox: mpsc::Sender<Message>,
}

enum Message {
    Change(Box<dyn Task>),
    Close(oneshot::Sender<()>),
}

impl Writer {
    pub(super) fn start(rows: SqliteConnection, checkpoints: SqliteConnection) -> Self {
        let (inbox, waiting) = mpsc::channel(WAITING_CHANGES);
        let checkpoints = Checkpoints::start(checkpoints);
        tokio::spawn(Loop { rows, waiting, checkpoints, syncs: None }.run());
        Self { inbox }
    }

    /// Done and committed, or refused, when it returns.
    pub(super) async fn commit<C: Change>(&self, change: C) -> Result<C::Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        let task = Box::new(Pending { change, reply, answer: None });
        let gone = |_| StoreError::Unavailable("it is closed".into());
        self.inbox.send(Message::Change(task)).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }

    pub(super) async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.inbox.send(Message::Close(reply)).await.is_ok() {
            let _ = done.await;
        }
    }
}

struct Loop {
    rows: SqliteConnection,
    waiting: mpsc::Receiver<Message>,
    checkpoints: Checkpoints,
    /// Whether a commit waits for the disk now, the connection's `synchronous`, if that is known.
    syncs: Option<bool>,
}

impl Loop {
    async fn run(mut self) {
        let mut closing = None;
        while closing.is_none() {
            let Some(mut message) = self.waiting.recv().await else { break };
            let mut group = Vec::new();
            loop {
                match message {
                    Message::Change(task) => group.push(task),
                    Message::Close(reply) => {
                        self.waiting.close();
                        closing = Some(reply);
                    }
                }
                if group.len() == GROUP_CHANGES {
                    break;
                }
                let Ok(next) = self.waiting.try_recv() else { break };
                message = next;
            }
            self.commit(group).await;
        }
        self.checkpoints.finish(&mut self.rows).await;
        let _ = sqlx::Connection::close(self.rows).await;
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    async fn commit(&mut self, mut group: Vec<Box<dyn Task>>) {
        let (changes, bytes) = (group.len(), group.iter().map(|task| task.bytes()).sum());
        match self.transaction(&mut group).await {
            Ok(()) => group.into_iter().for_each(|task| task.tell()),
            Err(why) if group.len() == 1 => group.into_iter().for_each(|task| task.fail(&why)),
            // One of them may be at fault: each on its own, so that it fails alone.
            Err(_) => {
                for task in group {
                    let mut alone = [task];
                    let done = self.transaction(&mut alone).await;
                    let [task] = alone;
                    match done {
                        Ok(()) => task.tell(),
                        Err(why) => task.fail(&why),
                    }
                }
            }
        }
        self.checkpoints.wrote(changes, bytes, &mut self.rows).await;
    }

    async fn transaction(&mut self, group: &mut [Box<dyn Task>]) -> Result<(), sqlx::Error> {
        let done = self.attempt(group).await;
        if done.is_err() {
            // After some errors SQLite has rolled back by itself and says so: that is as good.
            let _ = sqlx::query("ROLLBACK").execute(&mut self.rows).await;
        }
        done
    }

    async fn attempt(&mut self, group: &mut [Box<dyn Task>]) -> Result<(), sqlx::Error> {
        let durable = group.iter().any(|task| task.is_durable());
        let begin = self.begin(durable);
        self.syncs = None;
        sqlx::query(begin).execute(&mut self.rows).await?;
        self.syncs = Some(durable);
        for task in group {
            task.apply(&mut self.rows).await?;
        }
        sqlx::query("COMMIT").execute(&mut self.rows).await?;
        Ok(())
    }

    /// In write-ahead mode NORMAL leaves the fsync out and keeps the order: a later durable commit covers it too.
    fn begin(&self, durable: bool) -> &'static str {
        match durable {
            _ if self.syncs == Some(durable) => "BEGIN IMMEDIATE",
            true => "PRAGMA synchronous = FULL; BEGIN IMMEDIATE",
            false => "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE",
        }
    }
}

/// A change with its caller, whatever the types.
trait Task: Send {
    fn is_durable(&self) -> bool;
    fn bytes(&self) -> usize;
    fn apply<'a>(&'a mut self, rows: &'a mut SqliteConnection) -> Applying<'a>;
    fn tell(self: Box<Self>);
    fn fail(self: Box<Self>, why: &sqlx::Error);
}

type Applying<'a> = Pin<Box<dyn Future<Output = Result<(), sqlx::Error>> + Send + 'a>>;

struct Pending<C: Change> {
    change: C,
    reply: oneshot::Sender<Result<C::Answer, StoreError>>,
    answer: Option<Result<C::Answer, StoreError>>,
}

impl<C: Change> Task for Pending<C> {
    fn is_durable(&self) -> bool {
        self.change.is_durable()
    }

    fn bytes(&self) -> usize {
        self.change.bytes()
    }

    fn apply<'a>(&'a mut self, rows: &'a mut SqliteConnection) -> Applying<'a> {
        Box::pin(async move {
            self.answer = Some(match self.change.apply(rows).await {
                Ok(answer) => Ok(answer),
                Err(Failure::Refused(why)) => Err(why),
                Err(Failure::Broke(why)) => return Err(why),
            });
            Ok(())
        })
    }

    fn tell(self: Box<Self>) {
        if let Some(answer) = self.answer {
            // A caller that went away has its change all the same.
            let _ = self.reply.send(answer);
        }
    }

    fn fail(self: Box<Self>, why: &sqlx::Error) {
        let _ = self.reply.send(Err(super::rows::unavailable(why)));
    }
}
