//! Prompts to the 77 tokens that CLIP reads: byte-pair encoding of lower-cased words as transformers' CLIPTokenizer does it,
//! between a begin and an end token, padded as the encoder was trained (with the end token, or SDXL's second encoder with
//! "!"). Reads `vocab.json` and `merges.txt`, `tokenizer.json`, or OpenAI's own file of merges. Refuses to know the encoders.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;
use prediction::PredictError;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

/// Tokens that CLIP's text towers read.
pub const LENGTH: usize = 77;
const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const WORD_END: &str = "</w>";
/// What words are: CLIP's own expression, with the special tokens that a text may contain.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Merges that CLIP uses of OpenAI's file, which has more.
const OPENAI_MERGES: usize = 49_152 - 256 - 2;

/// OpenAI's file has 3.1 MB.
const MAX_VOCABULARY_BYTES: u64 = 16 << 20;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    begin: u32,
    end: u32,
    pad: u32,
}

/// Gives a folder's file by its name; none if it is not there.
pub type Files<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>, PredictError> + 'a;

/// A prompt as an encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// [`LENGTH`] of them.
    pub ids: Vec<u32>,
    /// The end of the prompt that did not fit in, as it is said to the user.
    pub cut: Option<String>,
}

/// What of `tokenizer_config.json` and `special_tokens_map.json` decides about ids.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    model_max_length: Option<f64>,
    bos_token: Option<Special>,
    eos_token: Option<Special>,
    unk_token: Option<Special>,
    pad_token: Option<Special>,
    added_tokens_decoder: BTreeMap<String, Special>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Token {
        content: String,
        #[serde(default)]
        normalized: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        #[serde(default)]
        single_word: bool,
    },
}

impl Special {
    fn content(&self) -> &str {
        match self {
            Self::Text(content) | Self::Token { content, .. } => content,
        }
    }

    fn added(&self) -> AddedToken {
        match self {
            Self::Text(content) => AddedToken::from(content, true).normalized(false),
            Self::Token { content, normalized, lstrip, rstrip, single_word } => AddedToken::from(content, true)
                .normalized(*normalized)
                .lstrip(*lstrip)
                .rstrip(*rstrip)
                .single_word(*single_word),
        }
    }
}

impl Tokenizer {
    /// From the files of a folder `tokenizer` or `tokenizer_2` as transformers writes it.
    pub fn read(file: &Files) -> Result<Self, PredictError> {
        let settings = |name: &str| match file(name)? {
            Some(text) => serde_json::from_slice::<Settings>(&text).map_err(|error| wrong(name, &error)),
            None => Ok(Settings::default()),
        };
        let mut own = settings("tokenizer_config.json")?;
        let map = settings("special_tokens_map.json")?;
        own.bos_token = own.bos_token.or(map.bos_token);
        own.eos_token = own.eos_token.or(map.eos_token);
        own.unk_token = own.unk_token.or(map.unk_token);
        own.pad_token = own.pad_token.or(map.pad_token);
        if let Some(length) = own.model_max_length.filter(|length| *length != LENGTH as f64) {
            let why = format!("model_max_length is {length}; {LENGTH} is what CLIP reads");
            return Err(wrong("tokenizer_config.json", &why));
        }
        if let Some(text) = file("tokenizer.json")? {
            let inner = crate::read_tokenizer(&text).map_err(|error| wrong("tokenizer.json", &error))?;
            return Self::with(inner, &own).map_err(|why| wrong("tokenizer.json", &why));
        }
        let (Some(vocabulary), Some(merges)) = (file("vocab.json")?, file("merges.txt")?) else {
            let why = "there is neither vocab.json with merges.txt nor tokenizer.json";
            return Err(PredictError::Operator(why.into()));
        };
        let vocabulary = serde_json::from_slice(&vocabulary).map_err(|error| wrong("vocab.json", &error))?;
        let merges = String::from_utf8(merges).map_err(|error| wrong("merges.txt", &error))?;
        let merges = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        Self::build(vocabulary, merges, &own).map_err(|why| wrong("vocab.json", &why))
    }

    /// From OpenAI's `bpe_simple_vocab_16e6.txt.gz`: for checkpoints of one file, which have no tokenizer. `pad` is the token
    /// that fills up, the end token if none.
    pub fn of_openai(file: &[u8], pad: Option<&str>) -> Result<Self, String> {
        let text = std::io::read_to_string(GzDecoder::new(file).take(MAX_VOCABULARY_BYTES));
        let text = text.map_err(|error| format!("the vocabulary is not readable: {error}"))?;
        let merges: Vec<&str> = text.lines().skip(1).take(OPENAI_MERGES).collect();
        if merges.len() < OPENAI_MERGES {
            return Err(format!("the vocabulary has {} merges; {OPENAI_MERGES} are CLIP's", merges.len()));
        }
        let settings = Settings { pad_token: pad.map(|pad| Special::Text(pad.into())), ..Settings::default() };
        Self::build(vocabulary(&merges), merges.into_iter(), &settings)
    }

