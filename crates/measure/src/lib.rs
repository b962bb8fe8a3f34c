//! What benchmarks and the simulator measure with: tables and targets, statistics, clocks, allocations, process figures.

pub mod allocations;
mod clock;
pub mod process;
mod statistics;
mod table;

pub use clock::{monotonic_nanos, thread_time, timed};
pub use statistics::{exponent, median, quantile, quantile_of_sorted};
pub use table::{Output, Target, cells, figure};
