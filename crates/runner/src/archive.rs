//! The members of a tar as the places where they lie in it. Nothing is unpacked: no name becomes a path, no size becomes
//! memory, and a member is read, or mapped, from the archive itself. Still refuses what an honest archive of weights has
//! not: names that lead out of a folder, links, devices, holes, endless headers. Refuses to know what members mean.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Component, Path};

use prediction::PredictError;
use tar::EntryType;

/// Trained weights are a handful of files.
const MAX_MEMBERS: usize = 1_024;
/// Of a header that extends another: a long name, times, owners.
const MAX_EXTENSION_BYTES: u64 = 64 << 10;
/// Where a tar says that it is one.
const MARK: (u64, &[u8]) = (257, b"ustar");

/// A plain file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As the archive has it, without `./`.
    pub name: String,
    /// Of the archive's bytes.
    pub range: Range<u64>,
}

impl Member {
    /// All of it, if that is at most `limit` bytes.
    pub fn read(&self, archive: &Path, limit: u64) -> Result<Vec<u8>, PredictError> {
        let size = self.range.end - self.range.start;
        if size > limit {
            return Err(refuse(&format_args!("{} has {size} bytes; at most {limit}", self.name)));
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(archive)?;
            file.seek(SeekFrom::Start(self.range.start))?;
            let mut bytes = Vec::new();
            file.take(size).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| refuse(&format_args!("{}: {error}", self.name)))
    }
}

/// Whether a file is a tar, by its first header.
pub fn is_tar(path: &Path) -> io::Result<bool> {
    let (place, mark) = MARK;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(place))?;
    let mut found = Vec::new();
    file.take(mark.len() as u64).read_to_end(&mut found)?;
    Ok(found == mark)
}

/// The plain files of a tar, in their order. Folders are passed over.
pub fn members(path: &Path) -> Result<Vec<Member>, PredictError> {
    let unusable = |error: io::Error| refuse(&format_args!("not a usable tar: {error}"));
    let file = File::open(path).map_err(unusable)?;
    let whole = file.metadata().map_err(unusable)?.len();
    let mut archive = tar::Archive::new(file);
    // Headers that extend the next one are read into memory before their member is told: as they stand there first.
    for (number, entry) in archive.entries_with_seek().map_err(unusable)?.raw(true).enumerate() {
        let mut entry = entry.map_err(unusable)?;
        let (kind, size) = (entry.header().entry_type(), entry.size());
        if is_extension(kind) && size > MAX_EXTENSION_BYTES {
            return Err(refuse(&format_args!("a header has {size} bytes; at most {MAX_EXTENSION_BYTES}")));
        }
        // Only where this look and the next agree about what is a header.
        if is_extension(kind) && resized(&mut entry).map_err(unusable)? {
            return Err(refuse(&"a header gives its member another size"));
        }
        // Each member may have an extension of two kinds.
        if number >= 3 * MAX_MEMBERS {
            return Err(refuse(&format_args!("more than {} headers", 3 * MAX_MEMBERS)));
        }
    }
    let mut file = archive.into_inner();
    file.rewind().map_err(unusable)?;
    let mut archive = tar::Archive::new(file);
    let mut all: Vec<Member> = Vec::new();
    for entry in archive.entries_with_seek().map_err(unusable)? {
        let entry = entry.map_err(unusable)?;
        let kind = entry.header().entry_type();
        let bytes = entry.path_bytes();
        let name = String::from_utf8_lossy(&bytes);
        let within = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(&*name).components().all(within) {
            return Err(refuse(&format_args!("{name:?} leads out of its folder")));
        }
        match kind {
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            EntryType::Regular => {}
            other => return Err(refuse(&format_args!("{name:?} is a {other:?}; plain files are read"))),
        }
        let name = name.trim_start_matches("./").to_owned();
        let start = entry.raw_file_position();
        let range = start..start.saturating_add(entry.size());
        if range.end > whole {
            return Err(refuse(&format_args!("{name:?} ends at byte {} of {whole}: it was cut", range.end)));
        }
        if all.iter().any(|other| other.name == name) {
            return Err(refuse(&format_args!("{name:?} is in it twice")));
        }
        if all.len() >= MAX_MEMBERS {
            return Err(refuse(&format_args!("more than {MAX_MEMBERS} members")));
        }
        all.push(Member { name, range });
    }
    Ok(all)
}

fn is_extension(kind: EntryType) -> bool {
    use EntryType::{GNULongLink, GNULongName, XGlobalHeader, XHeader};
    matches!(kind, GNULongName | GNULongLink | XHeader | XGlobalHeader)
}

