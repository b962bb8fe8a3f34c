//! Which files are taken, and which are not, and why.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ignore::WalkBuilder;
use keydispatch::limits::DEFAULT_MAX_PAYLOAD_BYTES;
use rustix::fs::OFlags;
use serde::Serialize;

/// What a message holds beside a file's name and its content: their lengths, at most ten bytes each, and its kind.
const MESSAGE_OVERHEAD_BYTES: usize = 64;

const MIB: u64 = 1024 * 1024;

/// Why a file is not uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    Hidden,
    Ignored,
    Symlink,
    /// A socket, a pipe, a device.
    Special,
    TooLarge,
    OverTotal,
    /// Its name is not UTF-8.
    Name,
    Unreadable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Hidden => "hidden",
            Reason::Ignored => "ignored (.gitignore)",
            Reason::Symlink => "symbolic links",
            Reason::Special => "no regular files",
            Reason::TooLarge => "larger than a message may be",
            Reason::OverTotal => "beyond the total (--max-total)",
            Reason::Name => "with a name that is not UTF-8",
            Reason::Unreadable => "unreadable",
        })
    }
}

/// How many files were left out, by reason. A directory that is left out counts once: nobody looks into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Skipped(BTreeMap<Reason, u64>);

impl Skipped {
    pub(crate) fn add(&mut self, reason: Reason, files: u64) {
        if files > 0 {
            *self.0.entry(reason).or_default() += files;
        }
    }

    pub(crate) fn merge(&mut self, more: &Skipped) {
        for (reason, files) in &more.0 {
            self.add(*reason, *files);
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped {}", self.total())?;
        for (position, (reason, files)) in self.0.iter().enumerate() {
            let before = if position == 0 { ": " } else { ", " };
            write!(f, "{before}{files} {reason}")?;
        }
        Ok(())
    }
}

/// Why nothing can be uploaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("there is no {path}: name a directory or a file that exists")]
    Missing { path: PathBuf },
    #[error("{path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("there is nothing to upload in {path} ({skipped}): name a directory with files")]
    Nothing { path: PathBuf, skipped: Skipped },
}

/// A file to be uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Its path relative to the root: its key.
    pub(crate) name: String,
    /// Its length when it was found.
    pub(crate) bytes: u64,
}

/// The files under a root, in the order of their names.
#[derive(Debug)]
pub(crate) struct Collection {
    pub(crate) root: PathBuf,
    pub(crate) sources: Vec<Source>,
    pub(crate) skipped: Skipped,
}

/// Finds the files; `max_total_mib` bounds what they hold together, because nodes keep them in memory.
pub(crate) fn collect(path: &Path, max_total_mib: u64) -> Result<Collection, FilesError> {
    let root = path.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FilesError::Missing {
            path: path.to_owned(),
        },
        _ => FilesError::Unreadable {
            path: path.to_owned(),
            source,
        },
    })?;
    let mut collection = if root.is_dir() {
        walk(root)
    } else {
        single(root)
    };
    collection.bound(max_total_mib.saturating_mul(MIB));
    if collection.sources.is_empty() {
        return Err(FilesError::Nothing {
            path: path.to_owned(),
            skipped: collection.skipped,
        });
    }
    Ok(collection)
}

fn single(file: PathBuf) -> Collection {
    let root = file.parent().unwrap_or(Path::new("/")).to_owned();
    let mut collection = Collection {
        root,
        sources: Vec::new(),
        skipped: Skipped::default(),
    };
    collection.take(&file);
    collection
}

fn walk(root: PathBuf) -> Collection {
    let mut collection = Collection {
        root: root.clone(),
        sources: Vec::new(),
        skipped: Skipped::default(),
    };
    let mut listed = Names::default();
    let mut walked = Names::default();
    let entries = WalkBuilder::new(&root)
        .require_git(false)
        .follow_links(false)
        .sort_by_file_name(Ord::cmp)
        .build();
    for entry in entries {
        let Ok(entry) = entry else {
            collection.skipped.add(Reason::Unreadable, 1);
            continue;
        };
        if entry.depth() > 0 {
            walked.count(entry.file_name().as_bytes());
        }
        match entry.file_type() {
            Some(kind) if kind.is_dir() => {
                // The walk says nothing of what it leaves out: that is the rest of the directory.
                for name in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                    listed.count(name.file_name().as_bytes());
                }
            }
            Some(kind) if kind.is_symlink() => collection.skipped.add(Reason::Symlink, 1),
            Some(_) => collection.take(entry.path()),
            None => collection.skipped.add(Reason::Special, 1),
        }
    }
    let hidden = listed.hidden.saturating_sub(walked.hidden);
    let ignored = listed.others.saturating_sub(walked.others);
    collection.skipped.add(Reason::Hidden, hidden);
    collection.skipped.add(Reason::Ignored, ignored);
    collection
}

#[derive(Default)]
struct Names {
    hidden: u64,
    others: u64,
}

impl Names {
    fn count(&mut self, name: &[u8]) {
        if name.starts_with(b".") {
            self.hidden += 1;
        } else {
            self.others += 1;
        }
    }
}

impl Collection {
    fn take(&mut self, path: &Path) {
        match self.judge(path) {
            Ok(source) => self.sources.push(source),
            Err(reason) => self.skipped.add(reason, 1),
        }
    }

