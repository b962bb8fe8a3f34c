//! Node processes for tests and benchmarks, and what the commands of `keydispatch-bench` share.

use std::time::{Duration, Instant};

use serde::Serialize;

pub mod call;
pub mod fleet;
pub mod lookup;
pub mod net;
pub mod register;
pub mod rolling;
pub mod sim;
pub mod soak;

/// One figure of a run beside what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    name: String,
    value: f64,
    target: f64,
    /// Which way is better: `<=` or `>=`.
    bound: &'static str,
    met: bool,
}

impl Target {
    /// A figure that should not be above the target.
    pub fn at_most(name: impl Into<String>, value: f64, target: f64) -> Self {
        Target {
            name: name.into(),
            value: rounded(value),
            target,
            bound: "<=",
            met: value <= target,
        }
    }

    /// A figure that should not be below the target.
    pub fn at_least(name: impl Into<String>, value: f64, target: f64) -> Self {
        Target {
            name: name.into(),
            value: rounded(value),
            target,
            bound: ">=",
            met: value >= target,
        }
    }
}

/// Prints tables as they are measured; with `--json`, one object last.
#[derive(Clone, Copy)]
pub struct Output {
    /// Where lines go.
    pub say: fn(&str),
    /// Whether an object is wanted.
    pub json: bool,
}

impl Output {
    /// A line, or several.
    pub fn line(&self, line: impl AsRef<str>) {
        (self.say)(line.as_ref());
    }

