//! The files of a node's identity, and one reading of them.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::error::TlsError;
use super::names::sha256;

/// The longest file: a revocation list of 300,000 certificates. What is longer was named by mistake.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// The bits of a mode that let others read, and write.
const OTHERS_READ: u32 = 0o044;
/// See [`OTHERS_READ`].
const OTHERS_WRITE: u32 = 0o022;
/// Everybody on the machine may write.
const ALL_WRITE: u32 = 0o002;

/// The files of a node's identity, all PEM. They are looked at every 30 s, and read again when their content changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) crl: Option<PathBuf>,
}

impl TlsFiles {
    /// The certificates of the authorities that peers may be issued by, this node's certificate (followed by its
    /// intermediates, if any), and its private key, which nobody but the owner of the file may be able to write.
    ///
    /// Two authorities in one file are both trusted, which is how one follows the other without a restart.
    pub fn new(ca: impl Into<PathBuf>, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        TlsFiles {
            ca: ca.into(),
            cert: cert.into(),
            key: key.into(),
            crl: None,
        }
    }

    /// The revocation lists, `node.crl`: one of each authority in the `ca` file, as `dispatch cert revoke` writes them.
    ///
    /// A peer whose certificate is on a list is refused, and so is one of an authority that has none. Links that are open
    /// are closed when the file is read again.
    pub fn crl(mut self, crl: impl Into<PathBuf>) -> Self {
        self.crl = Some(crl.into());
        self
    }
}

/// What tells one content from another.
pub(super) type Digest = Vec<u8>;

/// Whom to trust, as the files have it.
pub(super) struct TrustFiles {
    pub(super) ca: Vec<u8>,
    pub(super) crl: Option<Vec<u8>>,
    /// Those that everybody on the machine may write.
    pub(super) writable: Vec<PathBuf>,
    pub(super) digest: Digest,
}

impl TrustFiles {
    pub(super) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let mut writable = Vec::new();
        let mut contents = Vec::new();
        for path in [Some(&files.ca), files.crl.as_ref()].into_iter().flatten() {
            let (content, metadata) = read(path)?;
            if mode(&metadata).is_some_and(|mode| mode & ALL_WRITE != 0) {
                writable.push(path.clone());
            }
            contents.push(content);
        }
        let digest = digest(&contents, 0);
        let mut contents = contents.into_iter();
        Ok(TrustFiles {
            ca: contents.next().unwrap_or_default(),
            crl: contents.next(),
            writable,
            digest,
        })
    }
}

/// Who this node is, as the files have it.
pub(super) struct OwnFiles {
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
    /// The key's mode where others than the file's owner can read it.
    pub(super) open_mode: Option<u32>,
    pub(super) digest: Digest,
}

impl OwnFiles {
    /// # Errors
    ///
    /// [`TlsError::KeyMode`], too: whoever can write the key can take this node's place.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let (cert, _) = read(&files.cert)?;
        let (key, metadata) = read(&files.key)?;
        let mode = mode(&metadata).unwrap_or(0);
        if mode & OTHERS_WRITE != 0 {
            return Err(TlsError::KeyMode {
                path: files.key.clone(),
                mode,
            });
        }
        let contents = [cert, key];
        let digest = digest(&contents, mode);
        let [cert, key] = contents;
        Ok(OwnFiles {
            cert,
            key,
            open_mode: (mode & OTHERS_READ != 0).then_some(mode),
            digest,
        })
    }
}

/// One digest over all of them, and where each ends.
fn digest(contents: &[Vec<u8>], mode: u32) -> Digest {
    let mut digests = mode.to_le_bytes().to_vec();
    for content in contents {
        digests.extend(sha256(content));
    }
    digests
}

/// The mode's permissions; none where the system has no such thing.
fn mode(metadata: &Metadata) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Some(metadata.mode() & 0o7777)
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, Metadata), TlsError> {
    let all = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let mut content = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            let why = format!("it is longer than {MAX_FILE_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        Ok((content, metadata))
    };
    all().map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}
