//! The whole model: on real weights and recordings where they are there, and on what must be refused.
