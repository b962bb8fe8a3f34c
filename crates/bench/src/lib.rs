//! Benchmarks beside peers and floors: one command of `keydispatch-bench` each.

pub mod agent;
pub mod call;
pub mod limits;
pub mod load;
pub mod lookup;
pub mod register;
pub mod states;
