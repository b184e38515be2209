//! One place of the file system: what is there, what shall be there, and how it becomes so in one step.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Absent,
    /// A file: its bytes, permissions, and owner and group, where they are not those of whoever writes it.
    File { bytes: Vec<u8>, mode: u32, owner: Option<(u32, u32)> },
    /// A symbolic link and where it leads.
    Link(PathBuf),
    /// A folder; what is in it is not part of it.
    Folder,
}

impl State {
    /// A file of whoever installs.
    pub(super) fn file(bytes: impl Into<Vec<u8>>, mode: u32) -> State {
        State::File { bytes: bytes.into(), mode, owner: None }
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// It cannot be read, or is neither file, link nor folder.
    pub(super) fn read(path: &Path) -> io::Result<State> {
        let facts = match fs::symlink_metadata(path) {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Absent),
            Err(error) => return Err(error),
        };
        if facts.is_symlink() {
            return Ok(State::Link(fs::read_link(path)?));
        }
        if facts.is_dir() {
            return Ok(State::Folder);
        }
        if !facts.is_file() {
            return Err(io::Error::other("neither a file, a link nor a folder"));
        }
        let owner = Some((facts.uid(), facts.gid()));
        Ok(State::File { bytes: fs::read(path)?, mode: facts.mode() & 0o7777, owner })
    }

    /// Makes it so. A reader of a file sees the old one or the new one, never a part.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn make(&self, path: &Path) -> io::Result<()> {
        let temporary = temporary(path);
        let made = self.make_by(&temporary, path);
        if made.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        made
    }

    fn make_by(&self, temporary: &Path, path: &Path) -> io::Result<()> {
        match self {
            State::Absent => match fs::symlink_metadata(path) {
                Ok(facts) if facts.is_dir() => fs::remove_dir(path),
                Ok(_) => fs::remove_file(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            },
            State::Folder => match fs::create_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
                made => made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755))),
            },
            State::File { bytes, mode, owner } => {
                remove_if_there(temporary)?;
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
                file.write_all(bytes)?;
                let facts = file.metadata()?;
                if let Some((user, group)) = *owner
                    && (user, group) != (facts.uid(), facts.gid())
                {
                    chown(temporary, Some(user), Some(group))?;
                }
                // After chown, which takes away set-user-id bits.
                file.set_permissions(fs::Permissions::from_mode(*mode))?;
                file.sync_all()?;
                fs::rename(temporary, path)
            }
            State::Link(target) => {
                remove_if_there(temporary)?;
                symlink(target, temporary)?;
                fs::rename(temporary, path)
            }
        }
    }

    /// Short text that differs where states differ: FNV-1a over what makes the state. It finds edits, not forgeries.
    pub(super) fn fingerprint(&self) -> String {
        // Eight bytes at a time: the program is large.
        let word = |chunk: &[u8]| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        };
        let fnv = |bytes: &[u8]| {
            bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325_u64, |hash, chunk| {
                (hash ^ word(chunk)).wrapping_mul(0x0100_0000_01b3)
            })
        };
        match self {
            State::Absent => "absent".to_owned(),
            State::Folder => "folder".to_owned(),
            State::Link(target) => format!("link to {}", target.display()),
            State::File { bytes, mode, .. } => {
                format!("file {:016x}, {} bytes, mode {mode:o}", fnv(bytes), bytes.len())
            }
        }
    }
}

/// What a step that was interrupted may leave behind beside `path`.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.barfit-new"))
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // Not by what removing says: a read-only file system refuses before it looks.
        Err(_) if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => {
            Ok(())
        }
        removed => removed,
    }
}
