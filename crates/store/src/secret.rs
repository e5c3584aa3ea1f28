//! Tokens and signing secrets: how they are made and how they are kept.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prediction::secret_text;
use sha2::{Digest, Sha256};

const TOKEN_CHARACTERS: usize = 37;
const MESSAGE_ID_CHARACTERS: usize = 26;
const SIGNING_SECRET_BYTES: usize = 24;

/// What a client sends as its API token.
pub(crate) fn new_token() -> String {
    format!("r8_{}", secret_text(TOKEN_CHARACTERS))
}

/// What is kept of a token. 185 random bits need no salt and no slow hash.
pub(crate) fn token_hash(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

pub(crate) fn last_four(token: &str) -> String {
    token[token.len() - 4..].to_owned()
}

pub(crate) fn new_message_id() -> String {
    format!("msg_{}", secret_text(MESSAGE_ID_CHARACTERS))
}

/// Two clients split the key at `_` and want two parts: only the standard alphabet is safe.
pub(crate) fn new_signing_secret() -> String {
    let key: [u8; SIGNING_SECRET_BYTES] = rand::random();
    format!("whsec_{}", STANDARD.encode(key))
}
