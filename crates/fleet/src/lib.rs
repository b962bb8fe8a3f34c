//! Real node processes: what tests and benchmarks start, tell, freeze and kill; networks in namespaces, a soak, and
//! rolling upgrades.

mod certificates;
mod child;
mod command;
mod error;
pub mod net;
pub mod rolling;
pub mod soak;
pub mod test_node;
mod versions;
mod wait;

pub use certificates::{CLUSTER, Certificates, describe};
pub use child::{Child, this_program};
pub use command::{Command, NodeArgs, log, run};
pub use error::Error;
pub use test_node::{
    Counter, CounterCall, Counters, Happened, Listed, Request, Response, TestNode, TestNodes,
};
pub use versions::{AskOne, AskTwo, GreeterOne, GreeterTwo, GreetersOne, GreetersTwo};
pub use wait::{PATIENCE, eventually};