/// As it must be for members of 8 GiB and more, and then the header's own size is not to be believed.
fn resized<R: Read>(entry: &mut tar::Entry<R>) -> io::Result<bool> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(false) };
    let keys = extensions.map(|extension| Ok(extension?.key_bytes() == b"size"));
    keys.collect::<io::Result<Vec<bool>>>().map(|sizes| sizes.contains(&true))
}

fn refuse(why: &dyn std::fmt::Display) -> PredictError {
    PredictError::Operator(format!("the archive: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Entry<'a> = (&'a str, EntryType, &'a [u8]);

    fn tar(entries: &[Entry]) -> tempfile::NamedTempFile {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // By hand, for the builder writes no name that leads out.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), builder.into_inner().unwrap()).unwrap();
        file
    }

    fn refusal(entries: &[Entry]) -> String {
        members(tar(entries).path()).unwrap_err().text().to_owned()
    }

    #[test]
    fn members_are_read_where_they_lie() {
        let file = tar(&[
            ("checkpoints/", EntryType::Directory, b""),
            // As Python's tarfile writes times.
            ("PaxHeaders/a.txt", EntryType::XHeader, b"22 mtime=1693526400.5\n"),
            ("./a.txt", EntryType::Regular, b"one"),
            ("b/c.txt", EntryType::Regular, b""),
        ]);
        assert!(is_tar(file.path()).unwrap());
        let all = members(file.path()).unwrap();
        assert_eq!(all.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["a.txt", "b/c.txt"]);
        assert_eq!(all[0].read(file.path(), 3).unwrap(), b"one");
        assert_eq!(all[0].read(file.path(), 2).unwrap_err().text(), "the archive: a.txt has 3 bytes; at most 2");
        assert_eq!(all[1].read(file.path(), 0).unwrap(), b"");
        let other = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(other.path(), b"short").unwrap();
        assert!(!is_tar(other.path()).unwrap());
    }

    #[test]
    fn what_an_honest_archive_has_not_is_refused() {
        let plain = EntryType::Regular;
        for (entries, expected) in [
            (&[("../lora.safetensors", plain, &b"x"[..])][..], "\"../lora.safetensors\" leads out of its folder"),
            (&[("/etc/passwd", plain, b"x")], "\"/etc/passwd\" leads out"),
            (&[("a/../../b", plain, b"x")], "leads out"),
            (&[("a", EntryType::Symlink, b"")], "\"a\" is a Symlink; plain files are read"),
            (&[("a", EntryType::Link, b"")], "is a Link"),
            (&[("a", EntryType::Char, b"")], "is a Char"),
            (&[("a", plain, b"x"), ("./a", plain, b"y")], "\"a\" is in it twice"),
            (&[("x", EntryType::GNULongName, &[b'a'; 65_537])], "a header has 65537 bytes; at most 65536"),
            (&[("x", EntryType::XHeader, b"9 size=1\n"), ("a", plain, b"x")], "gives its member another size"),
        ] {
            let said = refusal(entries);
            assert!(said.starts_with("the archive: ") && said.contains(expected), "{said}\n  {expected}");
        }
        let many: Vec<String> = (0..=MAX_MEMBERS).map(|number| number.to_string()).collect();
        let many: Vec<Entry> = many.iter().map(|name| (name.as_str(), plain, &b""[..])).collect();
        assert!(refusal(&many).contains("more than 1024 members"));
    }

    proptest! {
        #[test]
        fn a_mutated_archive_is_read_or_refused_and_never_panics(
            changes in prop::collection::vec((0_usize..3_584, any::<u8>()), 1..12),
        ) {
            let mtime = ("x", EntryType::XHeader, &b"22 mtime=1693526400.5\n"[..]);
            let file = tar(&[mtime, ("a.txt", EntryType::Regular, b"one"), ("b.txt", EntryType::Regular, b"two")]);
            let mut bytes = std::fs::read(file.path()).unwrap();
            changes.into_iter().for_each(|(place, value)| bytes[place] = value);
            std::fs::write(file.path(), &bytes).unwrap();
            for member in members(file.path()).unwrap_or_default() {
                prop_assert!(member.range.end <= bytes.len() as u64);
                member.read(file.path(), bytes.len() as u64).unwrap();
            }
        }
    }

    #[test]
    fn an_archive_that_was_cut_is_refused_wherever_it_was() {
        let file = tar(&[("a.txt", EntryType::Regular, &[7; 2_000])]);
        let bytes = std::fs::read(file.path()).unwrap();
        for length in [300, 512, 600, 2_511] {
            std::fs::write(file.path(), &bytes[..length]).unwrap();
            assert!(members(file.path()).is_err(), "{length}");
        }
        std::fs::write(file.path(), &bytes[..2_512]).unwrap();
        assert_eq!(members(file.path()).unwrap().len(), 1, "only what fills up is missing");
    }
}
