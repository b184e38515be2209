//! `install` and `uninstall`: barfit put in its places on a host, or in the tree of an image, and taken away again.
//!
//! The order is what keeps a host's guests safe (measured: a shim in the daemon's PATH that AppArmor does not allow
//! stops every guest of the host): rules first, then the files, then a guest started through the shim by its full
//! path, and only then the daemon's PATH. Whatever fails, everything goes back. Nothing that was there before is
//! lost: the manifest is written ahead of each change, and a removal restores byte for byte. What an operator has
//! changed since is left alone and named.

mod apparmor;
mod emulators;
mod manifest;
pub(super) mod places;
mod selinux;

use std::path::{Path, PathBuf};

use super::place::{State, remove_if_there, temporary};
use super::{daemon, shim};
use manifest::{Lock, Manifest, missing_folders};
use places::{Place, Stage};

/// What an installation is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the file system begins. Anything but `/` is an image: files only, no command is run.
    pub root: PathBuf,
    /// The program to install.
    pub program: PathBuf,
    /// Say what would be done, do nothing.
    pub dry_run: bool,
    /// Without the shim: the hook only reports and refuses.
    pub no_shim: bool,
}

impl Options {
    fn commands(&self) -> bool {
        self.root == Path::new("/")
    }
}

/// What was done, and what is left to do: a line each.
pub type Report = Vec<String>;

/// Installs barfit, or brings an installation up to date. Doing it twice changes nothing more.
///
/// # Errors
/// What failed, after everything was taken back; and what could not be taken back.
pub fn install(options: &Options) -> Result<Report, String> {
    locked(&options.root, options.dry_run, |manifest| {
        let places = places::all(options, &manifest)?;
        let before = manifest.content.clone();
        let (undo, report) = (Vec::new(), Vec::new());
        let mut work = Work { options, before, manifest, undo, rules_loaded: false, report };
        if options.dry_run {
            work.show(&places)?;
            return Ok(work.report);
        }
        match work.install(&places) {
            Ok(()) => Ok(work.report),
            Err(error) => Err(work.back_out(error)),
        }
    })
}

/// Does something with the manifest that nobody else does at the same time, unless it only looks.
fn locked<T>(
    root: &Path,
    only_looks: bool,
    work: impl FnOnce(Manifest) -> Result<T, String>,
) -> Result<T, String> {
    if only_looks {
        return work(Manifest::load(root)?);
    }
    let lock = Lock::take(root)?;
    let done = Manifest::load(root).and_then(work);
    lock.release();
    done
}

/// Takes barfit away and restores what was there before.
///
/// # Errors
/// The manifest cannot be read, or a place cannot be restored.
pub fn uninstall(root: &Path, dry_run: bool) -> Result<Report, String> {
    // What has never been there needs no lock, which could not be made in a read-only tree.
    let mut there = false;
    for path in [root.join(manifest::FOLDER), Lock::path(root)] {
        there |= path.try_exists().map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let only_looks = dry_run || !there;
    locked(root, only_looks, |manifest| take_away(root, manifest, only_looks))
}

fn take_away(root: &Path, mut manifest: Manifest, dry_run: bool) -> Result<Report, String> {
    if manifest.is_empty() {
        if !dry_run {
            // What an installation may leave that is killed before its first change.
            manifest.remove()?;
        }
        return Ok(vec!["barfit is not installed here by `barfit install`; nothing to do".to_owned()]);
    }
    let commands = root == Path::new("/");
    let mut report = Vec::new();
    // PATH first: no guest may look for a shim that is gone. The manifest's order is that of the installation.
    let entries: Vec<_> = manifest.content.entries.iter().rev().cloned().collect();
    let (path, rest): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| places::sets_path(&entry.path));
    for entry in &path {
        report.extend(restore(root, &mut manifest, entry, dry_run)?);
    }
    if !path.is_empty() && commands && !dry_run {
        report.extend(daemon::without_shim()?);
    }
    if commands && !dry_run {
        selinux::unset(&mut manifest)?;
    }
    if commands {
        report.extend(emulators::give_back(root, dry_run));
    }
    let is_folder = |entry: &manifest::Entry| entry.now == State::Folder.fingerprint();
    let (folders, files): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_folder);
    let mut rules = false;
    for entry in &files {
        rules |= apparmor::is_rule(&entry.path);
        match forward(root, entry, dry_run)? {
            Some(said) => report.push(said),
            None => report.extend(restore(root, &mut manifest, entry, dry_run)?),
        }
    }
    if dry_run {
        return Ok(report);
    }
    if rules && commands && apparmor::is_on(root) {
        apparmor::reload(root)?;
    }
    drop_leavings(root);
    // The manifest knows the folders, so it goes after them; what it lies in goes with it.
    for entry in folders.iter().filter(|entry| !Path::new(manifest::FOLDER).starts_with(&entry.path)) {
        remove_empty(&root.join(&entry.path))?;
    }
    // Not among them where an earlier removal has left a link in it.
    remove_empty(&root.join(shim::FOLDER))?;
    manifest.remove()?;
    if commands {
        daemon::see_hook();
    }
    Ok(report)
}

