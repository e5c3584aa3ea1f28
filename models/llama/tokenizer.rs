//! Text to tokens and tokens to bytes, from a `tokenizer.json` or from a GGUF's own metadata (see `tokenizer_gguf`).
//! Special tokens are recognised wherever they stand in a text: templates are text. Refuses to know the network.

use std::collections::HashSet;
use std::io;

use prediction::PredictError;
use serde_json::Value;

/// The blank of SentencePiece vocabularies.
pub(super) const BLANK: char = '\u{2581}';

pub struct Tokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    pub(super) spelling: Spelling,
    /// Never shown.
    pub(super) special: HashSet<u32>,
    /// Stands at the beginning of every text, unless the text has it already.
    pub(super) bos: Option<u32>,
    /// No token spells more than this.
    pub(super) longest_bytes: usize,
}

/// How tokens spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Every character stands for one byte (GPT-2's table).
    ByteLevel,
    /// `▁` is a blank, `<0x0A>` a byte. `strip`: one blank at the beginning of the output is not shown.
    Pieces { strip: bool },
}

/// What comes with a tokenizer besides tokens.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Words {
    pub chat_template: Option<String>,
    /// The text of the first token, or empty.
    pub bos: String,
    /// The text of the end token, or empty.
    pub eos: String,
}

impl Tokenizer {
    /// From the files of a folder as model hubs keep it: `tokenizer.json` and what `words` reads.
    /// `place` is the folder, for messages.
    pub fn from_files(place: &str, read: impl Fn(&str) -> io::Result<Vec<u8>>) -> Result<(Self, Words), PredictError> {
        let wrong = |why: String| PredictError::Operator(format!("{place}/tokenizer.json: {why}"));
        let bytes = read("tokenizer.json").map_err(|error| wrong(error.to_string()))?;
        let tokenizer = Self::from_json(&bytes).map_err(wrong)?;
        Ok((tokenizer, words(place, &read)?))
    }

    fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let mut inner = crate::read_tokenizer(bytes)?;
        // A file may carry the habits of its training; a prompt is never cut or padded silently.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        let decoder = inner.get_decoder().map(serde_json::to_value).transpose().map_err(|error| error.to_string())?;
        let spelling = decoder.as_ref().and_then(spelling).ok_or_else(|| {
            "its decoder is neither byte-level nor of SentencePiece's kind; other kinds are not read".to_owned()
        })?;
        let bos = inner.encode_fast("", true).map_err(|error| error.to_string())?.get_ids().first().copied();
        let added = inner.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        let longest_bytes = inner.get_vocab(true).keys().map(String::len).max().unwrap_or(1);
        Ok(Self { inner, spelling, special, bos, longest_bytes })
    }

    /// Exactly the text: what a chat template rendered already holds its first token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, PredictError> {
        let encoded = self.inner.encode_fast(text, false);
        let encoded = encoded.map_err(|error| PredictError::Operator(format!("The tokenizer failed: {error}")))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text behind the vocabulary's first token, which is not doubled where the text begins with it.
    pub fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>, PredictError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// A text has at least so many tokens; costs nothing.
    pub fn least_tokens(&self, text: &str) -> usize {
        text.len().div_ceil(self.longest_bytes.max(1))
    }

    /// The special token with this text.
    pub fn special(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text).filter(|id| self.special.contains(id))
    }

    /// Appends what a generated token spells: nothing for special ones. `first`: it begins the output.
    pub fn spell(&self, id: u32, first: bool, out: &mut Vec<u8>) {
        if self.special.contains(&id) {
            return;
        }
        let Some(token) = self.inner.id_to_token(id) else { return };
        match self.spelling {
            Spelling::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                out.extend(bytes.unwrap_or_else(|| token.into_bytes()));
            }
            Spelling::Pieces { strip } => match byte_piece(&token) {
                Some(byte) => out.push(byte),
                None => {
                    let text = token.replace(BLANK, " ");
                    out.extend(text.strip_prefix(' ').filter(|_| first && strip).unwrap_or(&text).as_bytes());
                }
            },
        }
    }
}

