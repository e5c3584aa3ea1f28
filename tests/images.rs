//! Images with the official clients, over http and https, on tiny random weights: a server as a user starts it, the
//! tutorial's scripts unchanged. Knows what the scripts print and write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Server, clients, output_of, pinion, tests_folder};

const VERSION: &str = "7762fd07cf82c948538e41f63f77d685e02b063e37291ef63919ea9f8f6e9b5";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A folder with weights, what serves them under the hosted name, and certificates.
struct Studio {
    folder: tempfile::TempDir,
    /// Without weights of a refiner.
    config: PathBuf,
}

impl Studio {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("weights");
        output_of(pinion().args(["weights", "synth", "sdxl-tiny", "-o"]).arg(&weights));
        let config = folder.path().join("cog.yaml");
        let model = json!({
            "name": "sdxl", "model": "sdxl", "path": weights, "threads": 2,
            "names": ["stability-ai/sdxl"], "versions": {VERSION: "stability-ai/sdxl"},
        });
        fs::write(&config, json!({"native": {"models": [model]}}).to_string()).unwrap();
        Self { folder, config }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn serve(&self) -> Server {
        Server::start(&self.data(), &["--config", self.config.to_str().unwrap()])
    }

    /// With a certificate that an authority of this machine signed; the authority's.
    fn serve_with_tls(&self) -> (Server, PathBuf) {
        let said = output_of(pinion().args(["tls", "init", "--data"]).arg(self.data()));
        let tls = self.data().join("tls");
        let [authority, certificate, key] = ["authority.pem", "server.pem", "server.key"].map(|name| tls.join(name));
        assert!(
            said.starts_with(&format!("pinion serve --tls {} {}\n", certificate.display(), key.display())),
            "{said}"
        );
        assert!(said.contains(&format!("export SSL_CERT_FILE={}", authority.display())), "{said}");
        let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
        let words = ["--config", self.config.to_str().unwrap(), "--tls", certificate, key];
        let server = Server::start(&self.data(), &words);
        assert!(server.base.starts_with("https://127.0.0.1:"), "{}", server.base);
        (server, authority)
    }

    fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let config = self.config.to_str().unwrap();
        let mut command = pinion();
        let output = command.current_dir(self.folder.path()).args(["run", "sdxl", "--config", config]).args(words);
        let output = output.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

/// A script of the tutorial or our own, where its files may go, trusting whom the test says.
fn python(version: &str, server: &Server, folder: &Path, script: &str, authority: Option<&Path>) -> Command {
    let mut command = Command::new(clients().join(format!("python-{version}/bin/python")));
    command.current_dir(folder).arg(tests_folder().join(script));
    command.env("REPLICATE_BASE_URL", &server.base).env("REPLICATE_API_TOKEN", "r8_anything");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    authority.map(|authority| command.env("SSL_CERT_FILE", authority));
    command
}

fn node(server: &Server, folder: &Path, script: &str, authority: Option<&Path>) -> Command {
    // Node looks for packages beside the script, so it runs a copy beside the installed client.
    let copy = clients().join("node").join(Path::new(script).file_name().unwrap());
    fs::copy(tests_folder().join(script), &copy).unwrap();
    let mut command = Command::new("node");
    command.current_dir(folder).arg(copy);
    command.env("BASE_URL", format!("{}/v1", server.base)).env("REPLICATE_API_TOKEN", "r8_anything");
    authority.map(|authority| command.env("NODE_EXTRA_CA_CERTS", authority));
    command
}

/// The file is an image, and gone for the next script.
fn taken(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(bytes.starts_with(PNG), "{}: {:?}", path.display(), &bytes[..8]);
    fs::remove_file(path).unwrap();
    bytes
}

fn tutorial(studio: &Studio, server: &Server, authority: Option<&Path>) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output.png");
    for version in ["0.31.0", "1.0.7"] {
        let out = output_of(python(version, server, folder.path(), "tutorial/image.py", authority).args(["64", "2"]));
        assert_eq!(out.trim(), format!("{} bytes", taken(&output).len()), "{version}");
    }
    let out = output_of(node(server, folder.path(), "tutorial/image.mjs", authority).args(["64", "2"]));
    assert_eq!(out.trim(), "saved");
    taken(&output);
    assert!(studio.data().join("files").is_dir());
}

