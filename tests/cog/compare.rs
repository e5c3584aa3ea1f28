//! Differences between two answers as lines `scene/part: what`, and the list of those that are accepted. Knows no HTTP.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::tests_folder;

pub fn differences(ours: &BTreeMap<String, Value>, real: &BTreeMap<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    for name in ours.keys().chain(real.keys()).collect::<BTreeSet<_>>() {
        compare(name, ours.get(name), real.get(name), &mut found);
    }
    found
}

fn compare(at: &str, ours: Option<&Value>, real: Option<&Value>, found: &mut Vec<String>) {
    match (ours, real) {
        (Some(ours), Some(real)) if ours == real => {}
        (Some(Value::Object(ours)), Some(Value::Object(real))) => {
            for key in ours.keys().chain(real.keys()).collect::<BTreeSet<_>>() {
                compare(&format!("{at}/{key}"), ours.get(key), real.get(key), found);
            }
        }
        (Some(Value::Array(ours)), Some(Value::Array(real))) => {
            for place in 0..ours.len().max(real.len()) {
                compare(&format!("{at}/{place}"), ours.get(place), real.get(place), found);
            }
        }
        (Some(ours), Some(real)) => found.push(format!("{at}: {ours} in place of {real}")),
        (Some(ours), None) => found.push(format!("{at}: {ours} is more")),
        (None, Some(real)) => found.push(format!("{at}: {real} is missing")),
        (None, None) => {}
    }
}

/// The first column of the tables in a document of `docs/`: patterns in which `*` stands for anything.
pub fn listed(document: &str) -> Vec<String> {
    let path = tests_folder().join("../docs").join(document);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let first = |line: &str| Some(line.strip_prefix("| `")?.split_once("` |")?.0.to_owned());
    let listed: Vec<String> = text.lines().filter_map(first).collect();
    assert!(!listed.is_empty(), "{document} has a table");
    listed
}

pub fn unlisted(found: &[String], listed: &[String]) -> Vec<String> {
    found.iter().filter(|line| !listed.iter().any(|pattern| fits(pattern, line))).cloned().collect()
}

pub fn stale(found: &[String], listed: &[String]) -> Vec<String> {
    listed.iter().filter(|pattern| !found.iter().any(|line| fits(pattern, line))).cloned().collect()
}

fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[test]
fn a_pattern_fits_where_its_parts_stand_in_order() {
    for (pattern, line, expected) in [
        ("a/b: 1 is more", "a/b: 1 is more", true),
        ("a/*: * is more", "a/b: 1 is more", true),
        ("*/b: *", "a/b: 1 is more", true),
        ("a/b", "a/b: 1", false),
        ("*b*", "a", false),
        ("a/* is more", "a/b: 1 is missing", false),
    ] {
        assert_eq!(fits(pattern, line), expected, "{pattern} {line}");
    }
}
