//! `pinion cog` beside the real Cog server: the same requests to both, and every difference in status, header or body stands
//! on the list in docs/cog-differences.md with its reason, or the test fails. So it does when one on the list is gone.

mod compare;
pub mod container;
mod faults;
mod keys;
mod scenes;
mod surroundings;
pub mod wire;

use serde_json::Value;

use container::{Container, Start};
use scenes::Scenes;

/// Both servers through the same scenes. The real one has the schema that ours publishes.
fn both(start: Start, play: impl Fn(&Container, &mut Scenes)) -> (Scenes, Scenes) {
    let ours = Container::ours(start);
    let schema = ours.get("/openapi.json");
    let real = Container::real(start, &schema);
    let played = |container: &Container| {
        let mut scenes = Scenes::default();
        play(container, &mut scenes);
        scenes
    };
    (played(&ours), played(&real))
}

#[test]
fn every_difference_from_the_real_server_is_on_the_list() {
    let mut found = Vec::new();
    let mut note = |(ours, real): (Scenes, Scenes)| found.extend(compare::differences(&ours.0, &real.0));
    note(both(Start::default(), |container, scenes| {
        container.wait_for("READY");
        scenes::describes(container, scenes);
        scenes::answers(container, scenes);
        scenes::refuses(container, scenes);
        scenes::streams(container, scenes);
        scenes::runs_once(container, scenes);
        scenes::tells(container, scenes);
        scenes::ends_with_its_caller(container, scenes);
    }));
    note(both(Start { env: &[("WEBHOOK_AUTH_TOKEN", "secret")], ..Start::default() }, |container, scenes| {
        container.wait_for("READY");
        scenes::tells_with_a_token(container, scenes);
        scenes::loses_its_worker(container, scenes);
    }));
    let folder = tempfile::tempdir().unwrap();
    let never = folder.path().join("never");
    note(both(Start { load_waits_for: Some(&never), ..Start::default() }, |container, scenes| {
        container.wait_for("STARTING");
        scenes::is_not_ready(container, scenes, "starting");
    }));
    note(both(Start { load_fails: Some("torn weights"), ..Start::default() }, |container, scenes| {
        container.wait_for("SETUP_FAILED");
        scenes::is_not_ready(container, scenes, "setup failed");
    }));
    // The limit of no time is none.
    for seconds in ["1", "0"] {
        let env = [("COG_SETUP_TIMEOUT", seconds)];
        note(both(Start { load_waits_for: Some(&never), env: &env, ..Start::default() }, |container, scenes| {
            container.wait_for(if seconds == "0" { "STARTING" } else { "SETUP_FAILED" });
            scenes::is_loaded_within(container, scenes, seconds);
        }));
    }
    note(stops());
    let listed = compare::listed("cog-differences.md");
    let news = compare::unlisted(&found, &listed);
    assert!(news.is_empty(), "differences that are not in docs/cog-differences.md:\n{}", news.join("\n"));
    let gone = compare::stale(&found, &listed);
    assert!(gone.is_empty(), "in docs/cog-differences.md, and not so:\n{}", gone.join("\n"));
}

/// Each state has its own server, since each ends with it.
fn stops() -> (Scenes, Scenes) {
    let schema: Value = Container::ours(Start::default()).get("/openapi.json");
    let folder = tempfile::tempdir().unwrap();
    let (never, there) = (folder.path().join("never"), folder.path().join("there"));
    let played = |is_real: bool| {
        let start = |start: Start| if is_real { Container::real(start, &schema) } else { Container::ours(start) };
        let mut scenes = Scenes::default();
        let starting = start(Start { load_waits_for: Some(&never), ..Start::default() });
        starting.wait_for("STARTING");
        scenes.exit("SIGTERM while starting", starting.stop());
        let ready = start(Start::default());
        ready.wait_for("READY");
        scenes.exit("SIGTERM while ready", ready.stop());
        let failed = start(Start { load_fails: Some("torn"), ..Start::default() });
        failed.wait_for("SETUP_FAILED");
        scenes.exit("SIGTERM after a failed setup", failed.stop());
        let asked = start(Start::default());
        asked.wait_for("READY");
        let answer = asked.post("/shutdown", &[], &Value::Null);
        scenes.put("shutdown", serde_json::json!({ "status": answer.0, "body": answer.1 }));
        scenes.exit("after a shutdown", asked.exit());
        let busy = start(Start::default());
        busy.wait_for("READY");
        scenes::stops_when_busy(busy, &there, &mut scenes);
        let _ = std::fs::remove_file(&there);
        scenes
    };
    (played(false), played(true))
}
