//! `apply`: the planned change in the definitions that libvirt keeps, so that it holds from the next start on.
//!
//! Knows how a definition is read, kept, replaced and given back through `virsh`; what to change comes from outside.
//! libvirt drops in silence what it does not know (`<maxphysaddr>` before 8.7, its `limit` before 9.3: measured), so
//! each definition is read back, and one that did not keep the change is restored. Definitions are read with their
//! secrets (`--security-info`): without them a definition would lose its passwords. Backups are for root's eyes alone.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::command;
use super::place::{State, remove_if_there, temporary};
use crate::domain::Domain;
use crate::plan::Change;
use crate::rewrite;

/// Where backups are, below the root directory: `UUID.xml` is the definition before, `UUID.applied.xml` after. Both are
/// written before libvirt is asked for the change, so that `--undo` finds its way whatever moment `apply` ends at.
pub const BACKUP: &str = "var/lib/barfit/backup";

/// One libvirt, and where backups of its definitions are kept.
#[derive(Clone, Debug)]
pub struct Libvirt {
    /// As `virsh --connect` takes it.
    pub uri: String,
    /// Where the file system begins.
    pub root: PathBuf,
}

/// A persistent domain as libvirt keeps it.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// `virsh dumpxml --inactive --security-info`.
    pub xml: Vec<u8>,
    /// Whether it runs: it then keeps what it has until its next start.
    pub running: bool,
}

