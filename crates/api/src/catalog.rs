//! What can be asked for by name and by version. Built once: what is served does not change while the server runs.

use std::collections::HashMap;

use crate::Served;

pub struct Catalog {
    served: Vec<Served>,
    /// `owner/name` to the index in `served`.
    names: HashMap<String, usize>,
    /// Version id to the index in `served` and the name that a caller of the bare id means.
    versions: HashMap<String, (usize, String)>,
}

/// What a caller's words lead to. `model` and `version` are echoed and stay with the prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<'a> {
    pub served: &'a Served,
    pub model: String,
    pub version: String,
}

impl Catalog {
    pub fn new(served: Vec<Served>) -> Self {
        let (mut names, mut versions) = (HashMap::new(), HashMap::new());
        for (index, one) in served.iter().enumerate() {
            for name in &one.names {
                names.entry(name.clone()).or_insert(index);
            }
            let main = one.names.first().cloned().unwrap_or_default();
            versions.entry(one.version.clone()).or_insert((index, main));
            for (id, name) in &one.aliases {
                versions.entry(id.clone()).or_insert((index, name.clone()));
            }
        }
        Self { served, names, versions }
    }

    /// Every name with what answers to it, in the order of the configuration.
    pub fn models(&self) -> impl Iterator<Item = (&str, &Served)> {
        self.served.iter().flat_map(|served| served.names.iter().map(move |name| (name.as_str(), served)))
    }

    /// The latest version of a model.
    pub fn by_name(&self, name: &str) -> Option<Found<'_>> {
        let served = &self.served[*self.names.get(name)?];
        Some(Found { served, model: name.to_owned(), version: served.version.clone() })
    }

    /// The three shapes of `version`: a bare id, `owner/name:id` and `owner/name`. An id may have any length.
    pub fn by_version(&self, version: &str) -> Option<Found<'_>> {
        match version.split_once(':') {
            Some((name, id)) => self.version_of(name, id),
            None if version.contains('/') => self.by_name(version),
            None => {
                let (index, model) = self.versions.get(version)?;
                let served = &self.served[*index];
                Some(Found { served, model: model.clone(), version: version.to_owned() })
            }
        }
    }

    /// One version of one model: what it serves now, or an id that is listed for just this name.
    pub fn version_of(&self, name: &str, id: &str) -> Option<Found<'_>> {
        let served = &self.served[*self.names.get(name)?];
        let listed = || served.aliases.get(id).is_some_and(|owner| owner == name);
        (served.version == id || listed()).then(|| Found { served, model: name.to_owned(), version: id.to_owned() })
    }
}
