//! What deploys Pinion: Dockerfiles, compose files and the chart are linted and validated by the tools of those who read them,
//! and what they say of the program is true of the program. Knows no container runtime: there is none where tests run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::cog::container::{Container, Start};
use crate::cog::wire::{self, Request};
use crate::support::{clients, output_of, pinion, tests_folder};

fn root() -> PathBuf {
    tests_folder().join("..").canonicalize().unwrap()
}

/// What the chart makes of several values, after all was found in order.
fn manifests() -> Vec<Value> {
    let mut check = Command::new(clients().join("lint/bin/python"));
    let made = output_of(check.arg(tests_folder().join("deploy/check.py")).arg(root()));
    made.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn containers(manifests: &[Value]) -> impl Iterator<Item = &Value> {
    manifests.iter().filter_map(|manifest| manifest.pointer("/spec/template/spec/containers/0"))
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_chart_is_valid_and_says_what_the_program_knows() {
    let manifests = manifests();
    let kinds = |kind: &str| manifests.iter().filter(|manifest| manifest["kind"] == kind).count();
    assert_eq!(["Deployment", "Service", "PersistentVolumeClaim", "ScaledObject"].map(kinds), [3, 3, 2, 1]);
    let container = Container::ours(Start::default());
    container.wait_for("READY");
    for deployed in containers(&manifests) {
        for probe in ["startupProbe", "readinessProbe"] {
            let path = deployed[probe]["httpGet"]["path"].as_str().unwrap();
            assert_eq!(wire::open(&container.base, &Request::new("GET", path)).code, 200, "{probe}");
        }
        let live = words(&deployed["livenessProbe"]["exec"]["command"]);
        assert_eq!(live[0], "pinion");
        output_of(pinion().args(&live[1..]).args(["--server", &container.base]));
        // The words are understood; these print and end.
        let start = words(&deployed["args"]);
        assert_eq!(start[..2], ["pinion", "cog"]);
        output_of(pinion().current_dir(root().join("deploy")).args(&start[1..]).arg("--labels"));
    }
    let scaled = manifests.iter().find(|manifest| manifest["kind"] == "ScaledObject").unwrap();
    let query = scaled["spec"]["triggers"][0]["metadata"]["query"].as_str().unwrap();
    let metric = query.strip_prefix("sum(").and_then(|query| query.split('{').next()).unwrap();
    let metrics = wire::open(&container.base, &Request::new("GET", "/metrics")).rest();
    assert!(metrics.contains(&format!("# TYPE {metric} gauge\n{metric} 0\n")), "{query}: {metrics}");
    let annotations = &manifests.iter().find(|manifest| manifest["kind"] == "Deployment").unwrap()["spec"]["template"];
    assert_eq!(annotations["metadata"]["annotations"]["prometheus.io/path"], "/metrics");
}

#[test]
fn the_figure_that_pods_are_added_by_is_the_queue() {
    let container = Container::ours(Start { words: &["--queue"], ..Start::default() });
    container.wait_for("READY");
    for id in ["a", "b", "c"] {
        let body = json!({ "id": id, "input": { "text": "x", "hold": true } });
        assert_eq!(container.post("/predictions", &[("Prefer", "respond-async")], &body).0, 202);
    }
    let waiting = || {
        let metrics = wire::open(&container.base, &Request::new("GET", "/metrics")).rest();
        metrics.lines().find_map(|line| line.strip_prefix("pinion_cog_waiting ")).map(str::to_owned)
    };
    crate::processes::until("two wait", || (waiting().as_deref() == Some("2")).then_some(()));
}

#[test]
fn the_images_say_of_themselves_what_the_program_says() {
    let file = root().join("deploy/cog.yaml");
    let labels = output_of(pinion().args(["cog", "--labels", "--file"]).arg(&file));
    for name in ["Dockerfile", "Dockerfile.cuda"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        assert!(
            text.contains(&format!("\n{labels}")),
            "{name} has other labels than `pinion cog --file deploy/cog.yaml --labels` prints"
        );
        assert!(text.contains("\nCOPY deploy/cog.yaml /src/cog.yaml\n"), "{name}");
        let shared = |text: &str| text.split_once("COPY --from=build /out/ /usr/local/").unwrap().1.to_owned();
        assert_eq!(shared(&text), shared(&fs::read_to_string(root().join("Dockerfile")).unwrap()), "{name}");
    }
}
