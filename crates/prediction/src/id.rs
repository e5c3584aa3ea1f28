//! Names that cannot be guessed: prediction ids and capability keys.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Crockford's base 32 in lower case: no i, l, o, u.
const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A prediction's name: 26 characters that match `^[0-9a-hjkmnp-tv-z]{26}$`, as the hosted service makes them,
/// or whatever the caller of the Cog API chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(pub String);

impl Id {
    pub fn random() -> Self {
        Self(secret_text(26))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// `length` characters of five random bits each, from the operating system's seeded generator.
pub fn secret_text(length: usize) -> String {
    (0..length).map(|_| CROCKFORD[(rand::random::<u8>() & 31) as usize] as char).collect()
}

/// A seed for a prediction that names none. Below 2^32 and never 0, so that a caller can send it back in any client's
/// number type, and so that it is not taken for "no seed".
pub fn random_seed() -> u64 {
    u64::from(rand::random::<u32>().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_26_crockford_characters() {
        let id = Id::random();
        assert_eq!(id.0.len(), 26);
        assert!(id.0.bytes().all(|b| CROCKFORD.contains(&b)), "{id}");
        assert_ne!(id, Id::random());
    }
}
