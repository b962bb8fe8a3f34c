//! The benchmarks and the cluster simulator.

pub mod sim;
