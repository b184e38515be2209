//! What an installation has made and changed, with everything that is needed to take it back: `manifest.json` and the
//! original files, in `/var/lib/barfit`.
//!
//! Written ahead of each change: whatever moment an installation ends at, the next one, or the removal, finds each
//! place either as it was or as it was to become, and knows which is which.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::deliver::place::{State, remove_if_there, temporary};

/// The value of `schema`.
const SCHEMA: &str = "barfit/manifest/1";
/// Where the manifest is, below the root directory.
pub(super) const FOLDER: &str = "var/lib/barfit";

/// One place that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The place, from the root directory on.
    pub(super) path: PathBuf,
    before: Before,
    /// Fingerprint of what barfit puts there.
    pub(super) now: String,
}

/// What was there before barfit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Before {
    Absent,
    Folder,
    Link(PathBuf),
    /// A file whose bytes are kept in `original/NUMBER`.
    File {
        number: u32,
        mode: u32,
        owner: Option<(u32, u32)>,
    },
}

/// The manifest, and where it is kept.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    root: PathBuf,
    pub(super) content: Content,
}

/// What `manifest.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    schema: String,
    /// In the order in which the changes were made.
    pub(super) entries: Vec<Entry>,
    /// SELinux file contexts were added.
    #[serde(default)]
    pub(super) selinux_contexts: bool,
    /// The SELinux boolean was switched on, and was off.
    #[serde(default)]
    pub(super) selinux_boolean: bool,
}

impl Manifest {
    /// The manifest of what is installed; an empty one where nothing is.
    ///
    /// # Errors
    /// It cannot be read, or is of another kind.
    pub(super) fn load(root: &Path) -> Result<Manifest, String> {
        let path = root.join(FOLDER).join("manifest.json");
        let says = |why: String| format!("{}: {why}", path.display());
        let content = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| says(error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Content { schema: SCHEMA.to_owned(), ..Content::default() }
            }
            Err(error) => return Err(says(error.to_string())),
        };
        if content.schema != SCHEMA {
            return Err(says(format!("its schema is `{}`, not `{SCHEMA}`", content.schema)));
        }
        Ok(Manifest { root: root.to_owned(), content })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.content.entries.is_empty()
    }

    /// What was at a place before barfit; `None` where barfit has not changed it.
    ///
    /// # Errors
    /// The original cannot be read.
    pub(super) fn original(&self, path: &Path) -> Result<Option<State>, String> {
        let entry = self.content.entries.iter().find(|entry| entry.path == path);
        entry.map(|entry| self.before(entry)).transpose()
    }

    /// What was there before an entry.
    ///
    /// # Errors
    /// The original cannot be read.
    pub(super) fn before(&self, entry: &Entry) -> Result<State, String> {
        Ok(match &entry.before {
            Before::Absent => State::Absent,
            Before::Folder => State::Folder,
            Before::Link(target) => State::Link(target.clone()),
            Before::File { number, mode, owner } => {
                let path = self.kept(*number);
                let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                State::File { bytes, mode: *mode, owner: *owner }
            }
        })
    }

    /// Notes a change that is about to be made, and what is there before it.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn note(&mut self, path: &Path, present: &State, wanted: &State) -> Result<(), String> {
        let now = wanted.fingerprint();
        if self.is_empty() {
            let missing = missing_folders(&self.root, Path::new(FOLDER));
            let entry = |path| Entry { path, before: Before::Absent, now: State::Folder.fingerprint() };
            self.content.entries.extend(missing.into_iter().map(entry));
        }
        if let Some(entry) = self.content.entries.iter_mut().find(|entry| entry.path == path) {
            entry.now = now;
            return self.save();
        }
        let before = match present {
            State::Absent => Before::Absent,
            State::Folder => Before::Folder,
            State::Link(target) => Before::Link(target.clone()),
            State::File { bytes, mode, owner } => {
                let number = (0..u32::MAX).find(|number| !self.kept(*number).exists()).unwrap_or(u32::MAX);
                let kept = self.kept(number);
                let made = kept.parent().map_or(Ok(()), fs::create_dir_all);
                made.and_then(|()| State::file(bytes.clone(), 0o600).make(&kept))
                    .map_err(|error| format!("{}: {error}", kept.display()))?;
                Before::File { number, mode: *mode, owner: *owner }
            }
        };
        self.content.entries.push(Entry { path: path.to_owned(), before, now });
        self.save()
    }

    /// Forgets the entry of a place.
    pub(super) fn forget(&mut self, path: &Path) {
        self.content.entries.retain(|entry| entry.path != path);
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn save(&self) -> Result<(), String> {
        let folder = self.root.join(FOLDER);
        let path = folder.join("manifest.json");
        let says = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let bytes = serde_json::to_vec_pretty(&self.content).map_err(|error| says(&error))?;
        fs::create_dir_all(&folder)
            .and_then(|()| State::file(bytes, 0o644).make(&path))
            .map_err(|error| says(&error))
    }

    /// Takes away the manifest and the originals, and the folder if nothing else is in it.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn remove(&self) -> Result<(), String> {
        let folder = self.root.join(FOLDER);
        let path = folder.join("manifest.json");
        let originals = folder.join("original");
        let removed = if originals.exists() { fs::remove_dir_all(&originals) } else { Ok(()) };
        removed
            .and_then(|()| remove_if_there(&temporary(&path)))
            .and_then(|()| remove_if_there(&path))
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(())
    }

    fn kept(&self, number: u32) -> PathBuf {
        self.root.join(FOLDER).join("original").join(number.to_string())
    }
}

/// The folders from the root directory down to `folder` that are not there.
pub(super) fn missing_folders(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = folder
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty() && !root.join(path).exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}
