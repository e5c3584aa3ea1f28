//! The facts about Cog's own keys, of any year.

use super::*;

fn known(uri: &str) -> Option<(String, String)> {
    uri.starts_with("hf://known/").then(|| ("llama".to_owned(), "smollm2".to_owned()))
}

fn parse(yaml: &str) -> Result<Config, String> {
    Config::parse_with(yaml, &known).map_err(|error| error.to_string())
}

fn one(yaml: &str) -> Served {
    let config = parse(yaml).unwrap_or_else(|error| panic!("{yaml}\n{error}"));
    let [only] = config.models.as_slice() else { panic!("{yaml}: one model") };
    only.clone()
}

#[test]
fn keys_without_a_meaning_are_named_once_and_ignored() {
    let yaml = format!(
        "build: {{ gpu: false, cuda: '11.8', python_version: 3.7, pre_install: [x], fast: true }}\ntests: []\n\
         predict: 'predict.py:P'\ntrain: 'train.py:train'\nimage: r8.im/o/n\nconcurrency: {{ max: 2, default_target: 3 }}\n\
         colour: red\n{}",
        model("")
    );
    assert_eq!(
        parse(&yaml).unwrap().notes,
        [
            "cog.yaml: build.cuda, build.python_version, build.pre_install, build.fast, tests, concurrency.default_target \
             ignored: nothing is built here, and Python is not run",
            "cog.yaml: run: predict.py:P ignored: `native:` says what is served, and Python is not run",
            "cog.yaml: train ignored: Pinion trains nothing",
            "cog.yaml: colour ignored: neither Cog nor Pinion knows it",
        ]
    );
}

#[test]
fn one_model_may_stand_in_native_itself_and_is_called_as_the_image_is() {
    let served = one(
        "image: r8.im/me/my-llama:latest\nnative: { model: llama, weights: w, dtype: f16, batch_invariant: true, defaults: { top_p: 1 } }",
    );
    assert_eq!((served.name.as_str(), served.model.as_str()), ("my-llama", "llama"));
    assert_eq!(served.precision.as_deref(), Some("f16"));
    assert_eq!(served.defaults["top_p"], 1);
    assert!(served.preload && served.batch_invariant, "the only model");
    assert_eq!(one("native: { model: whisper, path: x }").name, "whisper");
}

#[test]
fn a_reserved_reference_names_the_model_and_the_only_weights() {
    let weights = "weights: [{ name: mine, target: /w, source: { uri: 'hf://a/b@main' } }]";
    let served = one(&format!("run: 'native.py:Llama'\n{weights}"));
    assert_eq!((served.model.as_str(), served.weights), ("llama", WeightsFrom::Locked("mine".into())));
    assert_eq!(one(&format!("run: 'native.py:Llama'\nnative: {{ name: own }}\n{weights}")).name, "own");
    let refused = parse("run: 'native.py:Llama'").unwrap_err();
    assert!(refused.contains("exactly one entry in `weights`; there are 0"), "{refused}");
}

#[test]
fn known_weights_stand_for_the_python_that_ran_them_and_it_is_said() {
    let yaml =
        "predict: 'predict.py:Predictor'\nweights: [{ name: w, target: /w, source: [{ uri: 'hf://known/x@main' }] }]";
    assert_eq!(one(yaml).model, "llama");
    let notes = parse(yaml).unwrap().notes;
    let said = "cog.yaml: predict.py:Predictor is not run: llama serves in its place, with its own smollm2, for hf://known/x@main";
    assert_eq!(notes, [said]);
}

#[test]
fn python_is_refused_with_what_to_write_instead() {
    for yaml in [
        "build: { python_version: '3.8', gpu: true }\npredict: 'predict.py:Predictor'",
        "run: 'run.py:Runner'\nweights: [{ name: w, source: { uri: 'hf://other/x@main' } }]",
    ] {
        let refused = parse(yaml).unwrap_err();
        for part in ["is Python code, and Pinion runs none", "native: { model: llama, path: WEIGHTS }", "pinion init"] {
            assert!(refused.contains(part), "{refused}");
        }
    }
}

#[test]
fn gpu_and_concurrency_are_for_models_that_say_nothing_else() {
    let with = |keys: &str, own: &str| one(&format!("{keys}\nnative: {{ model: llama, weights: w, {own} }}"));
    let both = |served: Served| (served.device, served.concurrency);
    assert_eq!(both(with("build: { gpu: true }\nconcurrency: { max: 3 }", "")), (Some("cuda".into()), Some(3)));
    assert_eq!(both(with("build: { gpu: false }", "")), (Some("cpu".into()), None));
    assert_eq!(both(with("build: { python_version: '3.11' }", "")), (None, None));
    let own = "device: 'cuda:1', concurrency: 5";
    assert_eq!(both(with("build: { gpu: false }\nconcurrency: { max: 3 }", own)), (Some("cuda:1".into()), Some(5)));
}

#[test]
fn the_environment_is_read_and_the_runtimes_own_names_are_refused() {
    let with = |list: &str| parse(&format!("environment: {list}\nnative: {{ model: llama, weights: w }}"));
    let read = with("[A=1, 'B_2=x=y', _c=]").unwrap().container.environment;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(read, [pair("A", "1"), pair("B_2", "x=y"), pair("_c", "")]);
    for name in [
        "PATH",
        "LD_LIBRARY_PATH",
        "R8_X",
        "REPLICATE_TOKEN",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_X",
        "NV_X",
        "PGET_X",
        "HF_ENDPOINT",
        "KUBERNETES_PORT",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "LIBRARY_PATH",
    ] {
        let refused = with(&format!("['{name}=1']")).unwrap_err();
        assert!(refused.contains(name) && refused.contains("may not be set here"), "{refused}");
    }
    for list in ["[1A=1]", "[A]", "[3]", "['A B=1']"] {
        assert!(with(list).unwrap_err().contains("NAME=value is expected"), "{list}");
    }
    assert!(with("{ python: 3 }").unwrap_err().contains("environment"), "a list is expected");
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (yaml, part) in [
        ("run: a.py:B\npredict: a.py:B", "`run` says it already"),
        ("image: a\nmodel: b", "`image` says it already"),
        ("concurrency: { max: 0 }", "concurrency.max: 0"),
        ("build: 3", "build: 3 is not a mapping"),
        ("build: { gpu: maybe }", "build.gpu: \"maybe\""),
        ("weights: [{ target: /x }]", "weights[0].name is missing"),
        (
            "native: { model: llama, weights: w, models: [{ name: m, model: llama, weights: w }] }",
            "beside native.models",
        ),
        ("native: { model: llama }", "exactly one of `weights`, `path` and `synth`"),
    ] {
        let refused = parse(yaml).unwrap_err();
        assert!(refused.contains(part), "{yaml}: {refused}");
    }
}
