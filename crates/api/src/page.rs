//! Pages of a list, and the query that leads to one.

use std::borrow::Cow;

use prediction::Timestamp;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::{errors::Problem, origin::Origin};

/// A query string. The last of several equal keys counts.
pub struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    pub fn new(query: Option<&'a str>) -> Self {
        Self { pairs: form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect() }
    }

    /// An empty value is as good as none.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.pairs.iter().rev().find(|(name, _)| name == key)?;
        Some(found.1.as_ref()).filter(|value| !value.is_empty())
    }

    /// An ISO 8601 moment. Without an offset it is UTC; a plus sign that was sent as such arrives as a space.
    pub fn moment(&self, key: &str) -> Result<Option<Timestamp>, Problem> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let plus = text.trim().replace(' ', "+");
        let spellings = [text.to_owned(), plus, format!("{text}Z"), format!("{text}T00:00:00Z")];
        let moment = spellings.iter().find_map(|text| Timestamp::parse(text));
        moment.map(Some).ok_or_else(|| self.bad(key, "a moment such as 2026-01-31T12:00:00Z"))
    }

    pub fn bad(&self, key: &str, expected: &str) -> Problem {
        let given = Value::from(self.get(key).unwrap_or_default());
        Problem::bad_request(format!("Query parameter \"{key}\" is {given}; {expected} is expected"))
    }

    /// The same query at another place in the list.
    fn at(&self, cursor: &str) -> String {
        let kept = self.pairs.iter().filter(|(key, _)| key != "cursor");
        form_urlencoded::Serializer::new(String::new()).extend_pairs(kept).append_pair("cursor", cursor).finish()
    }
}

pub fn page(
    query: &Query<'_>,
    origin: &Origin,
    path: &str,
    next: Option<String>,
    previous: Option<String>,
    results: Vec<Value>,
) -> Value {
    let link = |cursor: Option<String>| cursor.map(|cursor| origin.api(&format!("{path}?{}", query.at(&cursor))));
    json!({ "next": link(next), "previous": link(previous), "results": results })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_may_be_written_in_several_ways() {
        let noon = Timestamp::parse("2026-01-31T12:00:00Z");
        let midnight = Timestamp::parse("2026-01-31T00:00:00Z");
        for (query, moment) in [
            ("t=2026-01-31T12:00:00Z", noon),
            ("t=2026-01-31T13:00:00%2B01:00", noon),
            ("t=2026-01-31T13:00:00+01:00", noon),
            ("t=2026-01-31T12:00:00", noon),
            ("t=2026-01-31", midnight),
            ("t=", None),
            ("", None),
        ] {
            assert_eq!(Query::new(Some(query)).moment("t"), Ok(moment), "{query}");
        }
        assert!(Query::new(Some("t=soon")).moment("t").is_err());
    }

    #[test]
    fn a_link_keeps_the_query_and_moves_the_cursor() {
        let origin = Origin("http://h".into());
        let query = Query::new(Some("created_after=2026-01-31T12:00:00%2B01:00&cursor=old"));
        let page = page(&query, &origin, "/predictions", Some("new".into()), None, Vec::new());
        let next = "http://h/v1/predictions?created_after=2026-01-31T12%3A00%3A00%2B01%3A00&cursor=new";
        assert_eq!(page, json!({ "next": next, "previous": null, "results": [] }));
    }
}
