//! The plan file: what the hook hands to the shim, `/run/barfit/plans/UUID.json`, format `barfit/plan/1`.
//!
//! The shim runs as the guest's user and reads what root wrote; it trusts a file only if root owns it, nobody else
//! can write it, it is of this boot, for this UUID, and fresh. Written atomically: a reader sees the old file, the
//! new one or none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::host::attribute;
use crate::plan::Change;

/// The value of `schema`.
pub const SCHEMA: &str = "barfit/plan/1";
/// Where plans are, below the root directory.
pub const PLANS: &str = "run/barfit/plans";
/// A plan is for the start that made it: libvirt runs the emulator within seconds of `prepare`, minutes at most.
pub const FRESH: Duration = Duration::from_secs(600);
/// No plan is larger.
const LARGEST: u64 = 64 * 1024;

/// One guest's plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The guest's UUID, lower case with hyphens.
    pub uuid: String,
    /// The guest's name, for people.
    pub name: String,
    /// `/proc/sys/kernel/random/boot_id` of the boot that wrote it.
    pub boot_id: String,
    /// When it was written, in seconds since this boot ([`since_boot`]).
    pub written: u64,
    /// What to change in the argv.
    pub changes: Vec<Change>,
    /// The outcome in one sentence.
    pub summary: String,
}

impl PlanFile {
    /// Reads the text of a file, if it is a plan for this start of this guest; `now` is [`since_boot`].
    ///
    /// # Errors
    /// It is of another format, guest, boot or time; the text says which.
    pub fn parse(text: &str, uuid: &str, boot_id: &str, now: u64) -> Result<PlanFile, String> {
        let plan: PlanFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let age = now.saturating_sub(plan.written);
        if plan.schema != SCHEMA {
            return Err(format!("its schema is `{}`, not `{SCHEMA}`", plan.schema.escape_default()));
        }
        if plan.uuid != uuid {
            return Err("it names another guest".to_owned());
        }
        if plan.boot_id != boot_id {
            return Err("it is of another boot".to_owned());
        }
        if plan.written > now.saturating_add(FRESH.as_secs()) || age > FRESH.as_secs() {
            return Err(format!("it was written {} s after this boot, now it is {now} s", plan.written));
        }
        Ok(plan)
    }
}

/// Why a plan file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It cannot be opened or read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody but root could have written it.
    #[error("{path} is not trusted: {why}")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Which boot this is cannot be told.
    #[error("a plan is of no use: {0}")]
    Boot(io::Error),
    /// It is of another boot, guest, time or format.
    #[error("{path} is not for this start: {why}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not match.
        why: String,
    },
}

/// Whether a text is a UUID as libvirt prints it; only such a text becomes part of a file name.
pub fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase(),
        })
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds since this boot, sleep included: a clock that nobody sets, as opposed to the time of day, which jumps when
/// a host that has just come up hears the right time.
pub fn since_boot() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or_default()
}

