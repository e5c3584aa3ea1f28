//! What `replicate_weights` may name, on tiny random weights: the hosted trainer's archive, a LoRA, a whole UNet; and what is
//! refused before a net is touched.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use prediction::Weights;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tar::EntryType;

use super::super::weights::{Component, Opened};
use super::golden;
use super::predictions::{difference, example, images, loaded, refusal, run, synth, write};

fn with(path: &Path) -> Value {
    json!({"replicate_weights": format!("file://{}", path.display()), "lora_scale": 1.0, "seed": 1})
}

/// Zeros of these shapes, as safetensors.
fn zeros(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let sizes = tensors.iter().map(|(_, shape)| 4 * shape.iter().product::<usize>());
    let data: Vec<Vec<u8>> = sizes.map(|size| vec![0; size]).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// Of an archive: names and contents.
type Members<'a> = &'a [(&'a str, &'a [u8])];

fn archive(folder: &Path, members: Members) -> PathBuf {
    let path = folder.join("trained_model.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        // By hand, for the builder writes no name that leads out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.finish().unwrap();
    path
}

/// A LoRA of one module, of rank 2.
fn lora(folder: &Path, module: &str, out: usize, inputs: usize) -> PathBuf {
    let values = |count: usize| (0..count).flat_map(|n| ((n as f32).sin()).to_le_bytes()).collect::<Vec<u8>>();
    let (down, up) = (values(2 * inputs), values(out * 2));
    let tensors = HashMap::from([
        (format!("{module}.lora_down.weight"), TensorView::new(Dtype::F32, vec![2, inputs], &down).unwrap()),
        (format!("{module}.lora_up.weight"), TensorView::new(Dtype::F32, vec![out, 2], &up).unwrap()),
    ]);
    let path = folder.join("lora.safetensors");
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    path
}

#[test]
fn a_lora_changes_its_own_prediction_and_one_for_another_architecture_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = loaded(synth());
    let opened = Opened::synth("sdxl-tiny", "f32", 0).unwrap();
    let name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v";
    let tensors = opened.tensors(Component::Unet).unwrap();
    let shape = &tensors.iter().find(|(known, _)| *known == format!("{name}.weight")).unwrap().1;
    let module = format!("lora_unet_{}", name.replace('.', "_"));
    let path = lora(folder.path(), &module, shape[0], shape[1]);
    let plain = images(&run(&mut *model, json!({"seed": 1})));
    let changed = images(&run(&mut *model, with(&path)));
    assert!(difference(&plain[0], &changed[0]) > 0.5, "{}", difference(&plain[0], &changed[0]));
    assert!(images(&run(&mut *model, json!({"seed": 1})))[0] == plain[0], "the weights are the plain ones again");
    for (module, out) in [(module.as_str(), shape[0] * 2), ("lora_unet_down_blocks_9_attentions_0_proj_in", 32)] {
        let path = lora(folder.path(), module, out, shape[1]);
        let why = refusal(&mut *model, json!({"replicate_weights": format!("file://{}", path.display())}));
        assert!(why.starts_with("replicate_weights: the LoRA lora.safetensors: lora_unet_"), "{why}");
        assert!(why.ends_with("for another architecture"), "{why}");
    }
    let text = example("../predictions.rs");
    let why = refusal(&mut *model, json!({"replicate_weights": text}));
    assert!(why.starts_with("replicate_weights: predictions.rs: not a usable safetensors file of "), "{why}");
}

#[test]
fn the_hosted_trainers_archive_changes_nets_and_words_of_its_own_prediction() {
    let mut model = loaded(synth());
    let asked = |prompt: &str, file: Option<&str>| {
        let mut input = file.map_or_else(|| json!({"seed": 1}), |name| with(&golden(name)));
        input["prompt"] = prompt.into();
        input
    };
    let plain = images(&run(&mut *model, asked("a TOK clock", None)));
    let said = run(&mut *model, asked("a TOK clock", Some("trained.tar")));
    assert!(said.logs.contains("\nPrompt: a <s0><s1> clock\n"), "{}", said.logs);
    let changed = images(&said);
    assert!(difference(&plain[0], &changed[0]) > 0.5, "{}", difference(&plain[0], &changed[0]));
    // The same LoRA, and the words not learned.
    let unlearned = images(&run(&mut *model, asked("a <s0><s1> clock", Some("lora-old.safetensors"))));
    assert!(difference(&unlearned[0], &changed[0]) > 0.5, "{}", difference(&unlearned[0], &changed[0]));
    let said = run(&mut *model, asked("a tic clock", Some("trained.tar")));
    assert!(said.logs.contains("none of the words that replicate_weights brings: <s0> <s1>\n"), "{}", said.logs);
    assert!(images(&run(&mut *model, asked("a TOK clock", None)))[0] == plain[0], "the words are forgotten");
}

#[test]
fn a_whole_unet_takes_the_bases_place_from_an_archive_or_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (folder.path().join("own"), folder.path().join("other"));
    write("sdxl-tiny", &own, 0);
    write("sdxl-tiny", &other, 1);
    let unet = "unet/diffusion_pytorch_model.safetensors";
    let bytes = std::fs::read(other.join(unet)).unwrap();
    std::fs::copy(other.join(unet), own.join(unet)).unwrap();
    let expected = images(&run(&mut *loaded(Weights::Path(own)), json!({"seed": 1})));
    let mut model = loaded(synth());
    // Where both are, the whole one counts, as in the hosted model.
    let lora = std::fs::read(golden("lora-old.safetensors")).unwrap();
    let tar = archive(folder.path(), &[("lora.safetensors", &lora), ("./unet.safetensors", &bytes)]);
    assert!(images(&run(&mut *model, with(&tar)))[0] == expected[0]);
    assert!(images(&run(&mut *model, json!({"seed": 1})))[0] != expected[0]);
    assert!(images(&run(&mut *model, with(&other.join(unet))))[0] == expected[0]);
}

