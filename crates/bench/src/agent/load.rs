//! Clients that keep their connection, and know no more of HTTP than they need: what they cost is not to be measured.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::far::pin;
use keydispatch_fleet::Error;
use keydispatch_measure::quantile_of_sorted;

/// What asking again and again came to.
pub(super) struct Load {
    pub(super) count: usize,
    pub(super) rate: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// One connection.
pub(super) struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(socket: &Path) -> Result<Self, Error> {
        Ok(Connection {
            stream: UnixStream::connect(socket).await?,
            buffer: Vec::with_capacity(64 * 1024),
        })
    }

    /// The body of an answer, which has to be a good one.
    pub(super) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<Vec<u8>, Error> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let head = self.exchange(request.as_bytes()).await?;
        Ok(self.buffer[head..].to_vec())
    }

    /// Sends a request and reads its answer into the buffer; returns where the body begins.
    async fn exchange(&mut self, request: &[u8]) -> Result<usize, Error> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the agent hung up".into());
            }
            let Some(head) = find(&self.buffer, b"\r\n\r\n") else {
                continue;
            };
            let head = head + 4;
            let length = length(&self.buffer[..head])?;
            while self.buffer.len() < head + length {
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err("the agent hung up within an answer".into());
                }
            }
            if !self.buffer.starts_with(b"HTTP/1.1 2") {
                return Err(String::from_utf8_lossy(&self.buffer).into_owned().into());
            }
            return Ok(head);
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|part| part == what)
}

/// The length of the body; headers are in lower case, as hyper writes them.
fn length(head: &[u8]) -> Result<usize, Error> {
    let head = std::str::from_utf8(head)?;
    match head.split("content-length: ").nth(1) {
        Some(rest) => Ok(rest.split("\r\n").next().unwrap_or_default().parse()?),
        // An answer without a body may go without.
        None => Ok(0),
    }
}

/// So many clients ask the same again and again for so long, on a core of their own where there is one.
pub(super) async fn run(
    socket: &Path,
    path: &str,
    connections: usize,
    window: Duration,
) -> Result<Load, Error> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let socket = socket.to_owned();
    let load = tokio::task::spawn_blocking(move || {
        let clients = std::thread::spawn(move || -> Result<Load, String> {
            let failed = |error: Error| error.to_string();
            if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
                pin(1).map_err(failed)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?;
            let clients = clients(&socket, request.as_bytes(), connections, window);
            runtime.block_on(clients).map_err(failed)
        });
        clients
            .join()
            .unwrap_or_else(|_| Err("a client has panicked".to_owned()))
    });
    Ok(load.await??)
}

async fn clients(
    socket: &Path,
    request: &[u8],
    connections: usize,
    window: Duration,
) -> Result<Load, Error> {
    let local = tokio::task::LocalSet::new();
    let mut tasks = Vec::new();
    let began = Instant::now();
    for _ in 0..connections {
        let mut connection = Connection::open(socket).await?;
        let request = request.to_vec();
        tasks.push(local.spawn_local(async move {
            let mut took = Vec::new();
            while began.elapsed() < window {
                let sent = Instant::now();
                // Which error it is does not matter: none may come.
                if let Err(error) = connection.exchange(&request).await {
                    return Err(error.to_string());
                }
                took.push(sent.elapsed().as_secs_f64() * 1e6);
            }
            Ok(took)
        }));
    }
    let mut all = Vec::new();
    local
        .run_until(async {
            for task in tasks {
                all.extend(task.await??);
            }
            Ok::<_, Error>(())
        })
        .await?;
    let elapsed = began.elapsed();
    all.sort_by(f64::total_cmp);
    Ok(Load {
        count: all.len(),
        rate: all.len() as f64 / elapsed.as_secs_f64(),
        p50_us: quantile_of_sorted(&all, 0.5),
        p99_us: quantile_of_sorted(&all, 0.99),
    })
}

/// A stream of what happens to a type.
pub(super) struct Watcher {
    stream: UnixStream,
    /// Bytes that came so far.
    pub(super) read: usize,
}

impl Watcher {
    /// Opens it, and reads what is there.
    pub(super) async fn open(socket: &Path, path: &str) -> Result<Self, Error> {
        let mut watcher = Watcher {
            stream: UnixStream::connect(socket).await?,
            read: 0,
        };
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n");
        watcher.stream.write_all(request.as_bytes()).await?;
        watcher.until("event: snapshot").await?;
        Ok(watcher)
    }

    /// Reads until an event of that name is there as a whole; returns how many bytes came.
    pub(super) async fn until(&mut self, event: &str) -> Result<usize, Error> {
        let mut text = Vec::new();
        loop {
            if let Some(at) = find(&text, event.as_bytes())
                && find(&text[at..], b"\n\n").is_some()
            {
                self.read += text.len();
                return Ok(text.len());
            }
            let read =
                tokio::time::timeout(keydispatch_fleet::PATIENCE, self.stream.read_buf(&mut text));
            if read.await?? == 0 {
                return Err(format!("the stream ended before {event}").into());
            }
        }
    }
}
