//! A peer's behaviour as bytes: steps of a kind, a length of two bytes (little endian), and a body.

/// Lets as many milliseconds pass as the length says.
pub(crate) const WAIT: u8 = 255;
/// Closes the connection, and opens another.
pub(crate) const RECONNECT: u8 = 254;

/// The next step: its kind, its length, its body; and what follows it.
#[allow(dead_code, reason = "the seeds write scripts and read none")]
pub(crate) fn step(data: &[u8]) -> Option<(u8, u16, &[u8], &[u8])> {
    let (&[kind, low, high], rest) = data.split_first_chunk::<3>()?;
    let length = u16::from_le_bytes([low, high]);
    let body = if kind >= RECONNECT {
        0
    } else {
        usize::from(length).min(rest.len())
    };
    let (body, rest) = rest.split_at(body);
    Some((kind, length, body, rest))
}

/// A step as bytes.
#[allow(dead_code, reason = "the fuzz target reads scripts and writes none")]
pub(crate) fn push(script: &mut Vec<u8>, kind: u8, length: u16, body: &[u8]) {
    script.push(kind);
    script.extend(length.to_le_bytes());
    script.extend(body);
}
