//! Output files put where `--upload-url` says, one after the other. Knows nothing of how long the model still runs.

use std::time::Duration;

use egress::{Call, Egress};
use serde_json::Value;

/// For one file.
const UPLOAD: Duration = Duration::from_secs(25);

/// What was put for one prediction.
#[derive(Default)]
pub struct Uploads {
    /// Why the first file that could not be put was not.
    pub failed: Option<String>,
}

impl Uploads {
    /// Puts the data URIs at `places` of a piece of output; each is then where it was put. Nothing more is tried after a
    /// failure.
    pub async fn put(
        &mut self,
        egress: &Egress,
        base: &str,
        id: &str,
        naming: fn(&str, Option<&str>, &str) -> String,
        (places, value): (&[String], &mut Value),
    ) -> bool {
        for place in places {
            let Some(Value::String(text)) = value.pointer_mut(place) else { continue };
            if self.failed.is_none() && egress::is_data(text) {
                match one(egress, base, id, naming, place, std::mem::take(text)).await {
                    Ok(url) => *text = url,
                    Err(why) => self.failed = Some(why),
                }
            }
        }
        self.failed.is_none()
    }
}

async fn one(
    egress: &Egress,
    base: &str,
    id: &str,
    naming: fn(&str, Option<&str>, &str) -> String,
    place: &str,
    uri: String,
) -> Result<String, String> {
    // Megabytes of base64 are work for a thread that may block.
    let decoded = tokio::task::spawn_blocking(move || egress::data(&uri, u64::MAX)).await;
    let data = decoded.map_err(|error| error.to_string())?.map_err(|error| format!("the output {error}"))?;
    let name = naming(place, data.name.as_deref(), &data.content_type);
    let url = format!("{}/{name}", base.trim_end_matches('/'));
    let headers = [("content-type", data.content_type), ("x-prediction-id", id.to_owned())];
    let call = Call { url: &url, headers: &headers, body: data.bytes, within: UPLOAD };
    let answer = egress.put_within(call).await.map_err(|error| format!("upload request failed: {error}"))?;
    match answer.status {
        200..=299 => Ok(without_query(answer.location.as_deref().unwrap_or(&url)).to_owned()),
        status => Err(format!("upload returned status {status}")),
    }
}

/// What is behind the `?` signed the upload.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}
