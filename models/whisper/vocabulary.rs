//! Text to tokens and tokens to bytes, and the special tokens, whose numbers follow from the size of the vocabulary. Knows
//! which tokens are no speech and where words end; refuses to know the net.

use std::path::Path;

use prediction::PredictError;

use super::config::Config;
use super::languages::LANGUAGES;

/// Special tokens, in the order in which they stand behind the text tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Specials {
    /// End of text; every text token is below it.
    pub end: u32,
    pub start: u32,
    pub languages: usize,
    pub translate: u32,
    pub transcribe: u32,
    pub start_of_model: u32,
    pub previous: u32,
    pub no_speech: u32,
    pub no_timestamps: u32,
    /// 0.00 s.
    pub first_time: u32,
}

pub struct Vocabulary {
    inner: tokenizers::Tokenizer,
    /// The bytes of every text token.
    spelling: Vec<Vec<u8>>,
    pub specials: Specials,
    pub multilingual: bool,
}

impl Specials {
    pub fn of(config: &Config) -> Self {
        let multilingual = config.multilingual();
        let languages = config.vocabulary - 51_765 - usize::from(multilingual);
        let end = 50_256 + u32::from(multilingual);
        let behind = end + 2 + languages as u32;
        Self {
            end,
            start: end + 1,
            languages,
            translate: behind,
            transcribe: behind + 1,
            start_of_model: behind + 2,
            previous: behind + 3,
            no_speech: behind + 4,
            no_timestamps: behind + 5,
            first_time: behind + 6,
        }
    }

    pub fn language(&self, index: usize) -> u32 {
        self.start + 1 + index as u32
    }
}

impl Vocabulary {
    /// From the text of a `tokenizer.json`; `file` is for messages.
    pub fn read(bytes: &[u8], file: &Path, config: &Config) -> Result<Self, PredictError> {
        let wrong = |why: &dyn std::fmt::Display| PredictError::Operator(format!("{}: {why}", file.display()));
        let mut inner = crate::read_tokenizer(bytes).map_err(|error| wrong(&error))?;
        inner.with_truncation(None).map_err(|error| wrong(&error))?;
        inner.with_padding(None);
        let specials = Specials::of(config);
        if specials.languages > LANGUAGES.len() {
            let known = LANGUAGES.len();
            return Err(wrong(&format_args!("the vocabulary has {} languages; {known} are known", specials.languages)));
        }
        if inner.token_to_id("<|endoftext|>") != Some(specials.end) {
            return Err(wrong(&format_args!("<|endoftext|> is not token {}, as the weights have it", specials.end)));
        }
        let spell = |id: u32| {
            let token = inner.id_to_token(id).ok_or_else(|| wrong(&format_args!("token {id} is missing")))?;
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
            bytes.ok_or_else(|| wrong(&format_args!("token {id} is {token:?}, which spells no bytes")))
        };
        let spelling = (0..specials.end).map(spell).collect::<Result<_, _>>()?;
        Ok(Self { spelling, inner, specials, multilingual: config.multilingual() })
    }

    /// Text tokens only: a special token's text is no text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, PredictError> {
        let encoded = self.inner.encode_fast(text, false);
        let encoded = encoded.map_err(|error| PredictError::Operator(format!("The tokenizer failed: {error}")))?;
        match encoded.get_ids().iter().find(|&&id| id >= self.specials.end) {
            Some(&id) => Err(PredictError::FixInput(format!(
                "the text contains {}, a special token",
                self.inner.id_to_token(id).unwrap_or_default()
            ))),
            None => Ok(encoded.get_ids().to_vec()),
        }
    }

    /// What the text tokens among these spell; bytes that are no character become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.bytes(ids)).into_owned()
    }

    /// As `decode`, with the languages that a model may say instead of words: `<|cs|>`. The reference's whole text has them.
    pub fn decode_all(&self, ids: &[u32]) -> String {
        let language =
            |id: u32| LANGUAGES[..self.specials.languages].get(id.checked_sub(self.specials.language(0))? as usize);
        let mut bytes = Vec::new();
        for &id in ids {
            match (self.spelling.get(id as usize), language(id)) {
                (Some(spelling), _) => bytes.extend(spelling),
                (None, Some((code, _))) => bytes.extend(format!("<|{code}|>").into_bytes()),
                (None, None) => {}
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn bytes(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().filter_map(|&id| self.spelling.get(id as usize)).flatten().copied().collect()
    }

    /// What comes before the first sampled token. English-only models know neither languages nor tasks.
    pub fn start(&self, language: usize, translate: bool) -> Vec<u32> {
        let specials = &self.specials;
        if !self.multilingual {
            return vec![specials.start];
        }
        let task = if translate { specials.translate } else { specials.transcribe };
        vec![specials.start, specials.language(language), task]
    }

    /// Tokens that are no speech: brackets, notes, speaker marks. Common punctuation stays.
    pub fn non_speech(&self) -> Result<Vec<u32>, PredictError> {
        let single = "\"#()*+/:;<=>@[\\]^_`{|}~「」『』".chars().map(String::from);
        let several = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split(' ').map(String::from);
        // Several tokens each, of which the first alone is enough: nothing else begins so.
        let notes: Vec<String> = "♩♪♫♬♭♮♯".chars().map(String::from).collect();
        let mut found = vec![self.encode(" -")?[0], self.encode(" '")?[0]];
        for symbol in single.chain(several).chain(notes.iter().cloned()) {
            for text in [symbol.clone(), format!(" {symbol}")] {
                let ids = self.encode(&text)?;
                if ids.len() == 1 || notes.contains(&symbol) {
                    found.push(ids[0]);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Runs of tokens that are whole characters, with their text.
    fn characters(&self, ids: &[u32]) -> Vec<(String, Vec<u32>)> {
        let mut found: Vec<(String, Vec<u32>)> = Vec::new();
        let mut pending: Vec<u32> = Vec::new();
        for &id in ids {
            pending.push(id);
            let bytes = self.bytes(&pending);
            // Unless the rest could still complete a character.
            let open = std::str::from_utf8(&bytes).is_err_and(|error| error.error_len().is_none());
            if !open {
                found.push((String::from_utf8_lossy(&bytes).into_owned(), std::mem::take(&mut pending)));
            }
        }
        found
    }

    /// Text tokens as words: at blanks, or, for languages that write none, character by character.
    pub fn words(&self, ids: &[u32], language: usize) -> Vec<(String, Vec<u32>)> {
        let parts = self.characters(ids);
        if ["zh", "ja", "th", "lo", "my", "yue"].contains(&LANGUAGES[language].0) && self.multilingual {
            return parts;
        }
        let mut words: Vec<(String, Vec<u32>)> = Vec::new();
        for (text, ids) in parts {
            let mark = text.trim();
            let punctuation = mark.is_empty() || PUNCTUATION.contains(mark);
            match words.last_mut() {
                Some((word, of)) if !text.starts_with(' ') && !punctuation => {
                    word.push_str(&text);
                    of.extend(ids);
                }
                _ => words.push((text, ids)),
            }
        }
        words
    }
}

/// Python's `string.punctuation`: a text of it is one of its runs.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// GPT-2's table: printable bytes stand for themselves, the others, in order, for U+0100 and on.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}
