//! How much memory a load took, and giving back to the system what an unload freed. Refuses to know what holds it.

use crate::Owned;

/// The device whose memory is everybody's: what is free there changes by itself, and says nothing about a load.
const SHARED_DEVICE: &str = "cpu";

/// What is free on the device, where that tells how much a load takes.
pub fn free(owned: &Owned) -> Option<u64> {
    if owned.device == SHARED_DEVICE {
        return None;
    }
    (owned.memory)().map(|memory| memory.free_bytes)
}

/// The allocator keeps freed pages for itself; models that come and go would make the process grow.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