#[test]
fn the_tutorials_scripts_save_an_image_over_http() {
    let studio = Studio::open();
    tutorial(&studio, &studio.serve(), None);
}

#[test]
fn the_tutorials_scripts_save_an_image_over_https() {
    let studio = Studio::open();
    let (server, authority) = studio.serve_with_tls();
    tutorial(&studio, &server, Some(&authority));
}

#[test]
fn a_file_is_a_file_also_when_the_run_outlives_the_wait() {
    let studio = Studio::open();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("waited.png");
    let waits = |server: &Server, authority: Option<&Path>, kind: &str| {
        let mut script = python("1.0.7", server, folder.path(), "images/wait.py", authority);
        let out = output_of(script.arg(&path));
        assert!(out.starts_with(&format!("{kind} {} ", taken(&path).len())), "{out}");
        let out = output_of(node(server, folder.path(), "images/wait.mjs", authority).arg(&path));
        assert_eq!(out.trim(), format!("{kind}: progress true"));
        taken(&path);
    };
    waits(&studio.serve(), None, "data");
    let (server, authority) = studio.serve_with_tls();
    waits(&server, Some(&authority), "https");
}

#[test]
fn whoever_does_not_trust_the_authority_is_told_by_its_client() {
    let studio = Studio::open();
    let (server, _) = studio.serve_with_tls();
    let folder = tempfile::tempdir().unwrap();
    let output = python("1.0.7", &server, folder.path(), "tutorial/image.py", None).args(["64", "2"]).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("CERTIFICATE_VERIFY_FAILED"));
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let studio = Studio::open();
    let config = studio.config.to_str().unwrap();
    for (certificate, key, why) in
        [("/nowhere.pem", "/nowhere.key", "--tls /nowhere.pem: "), (config, config, "holds no certificate in PEM")]
    {
        let words = ["serve", "--listen", "127.0.0.1:0", "--config", config, "--tls", certificate, key, "--data"];
        let output = pinion().args(words).arg(studio.data()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(why), "{said}");
    }
}

