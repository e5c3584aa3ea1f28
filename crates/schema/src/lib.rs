//! What a model accepts and gives, and what a deployment serves: input structs, their JSON Schema, validation, cog.yaml.
//!
//! An input is declared once, as a struct, with `input!`: the declaration is the schema, the checks, the defaults and
//! the documentation. Refuses to know HTTP, storage and models: it says what is wrong in the words that the hosted
//! service uses, and leaves the answer to the caller.

mod check;
pub mod config;
mod declare;
mod describe;
mod field;
mod invalid;
mod places;
mod read;
mod version;

#[cfg(test)]
mod tests;

pub use declare::{InputType, Uri};
pub use field::{Field, Kind, ModelSchema, Output, READ_AS};
pub use invalid::{Invalid, detail, type_name};
pub use prediction::Map;
pub use version::version_id;

#[doc(hidden)]
pub mod macro_support {
    pub use crate::{
        check::{Files, check, fill},
        declare::take,
    };
}
