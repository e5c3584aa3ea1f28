//! Output files put where `--upload-url` says, one after the other. Knows nothing of how the model goes on.

use std::time::Duration;

use egress::{Call, Egress};
use serde_json::Value;

/// For one file.
const UPLOAD: Duration = Duration::from_secs(25);

/// What an output file is called: after its place in the output, what the model calls it, and its type.
pub type Naming = fn(&str, Option<&str>, &str) -> String;

/// Where the files of one prediction are put.
pub struct Shelf<'a> {
    pub egress: &'a Egress,
    pub base: &'a str,
    /// The prediction's, as its caller knows it.
    pub id: &'a str,
    pub naming: Naming,
    /// Where the piece stands in the whole output: no two files without a name have the same place there.
    pub within: &'a str,
}

impl Shelf<'_> {
    /// Puts the data URIs at `places` of a piece of output; each is then where it was put. Ends with the first that cannot
    /// be.
    pub async fn put(&self, places: &[String], output: &mut Value) -> Result<(), String> {
        for place in places {
            let Some(Value::String(text)) = output.pointer_mut(place) else { continue };
            if egress::is_data(text) {
                *text = self.one(place, std::mem::take(text)).await?;
            }
        }
        Ok(())
    }

    async fn one(&self, place: &str, uri: String) -> Result<String, String> {
        // Megabytes of base64 are work for a thread that may block.
        let decoded = tokio::task::spawn_blocking(move || egress::data(&uri, u64::MAX)).await;
        let data = decoded.map_err(|error| error.to_string())?.map_err(|error| format!("the output {error}"))?;
        let name = (self.naming)(&format!("{}{place}", self.within), data.name.as_deref(), &data.content_type);
        let url = format!("{}/{name}", self.base.trim_end_matches('/'));
        let headers = [("content-type", data.content_type), ("x-prediction-id", self.id.to_owned())];
        let call = Call { url: &url, headers: &headers, body: data.bytes, within: UPLOAD };
        let answer = self.egress.put_within(call).await.map_err(|error| format!("upload request failed: {error}"))?;
        match answer.status {
            200..=299 => Ok(without_query(answer.location.as_deref().unwrap_or(&url)).to_owned()),
            status => Err(format!("upload returned status {status}")),
        }
    }
}

/// What is behind the `?` signed the upload.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}
