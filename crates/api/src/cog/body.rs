//! A prediction as this API writes it: the real server's keys, and those of the servers before it, which clients still read.

use prediction::{Map, Prediction, Status, Timestamp};
use serde_json::Value;

/// The ended prediction, or a snapshot of one that runs.
pub fn whole(id: &str, prediction: &Prediction) -> Value {
    let request = &prediction.request;
    let moment = |moment: Option<Timestamp>| moment.map(Timestamp::rfc3339).into();
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.into(), value);
    put("completed_at", moment(prediction.completed_at));
    put("created_at", moment(Some(request.created_at)));
    put("error", prediction.error.clone().into());
    put("id", id.into());
    put("input", request.input.clone().into());
    put("logs", prediction.logs.as_str().into());
    put("metrics", metrics(prediction).into());
    put("output", prediction.output.clone().unwrap_or_default());
    put("started_at", moment(prediction.started_at));
    put("status", status(prediction).into());
    put("version", Value::Null);
    body.into()
}

/// What a 202 to a new prediction says.
pub fn accepted(id: &str) -> Value {
    serde_json::json!({ "id": id, "status": "starting" })
}

fn status(prediction: &Prediction) -> &'static str {
    match prediction.status {
        // A caller who set no deadline never sees it; there is none here.
        Status::Aborted => Status::Canceled.as_str(),
        status => status.as_str(),
    }
}

/// What the model measured, a dotted name as a tree; and how long it ran, which nothing overrides.
fn metrics(prediction: &Prediction) -> Map {
    let mut metrics = Map::new();
    for (name, value) in &prediction.metrics {
        // Of the hosted API only.
        if name != "total_time" {
            nest(&mut metrics, name, value);
        }
    }
    metrics
}

fn nest(into: &mut Map, name: &str, value: &Value) {
    match name.split_once('.') {
        Some((first, rest)) if !rest.is_empty() => {
            let inner = into.entry(first).or_insert_with(|| Map::new().into());
            if !inner.is_object() {
                *inner = Map::new().into();
            }
            if let Value::Object(inner) = inner {
                nest(inner, rest, value);
            }
        }
        _ if value.is_null() => drop(into.shift_remove(name)),
        _ => drop(into.insert(name.to_owned(), value.clone())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dotted_metrics_are_a_tree_and_null_takes_one_away() {
        let mut tree = Map::new();
        for (name, value) in [("a", json!(1)), ("t.pre", json!(2)), ("t.post.x", json!(3)), ("a", Value::Null)] {
            nest(&mut tree, name, &value);
        }
        assert_eq!(Value::from(tree), json!({ "t": { "pre": 2, "post": { "x": 3 } } }));
    }
}
