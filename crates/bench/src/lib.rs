//! Node processes for tests and benchmarks, and what the commands of `keydispatch-bench` share.

pub mod fleet;
pub mod net;
pub mod soak;
