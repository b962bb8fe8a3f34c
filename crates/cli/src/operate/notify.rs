//! Telling the service manager how things stand, as systemd's sd_notify does: one datagram for each word.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Tells the service manager, where there is one.
pub(crate) fn tell(word: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket.to_string_lossy(), word)
    {
        tracing_line(&error);
    }
}

fn send(socket: &str, word: &str) -> std::io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(word.as_bytes(), &address)
        .map(drop)
}

fn tracing_line(error: &std::io::Error) {
    crate::output::complain(format_args!("the service manager does not hear: {error}"));
}

/// How often the service manager wants to hear of this process, where it does: half of what it asks for.
pub(crate) fn watchdog() -> Option<Duration> {
    let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let for_us = std::env::var("WATCHDOG_PID")
        .ok()
        .is_none_or(|pid| pid == std::process::id().to_string());
    (for_us && micros > 0).then(|| Duration::from_micros(micros / 2))
}
