//! Prompts to ids beside transformers' CLIPTokenizer (golden/tokens.py). The real vocabulary is read from the file that
//! `PINION_CLIP_VOCABULARY` names (open_clip's bpe_simple_vocab_16e6.txt.gz); without it the small one alone is compared,
//! since no test may reach for the network.

use std::path::Path;

use prediction::PredictError;
use serde_json::{Value, json};

use super::super::tokenizer::{LENGTH, Tokenizer};
use super::golden;

fn recorded() -> Value {
    serde_json::from_slice(&std::fs::read(golden("tokens.json")).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// A folder as the hub has it.
fn folder(path: &Path, merges: &[&str], config: &Value) {
    let (vocabulary, merges) = (vocabulary(merges), merges.join("\n"));
    std::fs::write(path.join("vocab.json"), vocabulary.to_string()).unwrap();
    std::fs::write(path.join("merges.txt"), format!("#version: 0.2\n{merges}\n")).unwrap();
    std::fs::write(path.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Bytes, bytes that end a word, what the merges make, and the two ends.
fn vocabulary(merges: &[&str]) -> Value {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = 256..256 + (0..256).filter(|byte| !printable(byte)).count() as u32;
    let letters: Vec<char> = (0..256).filter(printable).chain(others).filter_map(char::from_u32).collect();
    let words =
        letters.iter().map(|letter| format!("{letter}")).chain(letters.iter().map(|letter| format!("{letter}</w>")));
    let words = words.chain(merges.iter().map(|merge| merge.replace(' ', "")));
    let words = words.chain(["<|startoftext|>".to_owned(), "<|endoftext|>".to_owned()]);
    Value::Object(words.zip(0..).map(|(word, id)| (word, Value::from(id))).collect())
}

fn read(folder: &Path) -> Result<Tokenizer, PredictError> {
    Tokenizer::read(&|name| Ok(std::fs::read(folder.join(name)).ok()))
}

fn same(mut tokenizer: Tokenizer, recorded: &Value, theirs: &Value, case: &str) {
    for word in strings(&recorded["added"]) {
        assert_eq!(tokenizer.add(word).unwrap() as usize + 1, tokenizer.size(), "{case}");
        assert!(tokenizer.add(word).unwrap_err().text().contains("already in the vocabulary"));
    }
    for (text, theirs) in strings(&recorded["texts"]).into_iter().zip(theirs["ids"].as_array().unwrap()) {
        let mut theirs: Vec<u32> = theirs.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        theirs.resize(LENGTH, *theirs.last().unwrap());
        assert_eq!(tokenizer.encode(text).unwrap().ids, theirs, "{case}: {text:?}");
    }
}

#[test]
fn a_folder_gives_the_ids_that_transformers_gives() {
    let recorded = recorded();
    let merges = strings(&recorded["merges"]);
    for (name, case) in recorded["small"].as_object().unwrap() {
        let here = tempfile::tempdir().unwrap();
        folder(here.path(), &merges, &case["config"]);
        same(read(here.path()).unwrap(), &recorded, case, name);
    }
}

#[test]
fn the_real_vocabulary_gives_the_ids_that_transformers_gives() {
    let recorded = recorded();
    let Some(file) = crate::real::clip_vocabulary() else { return };
    let bytes = std::fs::read(file).unwrap();
    let plain = Tokenizer::of_openai(&bytes, None).unwrap();
    assert_eq!(plain.size(), 49_408);
    same(plain, &recorded, &recorded["clip"]["plain"], "of OpenAI's file");
    let text = std::io::read_to_string(flate2::read::GzDecoder::new(&bytes[..])).unwrap();
    let merges: Vec<&str> = text.lines().skip(1).take(48_894).collect();
    for (name, case) in recorded["clip"].as_object().unwrap() {
        let here = tempfile::tempdir().unwrap();
        folder(here.path(), &merges, &case["config"]);
        same(read(here.path()).unwrap(), &recorded, case, name);
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let recorded = recorded();
    let here = tempfile::tempdir().unwrap();
    folder(here.path(), &strings(&recorded["merges"]), &json!({}));
    let tokenizer = read(here.path()).unwrap();
    assert_eq!(tokenizer.encode(&"a ".repeat(75)).unwrap().cut, None);
    let long = tokenizer.encode(&format!("{}the end", "a ".repeat(75))).unwrap();
    assert_eq!((long.ids.len(), long.cut.as_deref()), (LENGTH, Some("the end")));
}

#[test]
fn a_folder_that_is_no_tokenizer_is_refused_with_the_reason() {
    let refused = |files: &[(&str, String)]| {
        let here = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(here.path().join(name), text).unwrap();
        }
        read(here.path()).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&[]).contains("neither vocab.json with merges.txt nor tokenizer.json"));
    let whole = [("vocab.json", vocabulary(&[]).to_string()), ("merges.txt", String::new())];
    let with = |settings: &str| [whole.as_slice(), &[("tokenizer_config.json", settings.to_owned())]].concat();
    assert!(refused(&with(r#"{"model_max_length": 512}"#)).contains("model_max_length is 512; 77 is"));
    assert!(refused(&with(r#"{"pad_token": "<pad>"}"#)).contains(r#"no token "<pad>""#));
    assert!(refused(&[("vocab.json", "{}".into()), ("merges.txt", String::new())]).contains("<|startoftext|>"));
}
