//! The facts about cog.yaml: what is read, what is refused and with which words.

use super::*;

mod container;

const DEFAULT: &str = include_str!("../../../../cog.yaml");

fn model(keys: &str) -> String {
    format!("native:\n  models:\n    - {{ name: m, model: llama, weights: w, {keys} }}\n")
}

fn refusal(yaml: &str) -> String {
    Config::parse(yaml).expect_err(yaml).to_string()
}

#[test]
fn the_default_file_serves_the_tutorials_names_and_says_who_answers() {
    let config = Config::parse(DEFAULT).unwrap();
    let [served, whisper, _english, painter] = config.models.as_slice() else { panic!("four models") };
    assert_eq!((served.name.as_str(), served.model.as_str()), ("smollm2", "llama"));
    assert_eq!(served.weights, WeightsFrom::Locked("smollm2".into()));
    assert_eq!(served.names, ["pinion/smollm2", "meta/meta-llama-3-8b-instruct", "meta/meta-llama-3-70b-instruct"]);
    assert_eq!(served.versions["dp-cf05cc8e6e5b3c0bc6e1b6c9f5e4a2d8"], "meta/meta-llama-3-70b-instruct");
    let hosted = "4d50797290df275329f202e48c76360b3f22b08d28c196cbc54600319435f8d";
    assert_eq!((whisper.name.as_str(), whisper.versions[hosted].as_str()), ("whisper-base", "openai/whisper"));
    assert_eq!(painter.weights, WeightsFrom::Locked("sdxl".into()));
    assert_eq!(painter.versions.values().collect::<Vec<_>>(), ["stability-ai/sdxl"; 2]);
    assert!(served.description.contains("SmolLM2-135M-Instruct") && served.description.contains("NOT by Llama 3"));
    assert_eq!(config.limits, Limits::default(), "the file shows the defaults");
    assert_eq!(config.retention_seconds, RETENTION_SECONDS);
    assert_eq!((config.egress.allow_private, config.account.username.as_str()), (false, "pinion"));
    assert!(config.notes.is_empty(), "{:?}", config.notes);
    assert!(config.devices.is_empty(), "whatever the machine has");
}

#[test]
fn the_first_model_is_loaded_at_the_start_and_others_when_they_say_so() {
    let yaml = "native: { models: [\
        { name: a, model: llama, weights: w },\
        { name: b, model: llama, weights: w, keep_alive_seconds: 0 },\
        { name: c, model: llama, weights: w, pinned: true },\
        { name: d, model: llama, weights: w, preload: true, keep_alive_seconds: 300 }] }";
    let models = Config::parse(yaml).unwrap().models;
    let residency: Vec<_> = models.iter().map(|m| (m.pinned, m.preload, m.keep_alive_seconds)).collect();
    assert_eq!(
        residency,
        [(false, true, None), (false, false, Some(0)), (true, true, None), (false, true, Some(300))],
        "a to d"
    );
    let lazy = Config::parse(&model("preload: false")).unwrap();
    assert!(!lazy.models[0].preload);
}

#[test]
fn devices_have_budgets_and_models_may_be_bound_to_one() {
    let yaml = "native:\n  devices: [{ device: cpu, memory_bytes: 2000000000 }, { device: cuda }]\n  \
                models: [{ name: m, model: llama, weights: w, device: 'cuda:1' }]\n";
    let device = |device: &str, memory_bytes| Device { device: device.into(), memory_bytes };
    assert_eq!(Config::parse(yaml).unwrap().devices, [device("cpu", Some(2_000_000_000)), device("cuda", None)]);
}

#[test]
fn what_is_not_written_has_a_default() {
    let config = Config::parse(&model("device: 'cuda:1', precision: bf16, threads: 3, batch_invariant: true")).unwrap();
    let served = &config.models[0];
    assert_eq!(served.names, ["pinion/m"]);
    assert_eq!((served.device.as_deref(), served.precision.as_deref()), (Some("cuda:1"), Some("bf16")));
    assert!(served.batch_invariant);
    assert_eq!((served.threads, served.concurrency, served.context_tokens), (Some(3), None, None));
    let path = "native: { models: [{ name: m, model: llama, path: my/weights.gguf }] }";
    assert_eq!(Config::parse(path).unwrap().models[0].weights, WeightsFrom::Path("my/weights.gguf".into()));
    let synth = "native: { models: [{ name: m, model: llama, synth: llama-3-8b }] }";
    assert_eq!(Config::parse(synth).unwrap().models[0].weights, WeightsFrom::Synth("llama-3-8b".into()));
}

