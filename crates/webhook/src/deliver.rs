//! One signed POST, and what follows from its answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use egress::Egress;
use prediction::{Prediction, Timestamp, secret_text};
use store::feed::Feed;
use store::{Clock, Delivery, Store, StoreError};
use tokio::sync::OnceCell;

use crate::Render;
use crate::sign::signature;

/// The store's name for the secret that `GET /webhooks/default/secret` shows.
const SECRET: &str = "webhook";
/// Seconds before each further try: the last is about a minute after the prediction ended.
pub const RETRY_SECONDS: [i64; 6] = [1, 2, 4, 8, 16, 29];
/// Before the store is asked again after it failed.
const STORE_AGAIN: Duration = Duration::from_secs(2);

/// Scheme, host and port: those who share them share a fate. It is also all that a log may say of a webhook's URL, for
/// user, path and query are where receivers keep their secrets.
pub fn receiver(url: &str) -> String {
    url::Url::parse(url).map_or_else(|_| "what is no URL".to_owned(), |url| url.origin().ascii_serialization())
}

/// What carries the bytes: egress, or a test's stand-in.
#[async_trait]
pub trait Post: Send + Sync + 'static {
    async fn post(&self, url: &str, headers: &[(&str, String)], body: Vec<u8>) -> Result<u16, String>;
}

#[async_trait]
impl Post for Egress {
    async fn post(&self, url: &str, headers: &[(&str, String)], body: Vec<u8>) -> Result<u16, String> {
        Self::post(self, url, headers, body).await.map_err(|error| error.to_string())
    }
}

/// Where webhooks are written and sent.
pub struct Desk {
    pub store: Arc<dyn Store>,
    pub feed: Feed,
    pub clock: Clock,
    post: Arc<dyn Post>,
    render: Render,
    secret: OnceCell<String>,
}

impl Desk {
    pub fn new(store: Arc<dyn Store>, feed: Feed, post: Arc<dyn Post>, render: Render, clock: Clock) -> Self {
        Self { store, feed, clock, post, render, secret: OnceCell::new() }
    }

    /// For a webhook that is sent once.
    pub fn new_message() -> String {
        format!("msg_{}", secret_text(27))
    }

    /// Signs for this moment and sends; anything but a 2xx is an error with its reason.
    pub async fn send(&self, prediction: &Prediction, url: &str, message: &str) -> Result<(), String> {
        let body = (self.render)(prediction);
        let secret = self.secret.get_or_try_init(|| self.store.secret(SECRET)).await.map_err(|e| e.to_string())?;
        let seconds = (self.clock)().0.div_euclid(1_000_000);
        let signed = signature(secret, message, seconds, &body).ok_or("the signing secret is not usable")?;
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("webhook-id", message.to_owned()),
            ("webhook-timestamp", seconds.to_string()),
            ("webhook-signature", signed),
        ];
        match self.post.post(url, &headers, body).await {
            Ok(200..=299) => Ok(()),
            Ok(status) => Err(format!("answered {status}")),
            Err(why) => Err(why),
        }
    }

    /// One try at a completed webhook; when the next is due, if there is one. The row is settled when this returns.
    pub async fn try_completed(&self, row: &Delivery) -> Option<Timestamp> {
        let sent = match self.insist(|| self.store.get(&row.id)).await {
            Some(prediction) => self.send(&prediction, &row.url, &row.msg_id).await,
            None => Err("the prediction is not there any more".to_owned()),
        };
        let (id, to, tries) = (&row.id, receiver(&row.url), row.attempts + 1);
        let Err(why) = sent else {
            self.insist(|| self.store.outbox_done(row.key)).await;
            return None;
        };
        match RETRY_SECONDS.get(row.attempts as usize) {
            Some(seconds) => {
                tracing::info!(%id, to, tries, why, retry_s = seconds, "a webhook was not taken");
                let next = (self.clock)().plus_millis(seconds * 1000);
                self.insist(|| self.store.outbox_retry(row.key, next)).await;
                Some(next)
            }
            None => {
                tracing::warn!(%id, to, tries, why, "a webhook was not taken; that was the last try");
                self.insist(|| self.store.outbox_done(row.key)).await;
                None
            }
        }
    }

    /// Asks the store until it answers: what it was told decides whether a webhook is sent again.
    async fn insist<T, F: Future<Output = Result<T, StoreError>>>(&self, ask: impl Fn() -> F) -> T {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) => tracing::warn!(%error, "the outbox is not to be had; asking again"),
            }
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_log_says_where_a_webhook_goes_and_none_of_its_secrets() {
        for (url, said) in [
            ("https://user:word@hooks.example/T0/B0/XX?token=t#f", "https://hooks.example"),
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
            ("r8_secret", "what is no URL"),
        ] {
            assert_eq!(super::receiver(url), said);
        }
    }
}
