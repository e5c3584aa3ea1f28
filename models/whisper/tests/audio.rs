//! Files that are audio and files that are not.
