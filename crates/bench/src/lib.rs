//! Node processes for tests and benchmarks, and what the commands of `keydispatch-bench` share.

pub mod agent;
pub mod call;
pub mod fleet;
mod follower;
pub mod limits;
pub mod load;
pub mod lookup;
pub mod net;
pub mod register;
pub mod rolling;
pub mod soak;
pub mod states;

pub use follower::Follower;
