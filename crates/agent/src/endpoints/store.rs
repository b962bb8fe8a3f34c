//! What lives until it is deleted, on disk over restarts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::definition::Definition;

const FILE: &str = "endpoints.json";

/// An endpoint as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) id: String,
    pub(crate) registrant: String,
    pub(crate) definition: Definition,
}

/// A directory, or nowhere.
pub(crate) struct Store {
    directory: Option<PathBuf>,
    kept: Mutex<BTreeMap<String, Kept>>,
}

impl Store {
    /// # Errors
    ///
    /// The directory cannot be made, or its file is not what was written.
    pub(crate) fn open(directory: Option<PathBuf>) -> Result<Self, String> {
        let mut kept = BTreeMap::new();
        if let Some(directory) = &directory {
            let wrong = |error: &dyn std::fmt::Display| {
                format!("{}: {error}", directory.join(FILE).display())
            };
            fs::create_dir_all(directory)
                .map_err(|error| format!("{}: {error}", directory.display()))?;
            match fs::read_to_string(directory.join(FILE)) {
                Ok(text) => {
                    let list: Vec<Kept> =
                        serde_json::from_str(&text).map_err(|error| wrong(&error))?;
                    kept = list
                        .into_iter()
                        .map(|kept| (kept.id.clone(), kept))
                        .collect();
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(wrong(&error)),
            }
        }
        Ok(Store {
            directory,
            kept: Mutex::new(kept),
        })
    }

    pub(crate) fn load(&self) -> Vec<Kept> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(
        &self,
        id: &str,
        definition: &Definition,
        registrant: &str,
    ) -> std::io::Result<()> {
        let mut kept = self.lock();
        kept.insert(
            id.to_owned(),
            Kept {
                id: id.to_owned(),
                registrant: registrant.to_owned(),
                definition: definition.clone(),
            },
        );
        self.write(&kept)
    }

    pub(super) fn remove(&self, id: &str) -> std::io::Result<()> {
        let mut kept = self.lock();
        if kept.remove(id).is_none() {
            return Ok(());
        }
        self.write(&kept)
    }

    /// Whole or not at all: what is half written is never the file of that name.
    fn write(&self, kept: &BTreeMap<String, Kept>) -> std::io::Result<()> {
        let Some(directory) = &self.directory else {
            return Err(std::io::Error::other(
                "there is no agent.state_dir that this user can write",
            ));
        };
        let list: Vec<&Kept> = kept.values().collect();
        let fresh = directory.join(format!("{FILE}.new"));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(serde_json::to_string(&list)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(fresh, directory.join(FILE))
    }
}