impl Libvirt {
    /// The UUIDs of all persistent domains: a name may look like another domain's number.
    ///
    /// # Errors
    /// What virsh says.
    pub fn persistent(&self) -> Result<Vec<String>, String> {
        let text = self.virsh(&["list", "--all", "--persistent", "--uuid"])?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().map(str::trim).filter(|uuid| !uuid.is_empty()).map(str::to_owned).collect())
    }

    /// One domain: its name, UUID or number, as virsh takes it.
    ///
    /// # Errors
    /// It is not there, is transient, or has no UUID.
    pub fn definition(&self, name: &str) -> Result<Definition, String> {
        let persistent = self.virsh(&["dominfo", &format!("--domain={name}")])?;
        let info = String::from_utf8_lossy(&persistent);
        let says = |key: &str| {
            info.lines()
                .find_map(|line| line.split_once(':').filter(|(k, _)| *k == key))
                .map(|(_, v)| v.trim())
        };
        if says("Persistent") != Some("yes") {
            return Err(format!("{name}: it is transient, there is no definition to change"));
        }
        let xml = self.dump(name)?;
        let domain = Domain::parse(&xml).map_err(|error| format!("{name}:{error}"))?;
        let uuid = domain.uuid.ok_or_else(|| format!("{name}: libvirt gives no UUID"))?;
        let running = !matches!(says("State"), Some("shut off" | "crashed") | None);
        Ok(Definition { name: domain.name, uuid, xml, running })
    }

    /// Replaces a definition by `new`, which has `changes` made. Either it then stands, or the definition is as before.
    ///
    /// # Errors
    /// Why it does not stand; and, should that happen, that the definition could not be restored.
    pub fn define(&self, before: &Definition, new: &[u8], changes: &[Change]) -> Result<(), String> {
        let (backup, applied) = (self.backup(&before.uuid), self.applied(&before.uuid));
        // What is kept already is older and stays, unless somebody else has redefined the domain since.
        let again = self.is_as_applied(before)?;
        if !again {
            self.keep(&backup, &before.xml)?;
        }
        let kept = self.keep(&applied, new);
        let taken = kept.and_then(|()| {
            self.take(new, true).map_err(|error| format!("libvirt does not take the change: {error}"))
        });
        let standing = taken.and_then(|()| {
            let dump = self.dump(&before.uuid)?;
            match lost(&before.xml, new, &dump, changes) {
                None if dump == new => Ok(()),
                None => self.keep(&applied, &dump),
                Some(what) => Err(format!("libvirt did not keep {what}")),
            }
        });
        let Err(why) = standing else { return Ok(()) };
        // Also where libvirt has refused: a virsh that fails may have been heard all the same.
        let said = self.as_before(before, &why, &format!("it is kept in {}", backup.display()));
        if self.dump(&before.uuid).is_ok_and(|dump| dump == before.xml) {
            // Nothing was applied, or what had been before.
            let _ = if again { self.keep(&applied, &before.xml) } else { self.forget(&[&applied, &backup]) };
        }
        Err(said)
    }

    /// Replaces a definition by `new`, of which libvirt has to keep every byte; if not, the definition is as before.
    ///
    /// # Errors
    /// Why it does not stand; and, should that happen, that the definition could not be restored.
    pub(super) fn replace(&self, before: &Definition, new: &[u8]) -> Result<(), String> {
        let path = self.root.join(BACKUP).join(format!("{}.replaced.xml", before.uuid));
        self.keep(&path, &before.xml)?;
        self.give_back(&before.uuid, new)
            .map_err(|why| self.as_before(before, &why, &format!("it is kept in {}", path.display())))?;
        self.forget(&[&path])
    }

    /// Restores a definition; the result says why, and how that ended.
    fn as_before(&self, before: &Definition, why: &str, kept: &str) -> String {
        let name = &before.name;
        match self.give_back(&before.uuid, &before.xml) {
            Ok(()) => format!("{name}: {why}; its definition is as before"),
            Err(error) => format!("{name}: {why}; restoring its definition failed, too: {error}; {kept}"),
        }
    }

    /// Gives a domain the definition that it had before `apply`.
    ///
    /// # Errors
    /// There is no backup, the domain was redefined since, or libvirt refuses.
    pub fn undo(&self, present: &Definition) -> Result<(), String> {
        let name = &present.name;
        let path = self.backup(&present.uuid);
        let backup = match fs::read(&path) {
            Ok(backup) => backup,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!("{name}: `barfit apply` has not changed it, there is no backup"));
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let applied = self.applied(&present.uuid);
        if present.xml == backup {
            // `apply`, or an earlier undo, has not come to its end.
            return self.forget(&[&applied, &path]);
        }
        if !self.is_as_applied(present)? {
            return Err(format!(
                "{name}: it was redefined since `barfit apply`; to give it the old definition all the same: \
                 virsh define {}",
                path.display()
            ));
        }
        self.give_back(&present.uuid, &backup).map_err(|error| format!("{name}: {error}"))?;
        self.forget(&[&applied, &path])
    }

    /// Whether there is a definition to go back to.
    pub fn has_backup(&self, definition: &Definition) -> bool {
        self.backup(&definition.uuid).exists()
    }

    /// Whether the definition is what `apply` left.
    fn is_as_applied(&self, definition: &Definition) -> Result<bool, String> {
        let path = self.applied(&definition.uuid);
        match fs::read(&path) {
            Ok(applied) => Ok(applied == definition.xml),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// Defines a domain as it was, and looks whether it is.
    fn give_back(&self, uuid: &str, xml: &[u8]) -> Result<(), String> {
        if self.dump(uuid).is_ok_and(|dump| dump == xml) {
            return Ok(());
        }
        // Without validation: it may have been defined without.
        self.take(xml, false)?;
        if self.dump(uuid)? == xml {
            Ok(())
        } else {
            Err("libvirt made something else of the definition".into())
        }
    }

    /// `domain` as virsh takes it: only a UUID means one domain and no other.
    fn dump(&self, domain: &str) -> Result<Vec<u8>, String> {
        self.virsh(&["dumpxml", "--inactive", "--security-info", &format!("--domain={domain}")])
    }

    fn take(&self, xml: &[u8], validate: bool) -> Result<(), String> {
        let says = |error: io::Error| format!("a temporary file: {error}");
        let mut file = tempfile::NamedTempFile::new().map_err(says)?;
        file.write_all(xml).map_err(says)?;
        let path = file.path().display().to_string();
        let words: &[&str] = if validate { &["define", "--validate", &path] } else { &["define", &path] };
        self.virsh(words).map(|_| ())
    }

    /// Keeps a definition, readable by its owner alone.
    fn keep(&self, path: &Path, xml: &[u8]) -> Result<(), String> {
        let folder = self.root.join(BACKUP);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .and_then(|()| State::file(xml, 0o600).make(path))
            .map_err(|error| format!("the backup {} cannot be written: {error}", path.display()))
    }

    /// Removes what is kept of a definition; the last one leaves nothing behind.
    fn forget(&self, paths: &[&Path]) -> Result<(), String> {
        for path in paths {
            remove_if_there(path)
                .and_then(|()| remove_if_there(&temporary(path)))
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let _ = fs::remove_dir(self.root.join(BACKUP));
        Ok(())
    }

    fn backup(&self, uuid: &str) -> PathBuf {
        self.root.join(BACKUP).join(format!("{uuid}.xml"))
    }

    fn applied(&self, uuid: &str) -> PathBuf {
        self.root.join(BACKUP).join(format!("{uuid}.applied.xml"))
    }

    fn virsh(&self, words: &[&str]) -> Result<Vec<u8>, String> {
        let connect = format!("--connect={}", self.uri);
        command::run("virsh", &[&[connect.as_str(), "--quiet"], words].concat())
    }
}

/// What of the new definition libvirt's own dump of it lacks: a change, or a line that was there before.
fn lost(old: &[u8], new: &[u8], dump: &[u8], changes: &[Change]) -> Option<String> {
    for change in changes {
        match rewrite::rewrite(dump, std::slice::from_ref(change)) {
            Ok(again) if again == dump => {}
            Ok(_) => return Some(format!("`{change}`: this libvirt is too old for it")),
            Err(error) => return Some(format!("a definition that can be read: {error}")),
        }
    }
    let lines = |text: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(text).lines().map(|line| line.trim().to_owned()).collect()
    };
    let (old, new, mut dump) = (lines(old), lines(new), lines(dump));
    for line in new.into_iter().filter(|line| old.contains(line)) {
        match dump.iter().position(|other| *other == line) {
            Some(at) => drop(dump.swap_remove(at)),
            None => return Some(format!("`{line}`")),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::lost;
    use crate::plan::{Change, MaxPhysAddrValue};
    use crate::units::PhysBits;

    #[test]
    fn what_libvirt_drops_is_seen() {
        let old = "<domain type='kvm'>\n  <name>a</name>\n  <cpu mode='host-passthrough'/>\n</domain>\n";
        let with = |limit: &str| {
            old.replace("'/>", &format!("'>\n    <maxphysaddr mode='passthrough'{limit}/>\n  </cpu>"))
        };
        let limit = PhysBits::new(43);
        let changes = [Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit })];
        let new = with(" limit='43'");
        let seen = |dump: &str| lost(old.as_bytes(), new.as_bytes(), dump.as_bytes(), &changes);
        assert_eq!(seen(&new), None);
        assert!(seen(&with("")).is_some_and(|what| what.contains("too old")), "libvirt 9.0 drops limit");
        assert!(seen(old).is_some(), "libvirt 8.6 drops the element");
        assert_eq!(seen(&new.replace("<name>a</name>\n", "")).as_deref(), Some("`<name>a</name>`"));
    }
}