    /// A title and rows, the first of them the heads of the columns; all but the first column stand right.
    pub fn table(&self, title: &str, rows: &[Vec<String>]) {
        self.line(format!("\n{title}\n"));
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|at| {
                let cells = rows.iter().filter_map(|row| row.get(at));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for (number, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(at, (cell, &width))| match at {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            self.line(format!("| {} |", cells.join(" | ")));
            if number == 0 {
                let dashes: Vec<String> = widths
                    .iter()
                    .enumerate()
                    .map(|(at, &width)| match at {
                        0 => "-".repeat(width),
                        _ => format!("{}:", "-".repeat(width.saturating_sub(1))),
                    })
                    .collect();
                self.line(format!("| {} |", dashes.join(" | ")));
            }
        }
    }

    /// The targets as a table, and the object.
    pub fn finish(
        &self,
        command: &str,
        mut figures: serde_json::Map<String, serde_json::Value>,
        targets: &[Target],
    ) -> Result<(), fleet::Error> {
        let mut rows = vec![cells(["target", "value", "bound", "met"])];
        for target in targets {
            rows.push(vec![
                target.name.clone(),
                figure(target.value),
                format!("{} {}", target.bound, figure(target.target)),
                if target.met { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        self.table("Targets", &rows);
        if self.json {
            figures.insert("command".to_owned(), command.into());
            figures.insert("targets".to_owned(), serde_json::to_value(targets)?);
            self.line(serde_json::to_string(&figures)?);
        }
        Ok(())
    }
}

/// A row of a table.
pub fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A number with as many digits as say something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 10_000.0 => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && digit != '-' && (digits.len() - at).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        large if large >= 100.0 => format!("{value:.0}"),
        middling if middling >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn rounded(value: f64) -> f64 {
    if value.is_finite() {
        (value * 1e4).round() / 1e4
    } else {
        value
    }
}

/// How long something takes.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// What this thread has computed so far: unlike the clock, it does not run while others have the core.
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Nanoseconds of a clock that all processes of a machine share.
pub fn monotonic_nanos() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// What the kernel says of a process.
pub mod process {
    use std::time::Duration;

    /// The time that all threads of a process have computed so far.
    pub fn busy(id: u32) -> Duration {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{id}/task")) else {
            return Duration::ZERO;
        };
        let nanos = tasks
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
            .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
            .sum();
        Duration::from_nanos(nanos)
    }

    /// Resident memory in bytes.
    pub fn resident(id: u32) -> u64 {
        std::fs::read_to_string(format!("/proc/{id}/status"))
            .ok()
            .and_then(|status| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("VmRSS:"))?;
                line.split_whitespace().next()?.parse::<u64>().ok()
            })
            .map_or(0, |kib| kib * 1024)
    }
}

/// A process of this binary that does what another one measures; killed when dropped.
pub struct Follower {
    child: tokio::process::Child,
    input: tokio::process::ChildStdin,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Follower {
    /// Starts it; `arguments` begin with a hidden command.
    pub fn start<I: AsRef<std::ffi::OsStr>>(
        arguments: impl IntoIterator<Item = I>,
    ) -> Result<Self, fleet::Error> {
        use tokio::io::AsyncBufReadExt;
        let mut child = tokio::process::Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = child.stdout.take().ok_or("no standard output")?;
        Ok(Follower {
            child,
            input,
            lines: tokio::io::BufReader::new(output).lines(),
        })
    }

    /// Its next line, without the word that it begins with.
    pub async fn expect(&mut self, word: &str) -> Result<String, fleet::Error> {
        let line = tokio::time::timeout(fleet::PATIENCE * 4, self.lines.next_line()).await??;
        let line = line.ok_or("the other process has ended")?;
        let rest = line.strip_prefix(word);
        Ok(rest
            .ok_or_else(|| format!("not {word:?}: {line}"))?
            .trim()
            .to_owned())
    }

    /// Tells it something.
    pub async fn tell(&mut self, line: &str) -> Result<(), fleet::Error> {
        use tokio::io::AsyncWriteExt;
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        self.input.flush().await?;
        Ok(())
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Kills it, as SIGKILL does; returns when the signal is sent.
    pub fn kill(&mut self) -> Result<(), fleet::Error> {
        self.child.start_kill()?;
        Ok(())
    }
}

/// The value below which the fraction `quantile` of the values lies; zero of none.
pub fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return 0.0;
    }
    let at = (quantile * (sorted.len() - 1) as f64).round() as usize;
    sorted[at]
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The exponent b of a cost that grows as sizeᵇ: least squares on the logarithms of (size, cost).
pub fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|(size, cost)| *size > 0.0 && *cost > 0.0)
        .map(|(size, cost)| (size.ln(), cost.ln()))
        .collect();
    let count = logs.len() as f64;
    let (x, y) = logs
        .iter()
        .fold((0.0, 0.0), |sum, log| (sum.0 + log.0, sum.1 + log.1));
    let (x, y) = (x / count, y / count);
    let above: f64 = logs.iter().map(|log| (log.0 - x) * (log.1 - y)).sum();
    let below: f64 = logs.iter().map(|log| (log.0 - x).powi(2)).sum();
    above / below
}

/// Allocations of this thread so far, where the counting allocator is the process's.
pub mod allocations {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    /// Of one thread.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Tally {
        /// How many allocations it has made.
        pub count: u64,
        /// The bytes of all of them.
        pub bytes: u64,
        /// The bytes of all of them, less those that it has given back.
        pub live: i64,
        /// The same with what the C library's allocator adds to each.
        pub heap: i64,
    }

    thread_local! {
        static TALLY: Cell<Tally> = const {
            Cell::new(Tally { count: 0, bytes: 0, live: 0, heap: 0 })
        };
    }

    /// The system's allocator, counting for each thread.
    pub struct Counting;

    #[expect(unsafe_code, reason = "an allocator is one")]
    // Safety: all work is the system allocator's; counting touches a cell without a destructor.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            came(layout.size());
            // Safety: as the caller promised.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            went(layout.size());
            // Safety: as the caller promised.
            unsafe { System.dealloc(pointer, layout) }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            went(layout.size());
            came(size);
            // Safety: as the caller promised.
            unsafe { System.realloc(pointer, layout, size) }
        }
    }

    fn came(bytes: usize) {
        TALLY.with(|tally| {
            let before = tally.get();
            tally.set(Tally {
                count: before.count + 1,
                bytes: before.bytes + bytes as u64,
                live: before.live + bytes as i64,
                heap: before.heap + on_the_heap(bytes),
            });
        });
    }

    fn went(bytes: usize) {
        TALLY.with(|tally| {
            let before = tally.get();
            tally.set(Tally {
                live: before.live - bytes as i64,
                heap: before.heap - on_the_heap(bytes),
                ..before
            });
        });
    }

    /// What the C library takes on 64-bit Linux: eight bytes of its own, sixteen at a time, thirty-two at least.
    fn on_the_heap(bytes: usize) -> i64 {
        (bytes + 8).next_multiple_of(16).max(32) as i64
    }

    /// How many this thread has made.
    pub fn count() -> u64 {
        tally().count
    }

    /// All that is counted of this thread.
    pub fn tally() -> Tally {
        TALLY.with(Cell::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_of_a_power_is_its_exponent() {
        let points = [10.0, 100.0, 1_000.0, 10_000.0].map(|size: f64| (size, 3.0 * size.powf(1.5)));
        assert!((exponent(&points) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!((median(&values), quantile(&values, 1.0)), (3.0, 5.0));
        assert_eq!(figure(1_234_567.0), "1,234,567");
    }
}
