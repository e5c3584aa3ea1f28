//! Memory of many megabytes, in huge pages. Refuses to know what is in it.

/// From so many bytes on, room is asked for in huge pages: a result of tens of megabytes would else be mapped in 4 KiB at
/// a time while it is written, which costs a seventh of a product of 640 features.
#[cfg(target_os = "linux")]
const HUGE_BYTES: usize = 4 << 20;

/// Zeros, mostly untouched yet: whoever writes a part first has it mapped in.
pub fn zeros(len: usize) -> Vec<f32> {
    // From calloc, which takes fresh pages from the system as they are.
    let room = vec![0.0; len];
    ask_for_huge_pages(room.as_ptr().cast(), size_of_val(&room[..]));
    room
}

/// Before an allocation is first touched.
#[cfg(target_os = "linux")]
pub fn ask_for_huge_pages(first: *const u8, bytes: usize) {
    const PAGE_BYTES: usize = 4096;
    if bytes < HUGE_BYTES {
        return;
    }
    let skipped = first.align_offset(PAGE_BYTES);
    let whole = (bytes - skipped) / PAGE_BYTES * PAGE_BYTES;
    // SAFETY: whole pages of an allocation; the advice changes no content. Where the system has no huge pages it says so,
    // and nothing is lost.
    unsafe {
        libc::madvise(first.wrapping_add(skipped).cast_mut().cast(), whole, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
pub fn ask_for_huge_pages(_: *const u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::zeros;

    #[test]
    fn room_of_any_size_is_zero_and_can_be_written() {
        for len in [0, 1, 1000, (1 << 20) + 3, (5 << 20) + 1] {
            let mut room = zeros(len);
            assert!(room.len() == len && room.iter().all(|v| *v == 0.0));
            room.fill(1.0);
            assert!(room.iter().all(|v| *v == 1.0));
        }
    }
}