#[test]
fn an_authority_stays_and_its_certificates_are_made_anew() {
    let studio = Studio::open();
    let init = || output_of(pinion().args(["tls", "init", "--host", "studio.local", "--data"]).arg(studio.data()));
    let read = |name: &str| fs::read_to_string(studio.data().join("tls").join(name)).unwrap();
    init();
    let (authority, certificate) = (read("authority.pem"), read("server.pem"));
    init();
    assert_eq!(read("authority.pem"), authority);
    assert_ne!(read("server.pem"), certificate);
    use std::os::unix::fs::PermissionsExt;
    for key in ["authority.key", "server.key"] {
        let mode = fs::metadata(studio.data().join("tls").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn run_writes_the_image_where_it_is_wanted() {
    let studio = Studio::open();
    let small =
        ["-i", "prompt=a clock", "-i", "seed=1", "-i", "width=64", "-i", "height=64", "-i", "num_inference_steps=2"];
    let (code, out, logs) = studio.run(&[&small[..], &["-o", "out.png"]].concat());
    assert_eq!((code, out.as_str()), (Some(0), "out.png\n"), "{logs}");
    assert!(logs.contains("Using seed: 1\n") && logs.contains("100%|██████████| 2/2 ["), "{logs}");
    let first = taken(&studio.folder.path().join("out.png"));
    // The same seed, weights of one's own in place of the deployment's: the same image.
    let weights = studio.folder.path().join("weights");
    let own = ["--weights", weights.to_str().unwrap(), "-o", "out.png"];
    assert_eq!(studio.run(&[&small[..], &own].concat()).0, Some(0));
    let again = taken(&studio.folder.path().join("out.png"));
    let pixels = |png: &[u8]| png[png.windows(4).position(|four| four == b"IDAT").unwrap()..].to_vec();
    assert!(pixels(&first) == pixels(&again));
    let (code, out, _) = studio.run(&[&small[..], &["-i", "num_outputs=2", "--json"]].concat());
    let prediction: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &prediction["status"]), (Some(0), &json!("succeeded")));
    for index in 0..2 {
        let path = studio.folder.path().join(format!("out-{index}.png"));
        assert!(prediction["output"][index].as_str().unwrap().ends_with(&format!("/out-{index}.png")), "{prediction}");
        taken(&path);
    }
    let (code, _, said) = studio.run(&[&small[..], &["-i", "image=@Cargo.toml"]].concat());
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn bad_input_is_a_422_or_a_failed_prediction_that_says_why() {
    let studio = Studio::open();
    let server = studio.serve();
    let create = |input: Value| {
        let mut all = json!({"prompt": "a clock", "width": 64, "height": 64, "num_inference_steps": 2});
        all.as_object_mut().unwrap().extend(input.as_object().unwrap().clone());
        server.post("/v1/models/stability-ai/sdxl/predictions", &json!({"input": all}))
    };
    for (input, detail) in [
        (json!({"num_inference_steps": 10_000}), "- input.num_inference_steps: Must be less than or equal to 500\n"),
        (json!({"scheduler": "EULER"}), "- input.scheduler: scheduler must be one of the following: \"DDIM\", "),
        (json!({"image": "file:///etc/passwd"}), "- input.image: Does not match format 'uri'\n"),
        (
            json!({"replicate_weights": "file:///etc/passwd"}),
            "- input.replicate_weights: Does not match format 'uri'\n",
        ),
    ] {
        let (code, body) = create(input);
        assert!(code == 422 && body["detail"].as_str().unwrap().starts_with(detail), "{body}");
    }
    let data_uri = |kind: &str, name: &str| {
        let examples = tests_folder().join("../models/sdxl/tests/images");
        let bytes = fs::read(examples.join(name)).unwrap();
        // Percent encoding needs no crate.
        let encoded: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
        format!("data:{kind},{encoded}")
    };
    let ended = |input: Value| {
        let (code, body) = create(input);
        assert_eq!(code, 201, "{body}");
        server.finished(body["id"].as_str().unwrap())
    };
    let bomb = data_uri("image/png", "bomb.png");
    for (input, error) in [
        (json!({"width": 0}), "width is 0; 64 to 2048 pixels can be painted"),
        (json!({"image": bomb}), "image: it is 30000 x 30000 pixels; at most 16384 on a side and 67108864 in all"),
        (json!({"replicate_weights": "data:,nothing"}), "replicate_weights: "),
        (json!({"refine": "base_image_refiner"}), "refine: these weights have no refiner"),
    ] {
        let prediction = ended(input);
        assert_eq!(prediction["status"], "failed", "{prediction}");
        assert!(prediction["error"].as_str().unwrap().starts_with(error), "{}", prediction["error"]);
    }
    for (kind, name) in [("image/gif", "animated.gif"), ("image/jpeg", "cmyk.jpg"), ("image/png", "16bit.png")] {
        let prediction = ended(json!({"image": data_uri(kind, name)}));
        assert_eq!(prediction["status"], "succeeded", "{name}: {}", prediction["error"]);
        assert!(prediction["output"][0].as_str().unwrap().starts_with("data:image/png;base64,"), "{name}");
    }
    let prediction = ended(json!({"mask": data_uri("image/png", "mask.png")}));
    assert!(
        prediction["logs"].as_str().unwrap().contains("mask: there is no image that it could be of; it is ignored")
    );
}
