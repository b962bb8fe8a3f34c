//! The floor: bytes that come back over TLS 1.3, framed by a length, batched, and nothing else.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use keydispatch::ClusterName;
use rustls::version::TLS13;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use keydispatch_fleet::{CLUSTER, Certificates, Error};
use keydispatch_measure::median;

/// Frames taken from the queue for one write.
const BATCH: usize = 256;

/// Bytes that a read may bring: as the library has it, and more than rustls reads by itself.
const READ_BYTES: usize = 64 * 1024;

/// Bytes read from the socket at once, below TLS: as the library has it.
const SOCKET_BYTES: usize = 32 * 1024;

/// A frame above this is not copied before it is written.
const COPY_BYTES: usize = 8 * 1024;

type Call = (Bytes, oneshot::Sender<Bytes>);

/// Calls wait in a queue for the task that writes; replies come in their order to the task that reads.
#[derive(Clone)]
pub struct Client {
    calls: mpsc::Sender<Call>,
}

impl Client {
    pub(crate) async fn connect(address: &str, certificates: &Certificates) -> Result<Self, Error> {
        let stream = connect(address, certificates).await?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (calls, mut receiver) = mpsc::channel::<Call>(1_024);
        let waiting = Arc::new(Mutex::new(VecDeque::new()));
        let sent = Arc::clone(&waiting);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            let mut buffer = BytesMut::new();
            while receiver.recv_many(&mut batch, BATCH).await > 0 {
                let mut bodies = Vec::with_capacity(batch.len());
                {
                    let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                    for (body, reply) in batch.drain(..) {
                        sent.push_back(reply);
                        bodies.push(body);
                    }
                }
                if write_frames(&mut writer, &mut buffer, bodies)
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut frames = Frames::default();
            while let Ok(Some(reply)) = frames.next(&mut reader).await {
                let caller = waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .pop_front();
                if let Some(caller) = caller {
                    let caller: oneshot::Sender<Bytes> = caller;
                    // The caller may have gone.
                    let _ = caller.send(reply);
                }
            }
        });
        Ok(Client { calls })
    }

    pub(super) async fn call(&self, message: Bytes) -> Result<Bytes, Error> {
        let (reply, answer) = oneshot::channel();
        self.calls.send((message, reply)).await?;
        Ok(answer.await?)
    }
}

/// An echo without tasks of its own.
pub(super) struct Direct {
    stream: client::TlsStream<BufReader<TcpStream>>,
}

impl Direct {
    pub(super) async fn connect(address: &str, certificates: &Certificates) -> Result<Self, Error> {
        let stream = connect(address, certificates).await?;
        Ok(Direct { stream })
    }

    /// The middle of the round trips' times in microseconds.
    pub(super) async fn sequential(
        &mut self,
        bytes: usize,
        window: Duration,
    ) -> Result<f64, Error> {
        let end = Instant::now() + window;
        let body = Bytes::from(vec![7; bytes]);
        let (mut frames, mut buffer) = (Frames::default(), BytesMut::new());
        let mut micros = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            write_frames(&mut self.stream, &mut buffer, vec![body.clone()]).await?;
            frames.next(&mut self.stream).await?;
            micros.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(&micros))
    }
}

async fn connect(
    address: &str,
    certificates: &Certificates,
) -> Result<client::TlsStream<BufReader<TcpStream>>, Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(
        certificates.path().join("ca.pem"),
    )?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = keydispatch::tls::cluster_dns_name(&ClusterName::try_new(CLUSTER)?);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream = BufReader::with_capacity(SOCKET_BYTES, stream);
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector
        .connect(ServerName::try_from(name)?, stream)
        .await?)
}

/// Echoes to whoever connects.
pub(crate) async fn serve(
    listener: TcpListener,
    certificates: &Path,
    name: &str,
) -> Result<(), Error> {
    let chain = CertificateDer::pem_file_iter(certificates.join(format!("{name}.pem")))?
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(certificates.join(format!("{name}.key")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let stream = BufReader::with_capacity(SOCKET_BYTES, stream);
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let (mut frames, mut buffer) = (Frames::default(), BytesMut::new());
            while let Ok(Some(first)) = frames.next(&mut stream).await {
                let mut batch = vec![first];
                while let Some(more) = frames.parse() {
                    batch.push(more);
                }
                if write_frames(&mut stream, &mut buffer, batch).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(
    writer: &mut W,
    buffer: &mut BytesMut,
    bodies: Vec<Bytes>,
) -> std::io::Result<()> {
    buffer.clear();
    for body in bodies {
        buffer.put_u32_le(body.len() as u32);
        if body.len() <= COPY_BYTES {
            buffer.extend_from_slice(&body);
        } else {
            writer.write_all(buffer).await?;
            buffer.clear();
            writer.write_all(&body).await?;
        }
    }
    writer.write_all(buffer).await?;
    writer.flush().await
}

#[derive(Default)]
struct Frames {
    buffer: BytesMut,
}

impl Frames {
    async fn next<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
    ) -> std::io::Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.parse() {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            if reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn parse(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(*self.buffer.first_chunk::<4>()?) as usize;
        if self.buffer.len() < 4 + length {
            return None;
        }
        self.buffer.advance(4);
        Some(self.buffer.split_to(length).freeze())
    }
}