#[test]
fn trained_weights_that_cannot_be_used_are_refused_at_once_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = loaded(synth());
    let words = |first: &[usize], second: &[usize]| zeros(&[("text_encoders_0", first), ("text_encoders_1", second)]);
    let good = words(&[2, 32], &[2, 48]);
    let wide = words(&[2, 768], &[2, 1280]);
    let uneven = words(&[2, 32], &[1, 48]);
    let one = zeros(&[("text_encoders_0", &[2, 32])]);
    let unet = zeros(&[("conv_in.weight", &[320, 4, 3, 3])]);
    let stranger = zeros(&[("conv_in.weight", &[32, 4, 3, 3]), ("down_blocks.7.x.weight", &[1])]);
    let cases: [(Members, &str); 12] = [
        (
            &[("readme.txt", b"hello"), ("model.ckpt", b"x")],
            r#"none of lora.safetensors, unet.safetensors and embeddings.pti: of 2 files the first are ["readme.txt", "model.ckpt"]"#,
        ),
        (&[("../embeddings.pti", &good)], r#""../embeddings.pti" leads out of its folder"#),
        (&[("/tmp/lora.safetensors", &good)], "leads out of its folder"),
        (&[("embeddings.pti", &wide)], "vectors of 768 features for text_encoder, which has 32"),
        (&[("embeddings.pti", &uneven)], "2 words for the first encoder, 1 for the second"),
        (&[("embeddings.pti", &one)], "there is no tensor text_encoders_1 or clip_g"),
        (&[("embeddings.pti", b"\x80\x02}q\x00.")], "embeddings.pti: is a Python pickle, which runs code"),
        (&[("lora.safetensors", b"PK\x03\x04archive/data.pkl")], "lora.safetensors: is a Python pickle"),
        (&[("unet.safetensors", &unet)], "conv_in.weight is [320, 4, 3, 3], not [32, 4, 3, 3]: it is for another"),
        (&[("unet.safetensors", &stranger)], "this model has no down_blocks.7.x.weight: it is for another"),
        (
            &[("embeddings.pti", &good), ("special_params.json", br#"{"TOK": 1}"#)],
            r#"special_params.json: "TOK" is 1; a word stands for a text"#,
        ),
        (
            &[("embeddings.pti", &good), ("special_params.json", &[b' '; 65_537])],
            "special_params.json has 65537 bytes; at most 65536",
        ),
    ];
    for (members, expected) in cases {
        let why = refusal(&mut *model, with(&archive(folder.path(), members)));
        assert!(why.starts_with("replicate_weights: ") && why.contains(expected), "{why}\n  {expected}");
    }
    let path = archive(folder.path(), &[("embeddings.pti", &good)]);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..600]).unwrap();
    let why = refusal(&mut *model, with(&path));
    assert!(why.contains(r#""embeddings.pti" ends at byte"#) && why.ends_with("of 600: it was cut"), "{why}");
    let path = folder.path().join("old.safetensors");
    std::fs::write(&path, zeros(&[("emb_params", &[2, 768])])).unwrap();
    let why = refusal(&mut *model, with(&path));
    assert!(why.ends_with("emb_params is for one text encoder; an SDXL has two"), "{why}");
}
