//! What an installation has made and changed, with everything that is needed to take it back: `manifest.json` and the
//! original files, in `/var/lib/barfit`.
//!
//! Written ahead of each change: whatever moment an installation ends at, the next one, or the removal, finds each
//! place either as it was or as it was to become, and knows which is which.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::deliver::place::{State, remove_if_there, temporary};

/// The value of `schema`.
const SCHEMA: &str = "barfit/manifest/1";
/// Where the manifest is, below the root directory.
pub(super) const FOLDER: &str = "var/lib/barfit";
/// Name of the file that two installations cannot hold at once: in `/run`, or in the root directory of a tree without.
const LOCK: &str = ".barfit-install.lock";
const MANIFEST: &str = "manifest.json";

/// One place that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The place, from the root directory on.
    pub(super) path: PathBuf,
    before: Before,
    /// Fingerprint of what barfit puts there.
    pub(super) now: String,
    /// Fingerprint of what barfit had put there before: should it end between the note and the change, that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    earlier: Option<String>,
}

impl Entry {
    /// Whether what is at the place was put there by barfit.
    pub(super) fn is_ours(&self, present: &State) -> bool {
        let present = present.fingerprint();
        present == self.now || self.earlier.as_ref() == Some(&present)
    }
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
        let path = root.join(FOLDER).join(MANIFEST);
        let says = |why: String| format!("{}: {why}", path.display());
        let content: Content = match fs::read(&path) {
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
            let missing = missing_folders(&self.root, Path::new(FOLDER))?;
            let entry = |path| Entry {
                path,
                before: Before::Absent,
                now: State::Folder.fingerprint(),
                earlier: None,
            };
            self.content.entries.extend(missing.into_iter().map(entry));
        }
        if let Some(entry) = self.content.entries.iter_mut().find(|entry| entry.path == path) {
            entry.earlier = entry.is_ours(present).then(|| present.fingerprint());
            entry.now = now;
            return self.save();
        }
        let before = match present {
            State::Absent => Before::Absent,
            State::Folder => Before::Folder,
            State::Link(target) => Before::Link(target.clone()),
            State::File { bytes, mode, owner } => {
                let number = self.free_number()?;
                let kept = self.kept(number);
                let made = kept.parent().map_or(Ok(()), fs::create_dir_all);
                made.and_then(|()| State::file(bytes.clone(), 0o600).make(&kept))
                    .map_err(|error| format!("{}: {error}", kept.display()))?;
                Before::File { number, mode: *mode, owner: *owner }
            }
        };
        self.content.entries.push(Entry { path: path.to_owned(), before, now, earlier: None });
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
        let path = folder.join(MANIFEST);
        let says = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let bytes = serde_json::to_vec_pretty(&self.content).map_err(|error| says(&error))?;
        fs::create_dir_all(&folder)
            .and_then(|()| State::file(bytes, 0o644).make(&path))
            .map_err(|error| says(&error))
    }

    /// Takes away the manifest, then the originals: a manifest without them could not be followed, and originals that
    /// no manifest names are nobody's, and are taken away here the next time. Last go the folders that are there for
    /// them alone.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn remove(&self) -> Result<(), String> {
        let folder = self.root.join(FOLDER);
        let path = folder.join(MANIFEST);
        let originals = folder.join("original");
        remove_if_there(&temporary(&path))
            .and_then(|()| remove_if_there(&path))
            .and_then(|()| match fs::remove_dir_all(&originals) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            })
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let _ = fs::remove_dir(&folder);
        let entries = self.content.entries.iter().rev();
        let above = entries
            .filter(|entry| entry.before == Before::Absent && Path::new(FOLDER).starts_with(&entry.path));
        for entry in above {
            let _ = fs::remove_dir(self.root.join(&entry.path));
        }
        Ok(())
    }

    /// A number under which no original is kept. One that cannot be looked at may be.
    fn free_number(&self) -> Result<u32, String> {
        let mut number = 0;
        loop {
            let path = self.kept(number);
            if !path.try_exists().map_err(|error| format!("{}: {error}", path.display()))? {
                return Ok(number);
            }
            number += 1;
        }
    }

    fn kept(&self, number: u32) -> PathBuf {
        self.root.join(FOLDER).join("original").join(number.to_string())
    }
}

/// Keeps two installations apart: a file that is held until it is released, by the kernel's word: a process that is
/// killed holds nothing. It lies outside of everything that an installation makes or a removal takes away, so that
/// whoever holds it sees all of the other's work or nothing of it.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Where it is. A file that could not be taken away holds nobody up.
    pub(super) fn path(root: &Path) -> PathBuf {
        let run = root.join("run");
        if run.is_dir() { run.join(LOCK) } else { root.join(LOCK) }
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// Somebody else has it, or the file system refuses.
    pub(super) fn take(root: &Path) -> Result<Lock, String> {
        let path = Lock::path(root);
        let says = |error: io::Error| format!("{}: {error}", path.display());
        let same = |file: &File| -> io::Result<bool> {
            let (held, named) = (file.metadata()?, fs::metadata(&path)?);
            Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
        };
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(says)?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from);
        match locked.and_then(|()| same(&file)) {
            Ok(true) => Ok(Lock { path, _file: file }),
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) => {
                Err(says(error))
            }
            // Held, or taken away by its holder between the two steps.
            _ => Err(format!(
                "{}: another `barfit install` or `barfit uninstall` is at work; let it finish",
                path.display()
            )),
        }
    }

    /// Takes the file away, and with it the lock.
    pub(super) fn release(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The folders from the root directory down to `folder` that are not there.
///
/// # Errors
/// Whether one is there cannot be told.
pub(super) fn missing_folders(root: &Path, folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut missing = Vec::new();
    for path in folder.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        let full = root.join(path);
        if !full.try_exists().map_err(|error| format!("{}: {error}", full.display()))? {
            missing.push(path.to_owned());
        }
    }
    missing.reverse();
    Ok(missing)
}