#[test]
fn a_refusal_names_key_value_and_limit() {
    let native = |keys: &str| format!("{}  {keys}\n", model(""));
    let cases: &[(String, &[&str])] = &[
        (native("limits: { waiting_predictions: 0 }"), &["native.limits.waiting_predictions: 0", "1 to 100000"]),
        (native("limits: { run_seconds: soon }"), &["native.limits.run_seconds: \"soon\"", "1 to 604800"]),
        (native("limits: { body_bytes: -1 }"), &["native.limits.body_bytes: -1", "1024 to 1073741824"]),
        (native("limits: { worker_silence_seconds: 1 }"), &["worker_silence_seconds: 1", "2 to 86400"]),
        (native("limits: { waiting: 3 }"), &["native.limits.waiting is not a key", "waiting_predictions"]),
        (native("limits: 3"), &["native.limits: 3 is not a mapping"]),
        (native("retention_seconds: 1.5"), &["native.retention_seconds: 1.5", "1 to 315360000"]),
        (native("egress: { allow_private: 'yes' }"), &["native.egress.allow_private: \"yes\"", "true or false"]),
        (native("account: { user: x }"), &["native.account.user is not a key", "username, name"]),
        (native("account: { username: 'a/b c' }"), &["native.account.username: \"a/b c\"", "owner of models"]),
        (native("modles: []"), &["native.modles is not a key"]),
        ("native: { models: [] }".into(), &["native.models is empty"]),
        ("native: { models: [3] }".into(), &["native.models[0]: 3 is not a mapping"]),
        ("".into(), &["native.models is empty"]),
        ("[]".into(), &["is not a mapping"]),
        ("native: { a: 1, a: 2 }".into(), &["duplicate entry"]),
        ("native: {".into(), &["at line "]),
        (model("context_tokens: 1"), &["native.models[0].context_tokens: 1", "16 to 1048576"]),
        (model("concurrency: 5000"), &["concurrency: 5000", "1 to 1024"]),
        (model("precision: int3"), &["precision: \"int3\"", "f32, f16 or bf16"]),
        (model("device: tpu"), &["device: \"tpu\"", "cuda:N"]),
        (model("device: 'cuda:x'"), &["device: \"cuda:x\""]),
        (model("device: 'cuda:01'"), &["device: \"cuda:01\""]),
        (model("pinned: 1"), &["native.models[0].pinned: 1", "true or false"]),
        (model("preload: often"), &["native.models[0].preload: \"often\"", "true or false"]),
        (model("keep_alive_seconds: -1"), &["keep_alive_seconds: -1", "0 to 31536000"]),
        (model("pinned: true, keep_alive_seconds: 5"), &["keep_alive_seconds: 5", "pinned model never leaves"]),
        (model("pinned: true, preload: false"), &["preload: false", "a pinned model is loaded at the start"]),
        (native("devices: { device: cpu }"), &["native.devices: {", "a list is expected"]),
        (native("devices: [{ memory_bytes: 2000000 }]"), &["native.devices[0].device is missing"]),
        (native("devices: [{ device: gpu }]"), &["native.devices[0].device: \"gpu\"", "cpu, cuda or cuda:N"]),
        (
            native("devices: [{ device: cpu }, { device: cpu }]"),
            &["native.devices[1].device: \"cpu\"", "already, as cpu"],
        ),
        (native("devices: [{ device: 'cuda:1' }, { device: cuda }]"), &["devices[1].device: \"cuda\"", "as cuda:1"]),
        (
            native("devices: [{ device: cpu, memory_bytes: 1000 }]"),
            &["memory_bytes: 1000", "1048576 to 17592186044416"],
        ),
        (native("devices: [{ device: cpu, memory_bytes: 4 GB }]"), &["memory_bytes: \"4 GB\"", "a whole number"]),
        (native("host_cache_gb: -1"), &["native.host_cache_gb: -1", "from 0 on"]),
        (native("host_cache_gb: all of it"), &["native.host_cache_gb: \"all of it\"", "a number of gigabytes"]),
        (native("devices: [{ device: cpu, gigabytes: 4 }]"), &["devices[0].gigabytes is not a key", "memory_bytes"]),
        (
            format!("{}  devices: [{{ device: cpu }}]\n", model("device: cuda")),
            &["native.models[0].device: \"cuda\"", "native.devices uses only cpu"],
        ),
        (model("path: x"), &["exactly one of `weights`, `path` and `synth`"]),
        (model("synth: x"), &["exactly one of `weights`, `path` and `synth`"]),
        (model("names: [smollm2]"), &["names: \"smollm2\"", "owner/name"]),
        (model("names: [a/b, a/b]"), &["names: \"a/b\" stands there twice"]),
        (model("versions: { v1: other/name }"), &["versions.v1: \"other/name\"", "pinion/m"]),
        (model("versions: { 'a/b': pinion/m }"), &["versions.a/b", "no white space"]),
        (model("colour: red"), &["native.models[0].colour is not a key", "context_tokens"]),
        ("native: { models: [{ model: llama, weights: w }] }".into(), &["native.models[0].name is missing"]),
        ("native: { models: [{ name: 'a b', model: llama, weights: w }] }".into(), &["name: \"a b\""]),
    ];
    for (yaml, parts) in cases {
        let refusal = refusal(yaml);
        for part in *parts {
            assert!(refusal.contains(part), "{yaml}\n{refusal}\nlacks: {part}");
        }
    }
}

#[test]
fn limits_of_files_and_the_form_of_outputs_are_read_and_kept_in_their_ranges() {
    let with = |keys: &str| format!("{}  {keys}\n", model(""));
    let config = Config::parse(&with("limits: { file_bytes: 5000, fetch_seconds: 7 }")).unwrap();
    let files = FileLimits { file_bytes: 5000, fetch_seconds: 7, ..FileLimits::default() };
    assert_eq!((config.limits.files, config.output_files), (files, OutputFiles::Auto));
    let config = Config::parse(&with("output_files: url")).unwrap();
    assert_eq!(config.output_files, OutputFiles::Url);
    let said = refusal(&with("output_files: ftp"));
    assert!(said.contains("output_files") && said.contains("auto, data or url"), "{said}");
    let said = refusal(&with("limits: { input_bytes: 1 }"));
    assert!(said.contains("input_bytes") && said.contains("from 1024"), "{said}");
}
