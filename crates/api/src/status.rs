//! How the server stands: whether it serves, and for `pinion ps` its devices, models and queues. Of no hosted API: these two
//! are our own.

use std::sync::Arc;

use axum::extract::State;
use dispatch::{Health, ModelHealth, ModelState};
use serde_json::json;

use crate::{
    App,
    errors::{Answer, Problem, json_answer},
};

/// `dispatch::Health` as JSON.
pub async fn status(State(app): State<Arc<App>>) -> Answer {
    let health = serde_json::to_value(app.api.dispatch.health()).map_err(|error| {
        tracing::error!(%error, "the status cannot be written");
        Problem::internal()
    })?;
    Ok(json_answer(&health))
}

/// 200 once predictions can run; else a 503 that says what is missing.
pub async fn ready(State(app): State<Arc<App>>) -> Answer {
    match missing(&app.api.dispatch.health()).as_slice() {
        [] => Ok(json_answer(&json!({ "status": "ready" }))),
        missing => Err(Problem::unavailable(&format!("Not ready: {}.", missing.join("; ")))),
    }
}

/// Nothing can run without any worker, and a pinned model is promised to be there. Names, no reasons: this needs no token.
fn missing(health: &Health) -> Vec<String> {
    let workers = health.devices.iter().any(|device| device.worker) || health.devices.is_empty();
    let no_worker = (!workers).then(|| {
        let devices: Vec<&str> = health.devices.iter().map(|device| device.device.as_str()).collect();
        format!("the worker of {} is being started", devices.join(", "))
    });
    let models = health.devices.iter().flat_map(|device| &device.models);
    let pinned = models.filter(|model| model.pinned).filter_map(|ModelHealth { target, state, .. }| match state {
        ModelState::Loading { .. } => Some(format!("{target} is pinned and is being loaded")),
        ModelState::Failed { .. } => Some(format!("{target} is pinned and could not be loaded")),
        ModelState::Loaded { .. } | ModelState::Unloading => None,
    });
    no_worker.into_iter().chain(pinned).collect()
}

#[cfg(test)]
mod tests {
    use dispatch::DeviceHealth;

    use super::*;

    fn device(name: &str, worker: bool, models: Vec<ModelHealth>) -> DeviceHealth {
        DeviceHealth {
            device: name.into(),
            name: String::new(),
            worker,
            total_bytes: None,
            budget_bytes: None,
            used_bytes: 0,
            host_cache_bytes: 0,
            models,
        }
    }

    fn model(target: &str, pinned: bool, state: ModelState) -> ModelHealth {
        ModelHealth { target: target.into(), state, active: 0, idle_seconds: None, pinned }
    }

    fn missing_of(devices: Vec<DeviceHealth>) -> String {
        missing(&Health { devices, ..Health::default() }).join("; ")
    }

    #[test]
    fn one_worker_of_several_is_enough_and_none_is_not() {
        let devices = |one, other| vec![device("cuda:0", one, Vec::new()), device("cuda:1", other, Vec::new())];
        assert_eq!(missing_of(devices(true, false)), "");
        assert_eq!(missing_of(devices(false, false)), "the worker of cuda:0, cuda:1 is being started");
    }

    #[test]
    fn a_pinned_model_that_is_not_there_is_named_without_the_reason() {
        let failed = || ModelState::Failed { why: "no such file: a/secret/path".into() };
        let loading = ModelState::Loading { line: "reading".into() };
        let models = vec![
            model("a", true, failed()),
            model("b", true, loading.clone()),
            model("c", false, failed()),
            model("d", false, loading),
            model("e", true, ModelState::Loaded { bytes: 1, capacity: 1 }),
        ];
        assert_eq!(
            missing_of(vec![device("cpu", true, models)]),
            "a is pinned and could not be loaded; b is pinned and is being loaded"
        );
    }
}
