//! `input!`: a struct whose declaration is its schema.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::{Field, Kind, Map};

/// A Rust type that an input field may have.
pub trait InputType: Sized {
    const KIND: Kind;
    /// Left out is fine, and null means left out.
    const NULLABLE: bool = false;

    /// From a checked value with the defaults filled in; `None` if it is of another kind.
    fn from_value(value: Option<&Value>) -> Option<Self>;
}

/// A file. A caller names it by an http(s) URL or a data URI; what reaches a model names a copy on its own machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri(pub String);

impl Uri {
    /// Where the copy lies; none for a URI that nobody has resolved.
    pub fn path(&self) -> Option<PathBuf> {
        let path = self.0.strip_prefix("file://").filter(|path| path.starts_with('/'))?;
        Some(PathBuf::from(OsString::from_vec(percent_decode_str(path).collect())))
    }
}

impl InputType for String {
    const KIND: Kind = Kind::String;

    fn from_value(value: Option<&Value>) -> Option<Self> {
        value?.as_str().map(str::to_owned)
    }
}

impl InputType for Uri {
    const KIND: Kind = Kind::Uri;

    fn from_value(value: Option<&Value>) -> Option<Self> {
        String::from_value(value).map(Uri)
    }
}

impl InputType for i64 {
    const KIND: Kind = Kind::Integer;

    fn from_value(value: Option<&Value>) -> Option<Self> {
        crate::check::integer(value?)
    }
}

impl InputType for f64 {
    const KIND: Kind = Kind::Number;

    fn from_value(value: Option<&Value>) -> Option<Self> {
        value?.as_f64()
    }
}

impl InputType for bool {
    const KIND: Kind = Kind::Boolean;

    fn from_value(value: Option<&Value>) -> Option<Self> {
        value?.as_bool()
    }
}

impl<T: InputType> InputType for Option<T> {
    const KIND: Kind = T::KIND;
    const NULLABLE: bool = true;

    fn from_value(value: Option<&Value>) -> Option<Self> {
        match value {
            None | Some(Value::Null) => Some(None),
            given => T::from_value(given).map(Some),
        }
    }
}

impl Field {
    #[doc(hidden)]
    pub fn of<T: InputType>(name: &'static str) -> Self {
        Self::new(name, T::KIND, T::NULLABLE)
    }
}

#[doc(hidden)]
pub fn take<T: InputType>(filled: &Map, name: &str) -> Option<T> {
    T::from_value(filled.get(name))
}

/// Declares a model's input: the struct, `fields()` for the schema, and `parse()` that checks an input and fills the
/// defaults in. In braces after each type stand the setters of [`Field`]; a field without a default that is no `Option`
/// is required.
///
/// ```
/// schema::input! {
///     /// What the model reads.
///     pub struct Input {
///         prompt: String { description: "What to say." }
///         top_p: f64 { description: "Nucleus.", default: 0.95, min: 0.0, max: 1.0 }
///         seed: Option<i64> { description: "Leave out for a random one." }
///     }
/// }
/// let given = serde_json::json!({ "prompt": "Hello" });
/// let input = Input::parse(given.as_object().unwrap()).unwrap();
/// assert_eq!((input.top_p, input.seed), (0.95, None));
/// ```
#[macro_export]
macro_rules! input {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($field:ident : $type:ty { $($setter:ident : $value:expr),* $(,)? } $(,)?)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $(pub $field: $type,)*
        }

        impl $name {
            /// The fields in the order of their declaration.
            pub fn fields() -> ::std::vec::Vec<$crate::Field> {
                ::std::vec![$($crate::Field::of::<$type>(stringify!($field))$(.$setter($value))*),*]
            }

            /// Everything that is wrong at once, or the input with its defaults. Unknown keys are ignored. For the model,
            /// to whom files may be local ones.
            pub fn parse(input: &$crate::Map) -> ::std::result::Result<Self, ::std::vec::Vec<$crate::Invalid>> {
                let fields = Self::fields();
                $crate::macro_support::check(&fields, input, $crate::macro_support::Files::Anywhere)?;
                let filled = $crate::macro_support::fill(&fields, input);
                ::std::result::Result::Ok(Self {
                    $($field: $crate::macro_support::take(&filled, stringify!($field))
                        .ok_or_else(|| ::std::vec![$crate::Invalid::required("input", stringify!($field))])?,)*
                })
            }
        }
    };
}