    fn judge(&self, path: &Path) -> Result<Source, Reason> {
        let metadata = fs::symlink_metadata(path).map_err(|_| Reason::Unreadable)?;
        if !metadata.is_file() {
            return Err(Reason::Special);
        }
        let name = path.strip_prefix(&self.root).unwrap_or(path);
        let name = name.to_str().ok_or(Reason::Name)?.to_owned();
        if metadata.len() > max_content_bytes(&name) {
            return Err(Reason::TooLarge);
        }
        Ok(Source {
            name,
            bytes: metadata.len(),
        })
    }

    /// Leaves out what is beyond the total.
    fn bound(&mut self, max_bytes: u64) {
        let mut total = 0;
        let skipped = &mut self.skipped;
        self.sources.retain(|source| {
            let fits = total + source.bytes <= max_bytes;
            if fits {
                total += source.bytes;
            } else {
                skipped.add(Reason::OverTotal, 1);
            }
            fits
        });
    }
}

/// How long a file may be to fit into a message with its name.
fn max_content_bytes(name: &str) -> u64 {
    (DEFAULT_MAX_PAYLOAD_BYTES - MESSAGE_OVERHEAD_BYTES).saturating_sub(name.len()) as u64
}

/// Reads a file as it is now; it may have changed since it was found.
pub(crate) fn read(root: &Path, source: &Source) -> Result<Bytes, Reason> {
    // A pipe that has taken the file's place does not hold the reader up, and a link is not followed.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags).unwrap_or(0))
        .open(root.join(&source.name))
        .map_err(|_| Reason::Unreadable)?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(Reason::Special);
    }
    read_at_most(file, source)
}

fn read_at_most(file: File, source: &Source) -> Result<Bytes, Reason> {
    let limit = max_content_bytes(&source.name);
    let mut content = Vec::with_capacity(usize::try_from(source.bytes).unwrap_or(0) + 1);
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(|_| Reason::Unreadable)?;
    if content.len() as u64 > limit {
        return Err(Reason::TooLarge);
    }
    Ok(content.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("b.txt", "b");
        write("sub/a.txt", "");
        directory
    }

    fn names(collection: &Collection) -> Vec<&str> {
        collection
            .sources
            .iter()
            .map(|source| source.name.as_str())
            .collect()
    }

    #[test]
    fn files_are_found_by_their_relative_paths_empty_ones_too() {
        let tree = tree();
        let found = collect(tree.path(), 1).unwrap();
        assert_eq!(names(&found), ["b.txt", "sub/a.txt"]);
        assert_eq!(found.skipped.total(), 0);
        assert_eq!(read(&found.root, &found.sources[0]).unwrap(), "b");
        assert_eq!(read(&found.root, &found.sources[1]).unwrap(), "");
    }

    #[test]
    fn what_is_left_out_is_counted_by_reason() {
        let tree = tree();
        fs::write(tree.path().join(".gitignore"), "*.log\nbuilt/\n").unwrap();
        fs::write(tree.path().join("one.log"), "").unwrap();
        fs::create_dir(tree.path().join("built")).unwrap();
        fs::write(tree.path().join("built/deep.txt"), "").unwrap();
        std::os::unix::fs::symlink("b.txt", tree.path().join("link")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(tree.path().join("socket")).unwrap());
        fs::write(
            tree.path().join(std::ffi::OsStr::from_bytes(b"\xff.txt")),
            "",
        )
        .unwrap();
        let large = File::create(tree.path().join("large")).unwrap();
        large.set_len(DEFAULT_MAX_PAYLOAD_BYTES as u64).unwrap();
        let found = collect(tree.path(), 100).unwrap();
        assert_eq!(names(&found), ["b.txt", "sub/a.txt"]);
        assert_eq!(
            found.skipped.to_string(),
            "skipped 7: 1 hidden, 2 ignored (.gitignore), 1 symbolic links, 1 no regular files, 1 larger than a message \
             may be, 1 with a name that is not UTF-8"
        );
    }

    #[test]
    fn a_file_is_a_collection_of_itself() {
        let tree = tree();
        let found = collect(&tree.path().join("sub/a.txt"), 1).unwrap();
        assert_eq!(names(&found), ["a.txt"]);
    }

    #[test]
    fn the_total_is_bounded() {
        let tree = tree();
        let large = File::create(tree.path().join("c")).unwrap();
        large.set_len(MIB).unwrap();
        let found = collect(tree.path(), 1).unwrap();
        assert_eq!(names(&found), ["b.txt", "sub/a.txt"]);
        assert!(found.skipped.to_string().contains("--max-total"));
    }

    #[test]
    fn a_file_that_has_gone_grown_or_turned_into_something_else_is_not_read() {
        let tree = tree();
        let found = collect(tree.path(), 1).unwrap();
        let source = &found.sources[0];
        let path = tree.path().join("b.txt");
        File::create(&path).unwrap().set_len(17 * MIB).unwrap();
        assert_eq!(read(&found.root, source), Err(Reason::TooLarge));
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&found.root, source), Err(Reason::Unreadable));
        std::os::unix::fs::symlink("sub/a.txt", &path).unwrap();
        assert_eq!(read(&found.root, source), Err(Reason::Unreadable));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(read(&found.root, source), Err(Reason::Special));
    }
}
