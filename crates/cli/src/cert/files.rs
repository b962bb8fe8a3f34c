//! Files with the mode they are to have from the moment they exist, never written over by accident.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::CertError;

/// For the owner alone: private keys, and the directory that holds them.
const SECRET_MODE: u32 = 0o600;
/// For everybody to read: certificates.
const PUBLIC_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o700;
/// The bits that let somebody else in.
const OTHERS: u32 = 0o077;

/// A file name has at most 255 bytes on every common file system; some are for the extension and the name it is written under.
pub(super) const MAX_STEM_BYTES: usize = 240;

/// How long before its making a certificate is valid: clocks differ.
pub(super) const BACKDATE: Duration = Duration::from_secs(3_600);

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CertError {
    let path = path.to_owned();
    move |source| CertError::File { path, source }
}

/// Makes the directory, for the owner alone; one that exists is left as it is.
pub(super) fn make_directory(path: &Path) -> Result<(), CertError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(failed(path))
}

pub(super) fn check_absent(path: &Path) -> Result<(), CertError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(CertError::Exists {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path)(error)),
    }
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, CertError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

pub(super) fn write_secret(path: &Path, text: &str, replace: bool) -> Result<(), CertError> {
    write(path, text, SECRET_MODE, replace)
}

pub(super) fn write_public(path: &Path, text: &str, replace: bool) -> Result<(), CertError> {
    write(path, text, PUBLIC_MODE, replace)
}

/// A new file is never made in the place of another; one that is to be replaced is, at once and as a whole: a node may be
/// reading it.
fn write(path: &Path, text: &str, mode: u32, replace: bool) -> Result<(), CertError> {
    if !replace {
        return create(path, text, mode);
    }
    let temporary = temporary(path);
    // Left by a run that was cut off.
    let _ = fs::remove_file(&temporary);
    create(&temporary, text, mode)?;
    fs::rename(&temporary, path).map_err(failed(path))
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(CertError::Exists {
                path: path.to_owned(),
            });
        }
        opened => opened.map_err(failed(path))?,
    };
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed(path))
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

/// What is open to others and should not be: an existing directory, and the authority's key in it.
pub(super) fn loose_modes(out: &Path) -> Vec<String> {
    let key = out.join("ca.key");
    [(out, "700"), (key.as_path(), "600")]
        .into_iter()
        .filter_map(|(path, wanted)| {
            let mode = fs::metadata(path).ok()?.permissions();
            is_loose(&mode).then(|| {
                format!(
                    "warning: {} is open to others (mode {:o}): chmod {wanted} {}",
                    path.display(),
                    mode.mode() & 0o7777,
                    path.display()
                )
            })
        })
        .collect()
}

fn is_loose(mode: &Permissions) -> bool {
    mode.mode() & OTHERS != 0
}