    fn build<'a>(
        vocabulary: Map<String, Value>,
        merges: impl Iterator<Item = &'a str>,
        settings: &Settings,
    ) -> Result<Self, String> {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let split = json!({"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true});
        let description = json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
            "decoder": bytes,
            "model": {
                "type": "BPE", "vocab": vocabulary, "merges": merges.collect::<Vec<_>>(), "unk_token": END,
                "continuing_subword_prefix": "", "end_of_word_suffix": WORD_END, "fuse_unk": false,
            },
        });
        let inner = tokenizers::Tokenizer::from_bytes(description.to_string()).map_err(|error| error.to_string())?;
        Self::with(inner, settings)
    }

    fn with(mut inner: tokenizers::Tokenizer, settings: &Settings) -> Result<Self, String> {
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        let id = |inner: &tokenizers::Tokenizer, token: &str| {
            inner.token_to_id(token).ok_or_else(|| format!("the vocabulary has no token {token:?}"))
        };
        let pad_token = settings.pad_token.as_ref().map_or(END, Special::content).to_owned();
        let (begin, end, pad) = (id(&inner, BEGIN)?, id(&inner, END)?, id(&inner, &pad_token)?);
        // As in the reference, a text that contains one of these contains the token: in SDXL's second tokenizer also "!".
        let Settings { bos_token, eos_token, unk_token, added_tokens_decoder, .. } = settings;
        let (usual_begin, usual_end) = (Special::Text(BEGIN.into()), Special::Text(END.into()));
        let or_end = |token| Option::as_ref(token).unwrap_or(&usual_end);
        let named = [bos_token.as_ref().unwrap_or(&usual_begin), or_end(eos_token), or_end(unk_token)];
        let all = added_tokens_decoder.values().chain(named).chain([or_end(&settings.pad_token)]);
        // Where one is named twice, the last decides about its flags: the padding.
        let mut special: Vec<AddedToken> = Vec::new();
        for token in all.map(Special::added) {
            special.retain(|other| other.content != token.content);
            special.push(token);
        }
        inner.add_special_tokens(special).map_err(|error| error.to_string())?;
        Ok(Self { inner, begin, end, pad })
    }

    /// Ids of the vocabulary, those added here included.
    pub fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Makes a word of a learned concept one token: of its vectors' number, in order, the ids that follow the vocabulary.
    /// The encoder has to have a vector for each. An error if the vocabulary has the word already.
    pub fn add(&mut self, word: &str) -> Result<u32, PredictError> {
        let taken = || PredictError::FixInput(format!("the token {word:?} is already in the vocabulary"));
        if self.inner.token_to_id(word).is_some() {
            return Err(taken());
        }
        self.inner.add_tokens([AddedToken::from(word, false)]).map_err(failed)?;
        self.inner.token_to_id(word).ok_or_else(taken)
    }

    pub fn encode(&self, text: &str) -> Result<Ids, PredictError> {
        let encoded = self.inner.encode_fast(text, false).map_err(failed)?;
        let room = LENGTH - 2;
        let all = encoded.get_ids();
        let (kept, rest) = all.split_at(all.len().min(room));
        let cut = match rest {
            [] => None,
            rest => Some(self.inner.decode(rest, false).map_err(failed)?.replace(WORD_END, " ").trim().to_owned()),
        };
        let mut ids = Vec::with_capacity(LENGTH);
        ids.push(self.begin);
        ids.extend(kept);
        ids.push(self.end);
        ids.resize(LENGTH, self.pad);
        Ok(Ids { ids, cut })
    }
}

/// The characters that stand for the 256 bytes, the same at the end of a word, what each merge makes, and the two ends.
fn vocabulary(merges: &[&str]) -> Map<String, Value> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0x100..).take(256 - (0..256).filter(printable).count());
    let letters: Vec<String> =
        (0..256).filter(printable).chain(others).filter_map(char::from_u32).map(String::from).collect();
    let at_end = letters.iter().map(|letter| format!("{letter}{WORD_END}"));
    let merged = merges.iter().map(|merge| merge.replace(' ', ""));
    let ends = [BEGIN, END].map(String::from);
    let all = letters.iter().cloned().chain(at_end).chain(merged).chain(ends);
    all.zip(0..).map(|(token, id)| (token, Value::from(id))).collect()
}

fn failed(error: tokenizers::Error) -> PredictError {
    PredictError::Operator(format!("The tokenizer failed: {error}"))
}

fn wrong(file: &str, why: &dyn std::fmt::Display) -> PredictError {
    PredictError::Operator(format!("{file}: {why}"))
}
