//! The rules of the house that a machine can check: floors, registration, size. Reads files as text, nothing more.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A crate names only crates of lower floors.
const FLOORS: &[(&str, u8)] = &[
    ("prediction", 0),
    ("kernels", 0),
    ("schema", 1),
    ("store", 1),
    ("egress", 1),
    ("runner", 1),
    ("webhook", 2),
    ("dispatch", 2),
    ("worker", 2),
    ("models", 2),
    ("api", 3),
    ("files", 3),
    ("pinion", 4),
];

/// More than this in one file is two nouns in one.
const FILE_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/pinion lies in the workspace").to_owned()
}

/// Every file below `folder` that a person wrote in one of the project's languages.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for path in entries.map(|entry| entry.expect("the folder is readable").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || name.starts_with("target") || name == "node_modules" || name == "__pycache__" {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if matches!(path.extension().and_then(|e| e.to_str()), Some("rs" | "cu" | "py" | "mjs")) {
            found.push(path);
        }
    }
    found
}

fn manifests(root: &Path) -> BTreeMap<String, String> {
    let mut folders = vec![root.join("models")];
    folders.extend(fs::read_dir(root.join("crates")).into_iter().flatten().map(|entry| entry.unwrap().path()));
    let read = |folder: PathBuf| {
        let name = folder.file_name()?.to_string_lossy().into_owned();
        Some((name, fs::read_to_string(folder.join("Cargo.toml")).ok()?))
    };
    folders.into_iter().filter_map(read).collect()
}

/// The names under `[dependencies]`; what tests need (`[dev-dependencies]`) may come from any floor.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim() == "[dependencies]" || line.starts_with("[target");
        } else if inside && line.contains('=') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            names.push(name.to_owned());
        }
    }
    names
}

fn upward_imports(root: &Path) -> Vec<String> {
    let floors: BTreeMap<&str, u8> = FLOORS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, manifest) in manifests(root) {
        let Some(&floor) = floors.get(name.as_str()) else {
            wrong.push(format!("crate `{name}` has no floor: give it one in tests/tidy.rs and ARCHITECTURE.md"));
            continue;
        };
        for used in dependencies(&manifest) {
            if let Some(&below) = floors.get(used.as_str()).filter(|&&below| below >= floor) {
                wrong.push(format!(
                    "`{name}` (floor {floor}) names `{used}` (floor {below}): only lower floors may be named"
                ));
            }
        }
    }
    wrong
}

fn unregistered_models(root: &Path) -> Vec<String> {
    let registry = fs::read_to_string(root.join("models/lib.rs")).unwrap_or_default();
    let all = registry.split("pub const ALL").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or_default();
    fs::read_dir(root.join("models"))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("mod.rs").exists())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "shared" && !all.contains(&format!("{name}::ENTRY")))
        .map(|name| format!("models/{name} is not in models::ALL"))
        .collect()
}

fn untidy_files(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in sources(root) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let shown = path.strip_prefix(root).unwrap_or(&path).display();
        let lines = text.lines().count();
        if lines > FILE_LINES {
            wrong.push(format!("{shown} has {lines} lines; at most {FILE_LINES}"));
        }
        let is_rust = path.extension().is_some_and(|e| e == "rs");
        if is_rust && !text.starts_with("//!") && !text.starts_with("#![") {
            wrong.push(format!("{shown} does not say at its top what it is and what it refuses to know"));
        }
    }
    wrong
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn crates_name_only_lower_floors() {
    assert_none(upward_imports(&root()));
}

#[test]
fn every_model_folder_is_registered() {
    assert!(root().join("models/lib.rs").exists());
    assert_none(unregistered_models(&root()));
}

#[test]
fn every_file_is_small_and_says_what_it_is() {
    assert_none(untidy_files(&root()));
}

/// The test of the tests: a tree with one fault of each kind.
#[test]
fn an_upward_import_an_unregistered_model_and_a_huge_file_are_found() {
    let tree = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("crates/store/Cargo.toml", "[dependencies]\nprediction.workspace = true\napi.workspace = true\n");
    write("crates/api/Cargo.toml", "[dependencies]\nstore.workspace = true\n[dev-dependencies]\npinion = \"1\"\n");
    write("crates/extra/Cargo.toml", "[dependencies]\n");
    write("models/Cargo.toml", "[dependencies]\ndispatch = { path = \"../crates/dispatch\" }\n");
    write("models/lib.rs", "//! Registry.\npub const ALL: &[Entry] = &[llama::ENTRY];\n");
    write("models/llama/mod.rs", "//! Llama.\n");
    write("models/mamba/mod.rs", &"// no top line\n".repeat(FILE_LINES + 1));

    let upward = upward_imports(tree.path());
    assert_eq!(upward.len(), 3, "{upward:#?}");
    assert!(upward.iter().any(|w| w.contains("`store` (floor 1) names `api` (floor 3)")), "{upward:#?}");
    assert!(upward.iter().any(|w| w.contains("`models` (floor 2) names `dispatch` (floor 2)")), "{upward:#?}");
    assert!(upward.iter().any(|w| w.contains("`extra` has no floor")), "{upward:#?}");
    assert_eq!(unregistered_models(tree.path()), ["models/mamba is not in models::ALL"]);
    assert_eq!(untidy_files(tree.path()).len(), 2);
}
