//! Words of a prompt that stand for others: a trained concept's name for its learned words (cog-sdxl's
//! `special_params.json`, e.g. `{"TOK": "<s0><s1>"}`). They are replaced in the table's order wherever they stand, inside of
//! longer words too, as the reference does it. Refuses to know tokens.

use prediction::{Map, PredictError};
use serde_json::Value;

/// A trainer's table has one.
const MAX_WORDS: usize = 64;
/// A prompt that has grown longer than this was not written by a person: 77 tokens of it are read.
const MAX_PROMPT_BYTES: usize = 1 << 20;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Words(Vec<(String, String)>);

impl Words {
    /// `file` is named in refusals.
    pub fn read(file: &str, text: &[u8]) -> Result<Self, PredictError> {
        let wrong = |why: String| PredictError::FixInput(format!("{file}: {why}"));
        let table: Map = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if table.len() > MAX_WORDS {
            return Err(wrong(format!("{} words; at most {MAX_WORDS}", table.len())));
        }
        let pair = |(word, value): (String, Value)| match value {
            Value::String(text) if !word.is_empty() => Ok((word, text)),
            value => Err(wrong(format!("{word:?} is {value}; a word stands for a text"))),
        };
        table.into_iter().map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// The prompt that is read.
    pub fn replaced(&self, prompt: &str) -> Result<String, PredictError> {
        let mut prompt = prompt.to_owned();
        for (word, text) in &self.0 {
            let count = prompt.matches(word).count();
            let grown = prompt.len().saturating_add(count.saturating_mul(text.len()));
            if count > 0 && grown > MAX_PROMPT_BYTES {
                let why = format!("{count} times {word:?} make a prompt of more than {MAX_PROMPT_BYTES} bytes");
                return Err(PredictError::FixInput(why));
            }
            prompt = prompt.replace(word, text);
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Words, String> {
        Words::read("special_params.json", text.as_bytes()).map_err(|error| error.text().to_owned())
    }

    #[test]
    fn words_are_replaced_wherever_they_stand_and_in_the_tables_order() {
        let one = words(r#"{"TOK": "<s0><s1>"}"#).unwrap();
        assert_eq!(one.replaced("a TOK, TOKs of tok").unwrap(), "a <s0><s1>, <s0><s1>s of tok");
        let chain = words(r#"{"b": "c", "a": "b"}"#).unwrap();
        assert_eq!(chain.replaced("ab").unwrap(), "bc");
        assert_eq!(Words::default().replaced("a TOK").unwrap(), "a TOK");
    }

    #[test]
    fn a_table_that_is_none_is_refused_with_the_word() {
        for (text, expected) in [
            ("[]", "special_params.json: invalid type"),
            (r#"{"TOK": 7}"#, r#"special_params.json: "TOK" is 7; a word stands for a text"#),
            (r#"{"": "x"}"#, r#""" is "x"; a word stands for a text"#),
            ("\u{80}", "special_params.json: expected value"),
        ] {
            let said = words(text).unwrap_err();
            assert!(said.contains(expected), "{said}\n  {expected}");
        }
        let many: Map = (0..65).map(|number| (number.to_string(), "x".into())).collect();
        let said = words(&serde_json::to_string(&many).unwrap()).unwrap_err();
        assert!(said.contains("65 words; at most 64"), "{said}");
    }

    #[test]
    fn a_prompt_does_not_grow_without_end() {
        let table: Map = (0..64).map(|number| (format!("{number}"), "0123456789".repeat(99).into())).collect();
        let words = words(&serde_json::to_string(&table).unwrap()).unwrap();
        let said = words.replaced("0 1 2").unwrap_err();
        assert!(said.text().contains("make a prompt of more than 1048576 bytes"), "{said}");
    }
}
