//! One op per file, for the CPU: what candle lacks. Knows slices and a thread pool; refuses to know models.
