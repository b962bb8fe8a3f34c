//! Bytes that a call and its reply take beyond their payloads, before TLS: counted on the way between two nodes that do
//! without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use keydispatch::Node;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::bench::Bench;
use super::subject::{Echo, Echoes};
use keydispatch_fleet::Error;
use keydispatch_measure::Target;

const CALLS: u64 = 2_000;

pub(super) async fn measure(bench: &mut Bench) -> Result<(), Error> {
    const PAYLOAD: u64 = 64;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let outside = listener.local_addr()?;
    // A port that was free a moment ago.
    let inside = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&bytes);
    let relay = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(onward) = TcpStream::connect(inside).await {
                let (from, to) = (stream.into_split(), onward.into_split());
                tokio::spawn(pass(from.0, to.1, Arc::clone(&counted)));
                tokio::spawn(pass(to.0, from.1, Arc::clone(&counted)));
            }
        }
    });
    let far = Node::builder("counted far")
        .bind(inside.to_string())
        .advertise(outside.to_string())
        .plaintext()
        .start()
        .await?;
    far.serve(Echo).await?;
    let near = Node::builder("counted near")
        .plaintext()
        .seeds([outside.to_string()])
        .start()
        .await?;
    let echoes = near.services::<Echoes>();
    echoes.wait_online(1).await?;
    let message = Bytes::from(vec![7; PAYLOAD as usize]);
    echoes.call(7_u64, message.clone()).await?;
    let before = bytes.load(Ordering::SeqCst);
    for _ in 0..CALLS {
        echoes.call(7_u64, message.clone()).await?;
    }
    // What membership said meanwhile is counted with it.
    let all = bytes.load(Ordering::SeqCst) - before;
    let overhead = all as f64 / CALLS as f64 - 2.0 * PAYLOAD as f64;
    bench.output.line(format!(
        "\nOverhead of a call of 64 B and its reply together, before TLS: {overhead:.1} bytes"
    ));
    let name = "bytes beyond the payloads of a call and its reply, before TLS";
    bench.targets.push(Target::at_most(name, overhead, 48.0));
    bench
        .figures
        .insert("overhead_bytes".to_owned(), json!(overhead));
    near.leave().await?;
    far.leave().await?;
    relay.abort();
    Ok(())
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        bytes.fetch_add(read as u64, Ordering::SeqCst);
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
