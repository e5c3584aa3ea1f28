//! Types of content and the ends of names that people know them by. A model may choose its reader by the end of a name.

/// The first for a type is the one we write.
const KINDS: [(&str, &str); 27] = [
    ("audio/wav", "wav"),
    ("audio/x-wav", "wav"),
    ("audio/wave", "wav"),
    ("audio/mpeg", "mp3"),
    ("audio/mp3", "mp3"),
    ("audio/flac", "flac"),
    ("audio/x-flac", "flac"),
    ("audio/ogg", "ogg"),
    ("audio/mp4", "m4a"),
    ("audio/x-m4a", "m4a"),
    ("audio/aac", "aac"),
    ("audio/webm", "webm"),
    ("video/webm", "webm"),
    ("video/mp4", "mp4"),
    ("image/png", "png"),
    ("image/jpeg", "jpg"),
    ("image/webp", "webp"),
    ("image/gif", "gif"),
    ("text/plain", "txt"),
    ("text/vtt", "vtt"),
    ("text/srt", "srt"),
    ("text/csv", "csv"),
    ("application/x-subrip", "srt"),
    ("application/json", "json"),
    ("application/pdf", "pdf"),
    ("application/zip", "zip"),
    ("application/x-tar", "tar"),
];

/// Letters of an end worth keeping.
const ENDING_CHARACTERS: usize = 8;
/// Of a name that stands in a URL.
const NAME_CHARACTERS: usize = 100;

/// The end that a type is known by, without its dot.
pub fn of_type(content_type: &str) -> Option<&'static str> {
    let bare = content_type.split(';').next().unwrap_or_default().trim();
    KINDS.iter().find(|(kind, _)| kind.eq_ignore_ascii_case(bare)).map(|(_, ending)| *ending)
}

/// The end of a name, if it is one.
fn of_name(name: &str) -> Option<String> {
    let (stem, ending) = name.rsplit_once('.')?;
    let plain = !stem.is_empty() && (1..=ENDING_CHARACTERS).contains(&ending.len());
    (plain && ending.bytes().all(|byte| byte.is_ascii_alphanumeric())).then(|| ending.to_ascii_lowercase())
}

/// The end for a copy of a file: its name's, else its type's.
pub fn ending(name: &str, content_type: &str) -> Option<String> {
    of_name(name).or_else(|| of_type(content_type).map(str::to_owned))
}

/// A name that can stand in a URL and in a folder as it is; none if nothing is left of it.
pub fn plain(name: &str) -> Option<String> {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = name.trim().trim_start_matches('.').chars().map(safe).take(NAME_CHARACTERS).collect();
    Some(name).filter(|name| name.bytes().any(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_comes_from_a_type_or_a_name() {
        assert_eq!([of_type("audio/WAV"), of_type("text/plain; charset=utf-8")], [Some("wav"), Some("txt")]);
        assert_eq!([of_type(""), of_type("application/octet-stream")], [None, None]);
        assert_eq!(of_name("talk.MP3").as_deref(), Some("mp3"));
        for none in ["talk", ".wav", "talk.", "talk.a b", "talk.verylongending", "a.b/c"] {
            assert_eq!(of_name(none), None, "{none}");
        }
    }

    #[test]
    fn a_plain_name_leads_nowhere() {
        for (name, made) in [
            ("my talk.wav", Some("my_talk.wav")),
            ("../../etc/passwd", Some("_.._etc_passwd")),
            ("..", None),
            ("/", None),
            ("naïve.txt", Some("na_ve.txt")),
        ] {
            assert_eq!(plain(name).as_deref(), made, "{name}");
        }
    }
}