/// This boot's id.
///
/// # Errors
/// The kernel does not say; the error names the file.
pub fn boot_id(root: &Path) -> io::Result<String> {
    let path = root.join("proc/sys/kernel/random/boot_id");
    match attribute(&path) {
        Ok(text) => Ok(text),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

/// The folder of the plans.
#[derive(Clone, Debug)]
pub struct Plans {
    root: PathBuf,
    folder: PathBuf,
    owner: u32,
}

impl Plans {
    /// The plans below a root directory (`/` in production), trusted when root owns them.
    pub fn at(root: &Path) -> Plans {
        Plans { root: root.to_owned(), folder: root.join(PLANS), owner: 0 }
    }

    /// The file of a guest; `None` for a text that is no UUID.
    pub fn path(&self, uuid: &str) -> Option<PathBuf> {
        is_uuid(uuid).then(|| self.folder.join(format!("{uuid}.json")))
    }

    /// Writes a guest's plan in one step.
    ///
    /// # Errors
    /// The UUID is none, or the folder cannot be made or written; an older plan of the guest is then gone, too, as
    /// far as it can be removed.
    pub fn write(&self, plan: &PlanFile) -> io::Result<PathBuf> {
        let path = self
            .path(&plan.uuid)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the domain has no valid UUID"))?;
        let written = serde_json::to_vec(plan).map_err(io::Error::from);
        let written = written.and_then(|bytes| write_atomically(&path, &bytes));
        if written.is_err() {
            let _ = fs::remove_file(&path);
        }
        written.map(|()| path)
    }

    /// Removes a guest's plan; one that is not there is no error.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self, uuid: &str) -> io::Result<()> {
        match self.path(uuid).map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes away what a hook that was killed while it wrote this guest's plan has left.
    pub fn sweep(&self, uuid: &str) {
        if let Some(path) = self.path(uuid) {
            sweep(&path);
        }
    }

    /// Reads a guest's plan if it can be trusted; `None` when there is none.
    ///
    /// # Errors
    /// There is one, but it is not to be used; the text says why.
    pub fn read(&self, uuid: &str) -> Result<Option<PlanFile>, Distrust> {
        self.read_at(uuid, || boot_id(&self.root), since_boot())
    }

    /// The same for a boot and a time of [`since_boot`].
    fn read_at(
        &self,
        uuid: &str,
        boot_id: impl FnOnce() -> io::Result<String>,
        now: u64,
    ) -> Result<Option<PlanFile>, Distrust> {
        let Some(path) = self.path(uuid) else { return Ok(None) };
        let untrusted = |why| Distrust::Untrusted { path: path.clone(), why };
        let unreadable = |error| Distrust::Unreadable { path: path.clone(), error };
        match fs::symlink_metadata(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
            Ok(folder) if !folder.is_dir() || folder.uid() != self.owner || folder.mode() & 0o022 != 0 => {
                return Err(untrusted("its folder is not root's alone"));
            }
            Ok(_) => {}
        }
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        let facts = file.metadata().map_err(unreadable)?;
        if !facts.is_file() || facts.nlink() != 1 {
            return Err(untrusted("it is no plain file of one name"));
        }
        if facts.uid() != self.owner || facts.mode() & 0o022 != 0 {
            return Err(untrusted("somebody but root could have written it"));
        }
        let mut text = String::new();
        file.take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > LARGEST {
            return Err(untrusted("it is larger than any plan"));
        }
        let boot_id = boot_id().map_err(Distrust::Boot)?;
        PlanFile::parse(&text, uuid, &boot_id, now).map(Some).map_err(|why| Distrust::Foreign { path, why })
    }
}

/// Writes a file by a temporary one beside it, in a folder that is made where it is missing. Readable by all, writable
/// by its owner.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // The process id keeps two hooks apart; create_new keeps links of others out.
    let temporary = path.with_file_name(format!("{}{}", temporary_prefix(path), std::process::id()));
    let open = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary);
    let open = || -> io::Result<File> {
        // Nearly always the folder is there and the file is not.
        match (open(), path.parent()) {
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
                open()
            }
            (Err(error), _) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&temporary)?;
                open()
            }
            (opened, _) => opened,
        }
    };
    let write = || -> io::Result<()> {
        let mut file = open()?;
        file.write_all(bytes)?;
        // The umask of the daemon may be anything; the guest's user must be able to read.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn temporary_prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes the temporary files that [`write_atomically`] leaves when it is killed. Not while others write `path`.
pub(super) fn sweep(path: &Path) {
    let prefix = temporary_prefix(path);
    for entry in path.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const UUID: &str = "6f0c7d2e-6b0a-4a4e-9d55-0a4b1c6c2f01";

    fn plans() -> (tempfile::TempDir, Plans) {
        let root = tempfile::tempdir().expect("a folder");
        let owner = fs::metadata(root.path()).expect("metadata").uid();
        let plans = Plans { owner, ..Plans::at(root.path()) };
        (root, plans)
    }

    fn read(plans: &Plans, uuid: &str, boot: &str, now: u64) -> Result<Option<PlanFile>, Distrust> {
        plans.read_at(uuid, || Ok(boot.to_owned()), now)
    }

    fn plan(written: u64) -> PlanFile {
        PlanFile {
            schema: SCHEMA.to_owned(),
            uuid: UUID.to_owned(),
            name: "vm".to_owned(),
            boot_id: "boot".to_owned(),
            written,
            changes: vec![Change::RequireFeature("pdpe1gb"), Change::SetMmio64Mib(65536)],
            summary: "4 of 4".to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let (_root, plans) = plans();
        assert!(matches!(read(&plans, UUID, "boot", 1000), Ok(None)));
        let path = plans.write(&plan(1000)).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o644);
        assert_eq!(read(&plans, UUID, "boot", 1010).expect("trusted"), Some(plan(1000)));
        plans.remove(UUID).expect("removed");
        plans.remove(UUID).expect("twice is fine");
        assert!(matches!(read(&plans, UUID, "boot", 1000), Ok(None)));
    }

    #[test]
    fn plans_of_another_boot_time_or_guest_are_foreign() {
        let (_root, plans) = plans();
        plans.write(&plan(1000)).expect("written");
        for (boot, now) in [("other", 1000), ("boot", 1601), ("boot", 100)] {
            assert!(matches!(read(&plans, UUID, boot, now), Err(Distrust::Foreign { .. })), "{boot} {now}");
        }
        let other = "00000000-6b0a-4a4e-9d55-0a4b1c6c2f01";
        let path = plans.path(other).expect("a uuid");
        fs::rename(plans.path(UUID).expect("a uuid"), path).expect("renamed");
        assert!(matches!(read(&plans, other, "boot", 1000), Err(Distrust::Foreign { .. })));
    }

    #[test]
    fn what_others_could_write_is_not_trusted() {
        let (root, plans) = plans();
        let path = plans.write(&plan(1000)).expect("written");
        let untrusted = |plans: &Plans| {
            let read = read(plans, UUID, "boot", 1000);
            assert!(
                matches!(read, Err(Distrust::Untrusted { .. } | Distrust::Unreadable { .. })),
                "{read:?}"
            );
        };
        untrusted(&Plans { owner: plans.owner + 1, ..plans.clone() });
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
        untrusted(&plans);
        plans.write(&plan(1000)).expect("written");
        fs::hard_link(&path, root.path().join("second")).expect("linked");
        untrusted(&plans);
        fs::remove_file(&path).expect("removed");
        symlink(root.path().join("second"), &path).expect("linked");
        untrusted(&plans);
        fs::remove_file(&path).expect("removed");
        fs::write(&path, vec![b' '; 70_000]).expect("written");
        untrusted(&plans);
        plans.write(&plan(1000)).expect("written");
        fs::set_permissions(&plans.folder, fs::Permissions::from_mode(0o777)).expect("chmod");
        untrusted(&plans);
    }

    #[test]
    fn only_a_uuid_becomes_a_file_name() {
        let (_root, plans) = plans();
        for text in ["", "../../etc/passwd", "6F0C7D2E-6b0a-4a4e-9d55-0a4b1c6c2f01", "x", &"a".repeat(36)] {
            assert_eq!(plans.path(text), None, "{text}");
            let named = PlanFile { uuid: text.to_owned(), ..plan(1) };
            assert!(plans.write(&named).is_err());
        }
    }
}