/// `None` where a decoder of `tokenizer.json` is of a kind that is not read.
fn spelling(decoder: &Value) -> Option<Spelling> {
    let kind = |part: &Value, name: &str| part["type"] == name;
    let parts = match &decoder["decoders"] {
        Value::Array(parts) => parts.as_slice(),
        _ => std::slice::from_ref(decoder),
    };
    if parts.iter().any(|part| kind(part, "ByteLevel")) {
        return Some(Spelling::ByteLevel);
    }
    let blank = BLANK.to_string();
    let pieces = |part: &Value| {
        kind(part, "Metaspace") || (kind(part, "Replace") && part["pattern"]["String"] == blank.as_str())
    };
    let strips = |part: &Value| match part["type"].as_str() {
        Some("Strip") => part["content"] == " " && part["start"] == 1,
        Some("Metaspace") => part["prepend_scheme"] != "never",
        _ => false,
    };
    parts.iter().any(pieces).then(|| Spelling::Pieces { strip: parts.iter().any(strips) })
}

/// `tokenizer_config.json` and `chat_template.jinja`, either of which may be missing.
fn words(place: &str, read: &dyn Fn(&str) -> io::Result<Vec<u8>>) -> Result<Words, PredictError> {
    const CONFIG: &str = "tokenizer_config.json";
    let config: Value = match read(CONFIG) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| PredictError::Operator(format!("{place}/{CONFIG}: {error}")))?,
        Err(_) => Value::Null,
    };
    let text = |name: &str| {
        let token = &config[name];
        token.as_str().or(token["content"].as_str()).unwrap_or_default().to_owned()
    };
    let template = match &config["chat_template"] {
        Value::String(template) => Some(template.clone()),
        // Several: the one for plain chats is named so.
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default.and_then(|entry| entry["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    };
    let chat_template = read("chat_template.jinja").ok().and_then(|text| String::from_utf8(text).ok()).or(template);
    Ok(Words { chat_template, bos: text("bos_token"), eos: text("eos_token") })
}

/// `<0x0A>` is the byte 10.
fn byte_piece(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
}

/// The characters that stand for bytes, in the order of GPT-2's table, which is that of their tokens.
pub(super) fn byte_level_characters() -> impl Iterator<Item = char> {
    ('\0'..='\u{143}').filter(|&character| byte_of(character).is_some())
}

/// GPT-2's table: printable bytes stand for themselves, the others, in order, for U+0100 and on.
fn byte_of(character: char) -> Option<u8> {
    const FIRST_CONTROLS: u32 = 0x21;
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x100 - FIRST_CONTROLS + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut seen = [0; 256];
        for byte in ('\0'..'\u{200}').filter_map(byte_of) {
            seen[usize::from(byte)] += 1;
        }
        assert_eq!(seen, [1; 256]);
        assert_eq!([byte_of('\u{120}'), byte_of('\u{10A}'), byte_of('A')], [Some(b' '), Some(b'\n'), Some(b'A')]);
        assert_eq!([byte_of('\u{121}'), byte_of('\u{142}'), byte_of(' ')], [Some(0x7F), Some(0xA0), None]);
    }

    #[test]
    fn a_byte_piece_is_two_hex_digits() {
        assert_eq!(byte_piece("<0x0A>"), Some(10));
        assert_eq!([byte_piece("<0xA>"), byte_piece("<0x0AB>"), byte_piece("0x0A")], [None; 3]);
    }

    #[test]
    fn decoders_are_told_apart() {
        let llama2 = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        assert_eq!(spelling(&llama2), Some(Spelling::Pieces { strip: true }));
        assert_eq!(spelling(&json!({"type": "ByteLevel"})), Some(Spelling::ByteLevel));
        assert_eq!(spelling(&json!({"type": "WordPiece"})), None);
    }
}
