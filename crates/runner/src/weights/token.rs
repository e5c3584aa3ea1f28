//! The hub's token: its text, which nothing prints, and where it was found, which errors say.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a token ends with, in errors: enough to tell one from another.
const SHOWN_CHARS: usize = 4;

#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    from: String,
}

impl Token {
    /// `from`: the variable or file that it stands in.
    pub fn new(text: impl Into<String>, from: impl Into<String>) -> Self {
        Self { text: text.into(), from: from.into() }
    }

    /// `HF_TOKEN`, else the file that the hub's own tools keep it in (`HF_TOKEN_PATH`, `token` in the hub's home).
    pub(super) fn find(variable: &impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        if let Some(text) = variable("HF_TOKEN").and_then(|text| text.into_string().ok()) {
            return Some(Self::new(text.trim(), "HF_TOKEN"));
        }
        let file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(hub_home(variable)?.join("token")))?;
        Self::in_file(&file)
    }

    fn in_file(file: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(file).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| Self::new(text, file.display().to_string()))
    }

    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.text)
    }
}

/// Where the hub's own tools keep what they keep.
pub(super) fn hub_home(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let under = |name: &str, rest: &str| Some(PathBuf::from(variable(name)?).join(rest));
    variable("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| under("XDG_CACHE_HOME", "huggingface"))
        .or_else(|| under("HOME", ".cache/huggingface"))
}

/// Not the text, only where it stands and how it ends.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chars: Vec<char> = self.text.chars().collect();
        match chars.len() >= 4 * SHOWN_CHARS {
            true => write!(f, "of {} (…{})", self.from, chars[chars.len() - SHOWN_CHARS..].iter().collect::<String>()),
            false => write!(f, "of {}", self.from),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_where_the_hubs_tools_keep_it() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_inafile0123456789\n").unwrap();
        let only_home = |name: &str| (name == "HF_HOME").then(|| home.path().into());
        assert_eq!(Token::find(&only_home).unwrap().bearer(), "Bearer hf_inafile0123456789");
        let both = |name: &str| match name {
            "HF_TOKEN" => Some("hf_variable".into()),
            name => only_home(name),
        };
        assert_eq!(Token::find(&both), Some(Token::new("hf_variable", "HF_TOKEN")));
        assert_eq!(Token::find(&|_: &str| None), None);
    }

    #[test]
    fn what_is_printed_of_a_token_is_its_end() {
        let token = Token::new("hf_abcdefghijklmnopqrst", "HF_TOKEN");
        assert_eq!(
            (token.to_string(), format!("{token:?}")),
            ("of HF_TOKEN (…qrst)".into(), "Token(of HF_TOKEN (…qrst))".into())
        );
        assert_eq!(Token::new("short", "HF_TOKEN").to_string(), "of HF_TOKEN");
    }
}