/// Takes away what the hook has left; gone with it.
fn drop_leavings(root: &Path) {
    for folder in ["run/barfit", "var/lib/barfit/applied", "var/cache/barfit"] {
        let _ = std::fs::remove_dir_all(root.join(folder));
    }
}

/// Where libvirt still names a shim, a link to the real emulator takes its place; `None` where nothing names it.
fn forward(root: &Path, entry: &manifest::Entry, dry_run: bool) -> Result<Option<String>, String> {
    if !places::is_shim(&entry.path) {
        return Ok(None);
    }
    let users = emulators::named_in(root, &entry.path);
    let real = entry.path.file_name().and_then(|name| shim::real_emulator(root, name).ok());
    let (Some(real), false) = (real, users.is_empty()) else { return Ok(None) };
    let path = root.join(&entry.path);
    if !dry_run {
        State::Link(real.clone()).make(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let users: Vec<String> = users.iter().map(|user| user.display().to_string()).collect();
    Ok(Some(format!(
        "{} {} as a link to {}, because of what libvirt keeps in {}; remove it when nothing there names it",
        if dry_run { "would be left:" } else { "left" },
        path.display(),
        real.display(),
        users.join(", ")
    )))
}

/// Removes a folder, unless something else lies in it by now.
fn remove_empty(folder: &Path) -> Result<(), String> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound};
    match std::fs::remove_dir(folder) {
        Err(error) if !matches!(error.kind(), NotFound | DirectoryNotEmpty | NotADirectory) => {
            Err(format!("{}: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Restores one place, unless somebody has changed it since.
fn restore(
    root: &Path,
    manifest: &mut Manifest,
    entry: &manifest::Entry,
    dry_run: bool,
) -> Result<Option<String>, String> {
    let path = root.join(&entry.path);
    let says = |error: std::io::Error| format!("{}: {error}", path.display());
    let before = manifest.before(entry)?;
    let present = State::read(&path).map_err(says)?;
    let verb = if before == State::Absent { "removed" } else { "restored" };
    if !entry.is_ours(&present) && present.fingerprint() != before.fingerprint() {
        return Ok(Some(format!("left {}: it was changed after barfit wrote it", path.display())));
    }
    if dry_run {
        return Ok(Some(format!("would be {verb}: {}", path.display())));
    }
    remove_if_there(&temporary(&path)).map_err(says)?;
    if present.fingerprint() != before.fingerprint() {
        before.make(&path).map_err(says)?;
    }
    Ok(Some(format!("{verb} {}", path.display())))
}

/// One installation on its way.
struct Work<'a> {
    options: &'a Options,
    /// The manifest as it was.
    before: manifest::Content,
    manifest: Manifest,
    /// What was at each place before this installation, in the order of the changes.
    undo: Vec<(PathBuf, State)>,
    /// The kernel has the new AppArmor rules.
    rules_loaded: bool,
    report: Report,
}

impl Work<'_> {
    fn show(&mut self, places: &[Place]) -> Result<(), String> {
        for place in places {
            let path = self.options.root.join(&place.path);
            let says = |error: std::io::Error| format!("{}: {error}", path.display());
            let present = State::read(&path).map_err(says)?;
            self.report.push(match self.fate(place, &present) {
                Fate::Same => format!("is as it should be: {}", path.display()),
                Fate::Foreign(why) => format!("would be left: {}: {why}", path.display()),
                Fate::Write if present == State::Absent => format!("would be made: {}", path.display()),
                Fate::Write => format!("would be changed: {}", path.display()),
            });
        }
        Ok(())
    }

    /// What becomes of a place.
    fn fate(&self, place: &Place, present: &State) -> Fate {
        if present.fingerprint() == place.state.fingerprint() {
            return Fate::Same;
        }
        let entry = self.manifest.content.entries.iter().find(|entry| entry.path == place.path);
        match entry {
            _ if place.keep && *present != State::Absent => Fate::Foreign("it is the operator's"),
            Some(entry)
                if !place.own
                    && !entry.is_ours(present)
                    && self
                        .manifest
                        .before(entry)
                        .is_ok_and(|before| before.fingerprint() != present.fingerprint()) =>
            {
                Fate::Foreign("it was changed after barfit wrote it")
            }
            _ => Fate::Write,
        }
    }

    fn install(&mut self, places: &[Place]) -> Result<(), String> {
        let commands = self.options.commands();
        let shimmed = !self.options.no_shim;
        self.write(places, Stage::Rules)?;
        if commands && shimmed && apparmor::is_on(&self.options.root) {
            apparmor::reload(&self.options.root)?;
            self.rules_loaded = true;
        }
        self.write(places, Stage::Files)?;
        if commands {
            if selinux::is_on() {
                selinux::set(&mut self.manifest, shimmed)?;
            }
            daemon::see_hook();
            if shimmed {
                self.try_shims(places)?;
            }
        }
        self.write(places, Stage::Path)?;
        self.drop_obsolete(places)?;
        if commands && shimmed {
            self.give_path()?;
        }
        Ok(())
    }

    /// Writes the places of one stage.
    fn write(&mut self, places: &[Place], stage: Stage) -> Result<(), String> {
        for place in places.iter().filter(|place| place.stage == stage) {
            let folder = place.path.parent().unwrap_or(Path::new(""));
            for missing in missing_folders(&self.options.root, folder)? {
                self.change(&missing, &State::Folder)?;
            }
            let path = self.options.root.join(&place.path);
            let says = |error: std::io::Error| format!("{}: {error}", path.display());
            let present = State::read(&path).map_err(says)?;
            // Of a run that was killed.
            remove_if_there(&temporary(&path)).map_err(says)?;
            match self.fate(place, &present) {
                Fate::Same => {}
                Fate::Foreign(why) => {
                    if !place.keep {
                        self.report.push(format!("left {}: {why}", path.display()));
                    }
                }
                Fate::Write => {
                    self.change(&place.path, &place.state)?;
                    self.report.push(format!("wrote {}", path.display()));
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, place: &Path, wanted: &State) -> Result<(), String> {
        let path = self.options.root.join(place);
        let says = |error: std::io::Error| format!("{}: {error}", path.display());
        let present = State::read(&path).map_err(says)?;
        // A link that an earlier removal has left is nothing to come back to.
        let left = places::is_shim(place) && matches!(present, State::Link(_));
        self.manifest.note(place, if left { &State::Absent } else { &present }, wanted)?;
        self.undo.push((place.to_owned(), present));
        wanted.make(&path).map_err(says)
    }

    /// What an earlier installation made and this one does not want (`--no-shim`, a newer libvirt) goes.
    fn drop_obsolete(&mut self, places: &[Place]) -> Result<(), String> {
        let folder = State::Folder.fingerprint();
        let wanted = |path: &Path| places.iter().any(|place| place.path == path);
        let entries = self.manifest.content.entries.clone();
        let obsolete: Vec<_> =
            entries.iter().rev().filter(|entry| entry.now != folder && !wanted(&entry.path)).collect();
        let commands = self.options.commands();
        if commands && obsolete.iter().any(|entry| places::is_shim(&entry.path)) {
            self.report.extend(emulators::give_back(&self.options.root, false));
        }
        for entry in &obsolete {
            let path = self.options.root.join(&entry.path);
            let present = State::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            self.undo.push((entry.path.clone(), present));
            let said = match forward(&self.options.root, entry, false)? {
                Some(said) => Some(said),
                None => restore(&self.options.root, &mut self.manifest, entry, false)?,
            };
            self.report.extend(said);
            self.manifest.forget(&entry.path);
            self.manifest.save()?;
        }
        if commands
            && obsolete.iter().any(|entry| apparmor::is_rule(&entry.path))
            && apparmor::is_on(&self.options.root)
        {
            apparmor::reload(&self.options.root)?;
        }
        if commands && obsolete.iter().any(|entry| places::sets_path(&entry.path)) {
            self.report.extend(daemon::without_shim()?);
        }
        Ok(())
    }

    /// Each shim runs, and a guest starts through it, before any daemon is told of it.
    fn try_shims(&mut self, places: &[Place]) -> Result<(), String> {
        let shim_of = |name: &str| Path::new("/").join(shim::FOLDER).join(name);
        let names = places::shims(places);
        for name in &names {
            super::command::run(&shim_of(name).display().to_string(), &["-version"])
                .map_err(|error| format!("the shim does not run: {error}"))?;
        }
        let Some(name) = names.first() else { return Ok(()) };
        if !daemon::answers() {
            self.report.push(
                "no libvirt answers at qemu:///system: that guests start through the shim is not tested; \
                 run `barfit doctor` when it does"
                    .to_owned(),
            );
            return Ok(());
        }
        let (shim, real) = (shim_of(name), shim::real_emulator(&self.options.root, name.as_ref())?);
        // One after the other: a host on which no guest starts may still be one on which the shim does harm.
        for (what, works) in [
            ("libvirt can probe", daemon::probe as fn(&Path) -> Result<(), String>),
            ("a guest starts through", daemon::try_guest),
        ] {
            let Err(error) = works(&shim) else {
                self.report.push(format!("{what} {}", shim.display()));
                continue;
            };
            if works(&real).is_ok() {
                return Err(format!("{what} {}, but not {}: {error}", real.display(), shim.display()));
            }
            self.report.push(format!(
                "not tested whether {what} {}: it does not work with {}, either: {error}",
                shim.display(),
                real.display()
            ));
        }
        Ok(())
    }

    fn give_path(&mut self) -> Result<(), String> {
        if !daemon::has_systemd() {
            self.report.push(format!(
                "without systemd: restart libvirtd (or virtqemud) with PATH=/{}:{}",
                shim::FOLDER,
                daemon::path_of(daemon::UNITS[0], false)
            ));
            return Ok(());
        }
        daemon::restart()?;
        if !daemon::answers() {
            return Ok(());
        }
        let emulator = daemon::default_emulator()?;
        if !shim::is_shim(&self.options.root, Path::new(&emulator)) {
            self.report.push(format!(
                "libvirt's own choice of emulator is {emulator}, not the shim: domains need \
                 <emulator>/{}/qemu-system-x86_64</emulator>, or `barfit apply`",
                shim::FOLDER
            ));
        }
        Ok(())
    }

    /// Takes back everything of this installation; the result says what failed.
    fn back_out(mut self, error: String) -> String {
        let mut failures = Vec::new();
        for (place, state) in self.undo.iter().rev() {
            let path = self.options.root.join(place);
            // What failed has not been changed, and may not be changeable.
            let is_so = State::read(&path).is_ok_and(|present| present == *state);
            let undone = remove_if_there(&temporary(&path))
                .and_then(|()| if is_so { Ok(()) } else { state.make(&path) });
            if let Err(error) = undone.or_else(|error| if path.is_dir() { Ok(()) } else { Err(error) }) {
                failures.push(format!("{}: {error}", path.display()));
            }
        }
        if self.options.commands() {
            if self.before != self.manifest.content
                && !(self.before.selinux_contexts || self.before.selinux_boolean)
            {
                failures.extend(selinux::unset(&mut self.manifest).err());
            }
            if self.undo.iter().any(|(place, _)| apparmor::is_rule(place))
                && apparmor::is_on(&self.options.root)
                && let Err(why) = apparmor::reload(&self.options.root)
            {
                // Where the rules could not be loaded, the daemon runs under those of before already.
                if self.rules_loaded {
                    failures.push(why);
                }
            }
            if daemon::has_systemd() && self.undo.iter().any(|(place, _)| places::sets_path(place)) {
                failures.extend(daemon::restart().err());
            }
            daemon::see_hook();
        }
        if failures.is_empty() {
            let first = self.before.entries.is_empty();
            let created: Vec<PathBuf> =
                self.manifest.content.entries.iter().map(|e| e.path.clone()).collect();
            self.manifest.content = self.before;
            if first {
                // The throw-away guest's start was one of the hook's, too.
                drop_leavings(&self.options.root);
            }
            let kept = if first { self.manifest.remove() } else { self.manifest.save() };
            if first && kept.is_ok() {
                for path in created.iter().rev() {
                    let path = self.options.root.join(path);
                    if path.is_dir() {
                        let _ = State::Absent.make(&path);
                    }
                }
            }
            match kept {
                Ok(()) => return format!("{error}; everything is as it was before"),
                Err(why) => failures.push(why),
            }
        }
        format!("{error}; taking it back failed, too, run `barfit uninstall`: {}", failures.join("; "))
    }
}

/// What becomes of a place.
enum Fate {
    Same,
    Foreign(&'static str),
    Write,
}
