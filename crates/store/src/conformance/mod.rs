//! What every store must do, as facts. Each gets two handles on the same rows, so that nothing assumes one process, and
//! a clock that only the fact moves.
//!
//! A store runs them all with `store::conformance!(open)`, where `open` is an async function that returns new `Handles`.

mod appends;
mod files;
mod leases;
mod lists;
mod outbox;
mod rows;
mod runs;
mod sweeps;
mod tokens;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prediction::{Event, Id, Map, Numbered, Outcome, Output, Request, Timestamp};

pub use appends::*;
pub use files::*;
pub use leases::*;
pub use lists::*;
pub use outbox::*;
pub use rows::*;
pub use runs::*;
pub use sweeps::*;
pub use tokens::*;

use crate::files::FileRows;
use crate::{Clock, Store};

/// Two handles on the same rows; for a store that lives in one process both are the same.
pub struct Handles {
    pub one: Arc<dyn Store>,
    pub two: Arc<dyn Store>,
    /// The same two as keepers of files.
    pub files: [Arc<dyn FileRows>; 2],
    pub clock: HandClock,
    /// Whatever must live as long as the store: a temporary folder.
    pub keep: Box<dyn Any + Send>,
}

/// A clock that stands still until it is moved.
#[derive(Clone)]
pub struct HandClock(Arc<AtomicI64>);

/// 2023-11-14T22:13:20Z.
pub const START: Timestamp = Timestamp(1_700_000_000_000_000);

impl Default for HandClock {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(START.0)))
    }
}

impl HandClock {
    pub fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    pub fn advance_seconds(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    pub fn as_clock(&self) -> Clock {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// A request without anything special, `number` seconds after the start.
pub fn request(number: i64) -> Request {
    Request {
        id: Id(format!("p{number}")),
        model: "pinion/echo".into(),
        version: "v".into(),
        target: "echo".into(),
        input: Map::from_iter([("text".to_owned(), "hello".into())]),
        seed: 7,
        created_at: START.plus_millis(number * 1000),
        deadline: None,
        webhook: None,
        webhook_events_filter: None,
        origin: "http://127.0.0.1:5000".into(),
        stream_key: format!("k{number}"),
        streams: true,
    }
}

pub fn numbered(seq: u64, event: Event) -> Numbered {
    Numbered { seq, at: START.plus_millis(seq as i64), event }
}

/// `Started`, one text for each, and the end.
pub fn whole_run(texts: &[&str]) -> Vec<Numbered> {
    let texts = texts.iter().map(|text| Event::Output(Output::text(*text)));
    let events = std::iter::once(Event::Started).chain(texts).chain([Event::Ended(Outcome::Succeeded)]);
    events.zip(1..).map(|(event, seq)| numbered(seq, event)).collect()
}

/// One test per fact, in the module where it is called.
#[macro_export]
macro_rules! conformance {
    ($open:path) => {
        $crate::conformance! { $open =>
            a_created_prediction_is_read_back_as_it_was_asked_for
            an_id_is_taken_once
            what_is_not_there_is_none
            a_stream_key_finds_its_prediction
            creates_at_once_from_two_handles_are_all_kept
            the_row_is_the_fold_of_its_events
            a_batch_sent_again_changes_nothing
            a_gap_in_the_numbers_is_refused
            an_ended_prediction_takes_nothing_more
            nothing_after_the_end_is_kept
            events_are_read_from_a_number_on
            an_unknown_prediction_is_fenced
            the_oldest_is_leased_first
            a_lease_runs_out_and_the_next_attempt_fences_the_last
            a_renewed_lease_does_not_run_out
            what_somebody_else_has_is_lost
            a_release_gives_back_what_this_owner_holds
            two_handles_never_lease_the_same
            an_ended_prediction_is_neither_waiting_nor_leased
            a_cancel_of_a_waiting_prediction_ends_it
            a_cancel_of_a_leased_prediction_reaches_its_holder
            a_cancel_after_the_end_changes_nothing
            a_list_is_newest_first_in_pages_and_back
            a_list_keeps_to_its_times
            predictions_of_one_moment_are_listed_once_each
            an_end_with_a_webhook_is_in_the_outbox_once
            only_a_wanted_webhook_is_in_the_outbox
            a_delivery_keeps_its_message_id_until_it_is_done
            a_sweep_leaves_the_fact_and_removes_the_data
            a_sweep_touches_nothing_unfinished_young_or_unsent
            a_long_sweep_counts_each_once
            a_run_is_noted_replaced_and_outlives_the_sweep
            a_token_is_known_until_it_is_revoked
            a_token_name_is_used_once_at_a_time
            a_secret_is_made_once_whoever_asks_first
            a_file_is_read_back_until_it_is_deleted
            a_file_that_has_expired_is_gone_and_swept_once
            a_list_of_files_is_newest_first_in_pages_and_without_outputs
        }
    };
    ($open:path => $($fact:ident)*) => {
        $(#[tokio::test] async fn $fact() { $crate::conformance::$fact($open().await).await })*
    };
}
