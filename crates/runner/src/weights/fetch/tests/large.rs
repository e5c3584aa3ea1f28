//! Files that are asked for in parts, and disks that cannot hold them.

use super::*;

/// Three whole segments and a piece.
const BYTES: usize = (3 << 23) + 12_345;

fn large() -> Vec<u8> {
    (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn a_large_file_comes_over_several_connections_in_order() {
    let content = large();
    let body = content.clone();
    let server = Server::start(move |request, _| ranged(request, &body));
    let mut here = Here::new();
    let folder = here.ensure(&entry(&[("w", &content)]), &[https(&server.url("/w"))]).unwrap();
    assert!(std::fs::read(folder.join("w")).unwrap() == content);
    let mut asked: Vec<_> = server.seen().iter().map(|request| request.range(&content)).collect();
    asked.sort_unstable();
    let segment = 1 << 23;
    assert_eq!(asked, [(0, segment), (segment, 2 * segment), (2 * segment, 3 * segment), (3 * segment, BYTES)]);
}

#[test]
fn a_hub_that_stops_half_way_is_gone_on_with_from_there() {
    let content = large();
    let body = content.clone();
    // The second segment is cut in its middle, once.
    let mut cut_once = false;
    let server = Server::start(move |request, _| {
        let whole = ranged(request, &body);
        if request.range(&body).0 == 1 << 23 && !cut_once {
            cut_once = true;
            return whole[..whole.len() / 2].to_vec();
        }
        whole
    });
    let mut here = Here::new();
    here.ensure(&entry(&[("w", &content)]), &[https(&server.url("/w"))]).unwrap();
    let again =
        server.seen().iter().map(|request| request.range(&content).0).any(|from| from > 1 << 23 && from < 2 << 23);
    assert!(again, "what came of the second segment was kept");
}

#[test]
fn a_half_file_of_an_earlier_start_goes_on_in_parts() {
    let content = large();
    let entry = entry(&[("w", &content)]);
    let mut here = Here::new();
    let left = here.cache().partial(&entry.files[0]);
    std::fs::create_dir_all(left.parent().unwrap()).unwrap();
    std::fs::write(&left, &content[..10_000_000]).unwrap();
    let body = content.clone();
    let server = Server::start(move |request, _| ranged(request, &body));
    here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    let asked: u64 =
        server.seen().iter().map(|request| request.range(&content)).map(|(from, until)| (until - from) as u64).sum();
    assert_eq!(asked, BYTES as u64 - 10_000_000);
}

#[test]
fn a_segment_that_lies_about_its_place_or_length_is_not_believed() {
    let content = large();
    for lie in ["place", "length", "status"] {
        let body = content.clone();
        let server = Server::start(move |request, before| match (before, lie) {
            (0, _) => ranged(request, &body),
            (_, "place") => part(&body, 5, 1 << 20),
            (_, "length") => {
                let (from, until) = request.range(&body);
                let headers =
                    format!("Content-Range: bytes {from}-{}/{}\r\nContent-Length: 3\r\n", until - 1, body.len());
                answer("206 Partial Content", &headers, b"xyz")
            }
            _ => answer("403 Forbidden", "Content-Length: 0\r\n", b""),
        });
        let mut here = Here::new();
        let said = here.ensure(&entry(&[("w", &content)]), &[https(&server.url("/w"))]).unwrap_err();
        let expected = match lie {
            "place" => "it sends neither the part that is asked for nor the whole",
            "length" => "cut after",
            _ => "HTTP 403",
        };
        assert!(said.contains(expected), "{lie}: {said}");
        assert!(!here.cache().blob(&entry(&[("w", &content)]).files[0]).exists());
    }
}

#[test]
fn a_disk_that_is_full_ends_it_at_once_and_says_so() {
    let content = content();
    let entry = entry(&[("w", &content)]);
    let mut here = Here::new();
    let partial = here.cache().partial(&entry.files[0]);
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    // The system's own full disk.
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let body = content.clone();
    let server = Server::start(move |_, _| ok(&body));
    let mirrors = [https(&server.url("/one")), https(&server.url("/two"))];
    let said = here.ensure(&entry, &mirrors).unwrap_err();
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(server.seen().len(), 1, "another source has no more room either");
}

#[test]
fn what_cannot_fit_is_not_begun() {
    let mut entry = entry(&[("w", &content())]);
    entry.files[0].size = 1 << 60;
    entry.size = 1 << 60;
    let server = Server::start(|_, _| answer("500 No", "", b""));
    let said = Here::new().ensure(&entry, &[https(&server.url("/w"))]).unwrap_err();
    assert!(said.contains(&format!("no space left: {} bytes are needed, ", 1u64 << 60)), "{said}");
    assert!(server.seen().is_empty());
}
