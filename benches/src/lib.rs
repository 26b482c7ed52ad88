//! Benchmarks of the pipeline, in memory
