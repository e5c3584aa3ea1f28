//! GGUF files made by hand, and the tokenizer that is rebuilt from one.

use std::path::Path;

use runner::Gguf;
use serde_json::Value;

use super::super::tokenizer::Tokenizer;
use super::super::weights::Opened;
use super::golden;

/// A metadata value that a test needs.
pub enum Entry<'a> {
    U32(u32),
    Bool(bool),
    Text(&'a str),
    Texts(&'a [String]),
    Floats(&'a [f32]),
    Integers(&'a [i32]),
}

/// A version 3 file without tensors.
pub fn write(path: &Path, metadata: &[(&str, Entry)]) {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, entry) in metadata {
        text(&mut out, key);
        entry.write(&mut out);
    }
    std::fs::write(path, out).unwrap();
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Entry<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, count: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        };
        match self {
            Self::U32(number) => {
                out.extend(4u32.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
            Self::Bool(flag) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*flag));
            }
            Self::Text(words) => {
                out.extend(8u32.to_le_bytes());
                text(out, words);
            }
            Self::Texts(list) => {
                array(out, 8, list.len());
                list.iter().for_each(|words| text(out, words));
            }
            Self::Floats(list) => {
                array(out, 6, list.len());
                list.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
            Self::Integers(list) => {
                array(out, 5, list.len());
                list.iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
        }
    }
}

/// The SentencePiece side of tiny-sharded-bf16's tokenizer: a piece scores by the place of its first merge.
fn sentence_piece(path: &Path) {
    let file = golden("tiny-sharded-bf16/tokenizer.json");
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut scores = vec![-1e6f32; tokens.len()];
    for (rank, merge) in json["model"]["merges"].as_array().unwrap().iter().enumerate().rev() {
        let piece = format!("{}{}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
        scores[vocab[&piece].as_u64().unwrap() as usize] = -(rank as f32);
    }
    let kind = |(id, token): (usize, &String)| match id {
        0 => 2,
        1 | 2 => 3,
        _ if token.starts_with("<0x") => 6,
        _ => 1,
    };
    let kinds: Vec<i32> = tokens.iter().enumerate().map(kind).collect();
    write(
        path,
        &[
            ("tokenizer.ggml.model", Entry::Text("llama")),
            ("tokenizer.ggml.tokens", Entry::Texts(&tokens)),
            ("tokenizer.ggml.scores", Entry::Floats(&scores)),
            ("tokenizer.ggml.token_type", Entry::Integers(&kinds)),
            ("tokenizer.ggml.bos_token_id", Entry::U32(1)),
            ("tokenizer.ggml.unknown_token_id", Entry::U32(0)),
            ("tokenizer.ggml.add_space_prefix", Entry::Bool(true)),
        ],
    );
}

fn spelt(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut bytes = Vec::new();
    ids.iter().enumerate().for_each(|(index, &id)| tokenizer.spell(id, index == 0, &mut bytes));
    String::from_utf8(bytes).unwrap()
}

const TEXTS: [&str; 6] = [
    "The lamp of the outer light had gone dark at 02:10.",
    " two  blanks and\na line",
    "naïve Sørvik 日本 🙂",
    "<s>[INST] the keeper [/INST] and</s>the quay",
    "x",
    "aaaaaaaa the the thethe",
];

#[test]
fn sentence_piece_scores_give_the_same_tokens_as_merges() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.gguf");
    sentence_piece(&path);
    let (ours, words) = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let (theirs, _) = Opened::open(&golden("tiny-sharded-bf16")).unwrap().tokenizer().unwrap();
    assert_eq!(words.bos, "<s>");
    for text in TEXTS {
        let ids = ours.encode(text).unwrap();
        assert_eq!(ids, theirs.encode(text).unwrap(), "{text}");
        assert_eq!(ours.encode_with_bos(text).unwrap(), theirs.encode_with_bos(text).unwrap(), "{text}");
        assert_eq!(spelt(&ours, &ids), spelt(&theirs, &ids));
    }
    assert_eq!(spelt(&ours, &ours.encode(TEXTS[2]).unwrap()), TEXTS[2], "the blank in front is not shown");
}

#[test]
fn byte_level_metadata_gives_the_same_tokens_as_the_json() {
    let (ours, words) = Tokenizer::from_gguf(&Gguf::open(&golden("tiny-q.gguf")).unwrap()).unwrap();
    let (theirs, _) = Opened::open(&golden("tiny-llama3")).unwrap().tokenizer().unwrap();
    assert!(words.chat_template.is_some());
    for text in TEXTS {
        let ids = ours.encode(text).unwrap();
        assert_eq!(ids, theirs.encode(text).unwrap(), "{text}");
        assert_eq!(spelt(&ours, &ids), text);
        assert!(ids.len() >= ours.least_tokens(text));
    }
    assert_eq!(ours.bos, theirs.bos);
}

#[test]
fn a_way_of_cutting_words_that_is_unknown_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.gguf");
    for (key, value, words) in [
        ("tokenizer.ggml.pre", "tekken", "tokenizer.ggml.pre is \"tekken\""),
        ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model is \"bert\""),
    ] {
        let model = if key.ends_with("pre") { Entry::Text("gpt2") } else { Entry::Text(value) };
        let tokens = ("tokenizer.ggml.tokens", Entry::Texts(&[]));
        write(&path, &[tokens, ("tokenizer.ggml.model", model), ("tokenizer.ggml.pre", Entry::Text(value))]);
        let why = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).err().unwrap().to_string();
        assert!(why.contains(words), "{why}");
    }
}
