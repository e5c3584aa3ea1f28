//! Frames in, events out: the loop that owns the device. Refuses to know the store.
