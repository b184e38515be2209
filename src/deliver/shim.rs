//! The emulator shim: stands first in the daemon's PATH under the emulator's name, makes a guest's plan true in the
//! argv, and becomes the real QEMU by exec: same process, same file descriptors, same environment.
//!
//! It runs as the guest's user, confined like the guest. It reads one file, the guest's plan, and believes it only if
//! root wrote it; without a plan, or for a probe, the argv goes on untouched. It never decides anything itself.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::fault;
use super::plan_file::{self, Plans};
use crate::rewrite;

/// Where the shims are, below the root directory.
pub const FOLDER: &str = "usr/libexec/barfit";

/// Names under which QEMU's x86 emulator goes.
pub const NAMES: [&str; 4] = ["qemu-system-x86_64", "qemu-system-i386", "qemu-kvm", "kvm"];

/// Where the real emulator is looked for, after the link `real/NAME` beside the shim.
const EMULATOR_FOLDERS: [&str; 5] = ["usr/bin", "usr/libexec", "usr/local/bin", "bin", "usr/sbin"];

/// Whether a program of this name is a shim.
pub fn is_emulator_name(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| NAMES.contains(&name))
}

/// Whether an emulator path of a domain is one of barfit's shims.
pub fn is_shim(root: &Path, emulator: &Path) -> bool {
    let folder = Path::new("/").join(FOLDER);
    let named =
        emulator.parent() == Some(folder.as_path()) && emulator.file_name().is_some_and(is_emulator_name);
    let path = root.join(emulator.strip_prefix("/").unwrap_or(emulator));
    named && fs::symlink_metadata(path).is_ok_and(|facts| !facts.is_symlink())
}

/// What to run, and what to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The real emulator.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// One line for the guest's QEMU log; `None` when nothing was changed and nothing is worth saying.
    pub message: Option<String>,
}

/// Decides what a shim called `name` with these arguments runs.
///
/// # Errors
/// The real emulator is not there; the text says where it was looked for.
pub fn launch(root: &Path, name: &OsStr, arguments: Vec<OsString>) -> Result<Launch, String> {
    let as_given = untouched(root, name, arguments)?;
    let Some(uuid) = guest_uuid(&as_given.arguments) else { return Ok(as_given) };
    fault::inject(root, "shim");
    let plan = match Plans::at(root).read(&uuid) {
        Ok(Some(plan)) => plan,
        Ok(None) => return Ok(as_given),
        Err(error) => {
            let message = format!("barfit: {error}; the guest starts without barfit");
            return Ok(Launch { message: Some(message), ..as_given });
        }
    };
    let Launch { program, arguments, .. } = as_given;
    let mut argv = Vec::with_capacity(arguments.len() + 1);
    argv.push(program.clone().into_os_string());
    argv.extend(arguments);
    let mut changed = rewrite::argv::rewrite(argv.clone(), &plan.changes);
    let message = (changed != argv).then(|| {
        let words: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
        format!("barfit: changed the command line as planned: {}", words.join(" and "))
    });
    changed.remove(0);
    Ok(Launch { program, arguments: changed, message })
}

/// The real emulator with the arguments as they are.
///
/// # Errors
/// Those of [`launch`].
pub fn untouched(root: &Path, name: &OsStr, arguments: Vec<OsString>) -> Result<Launch, String> {
    Ok(Launch { program: real_emulator(root, name)?, arguments, message: None })
}

/// The UUID of the guest that these arguments start; `None` for a probe, `-version`, or a guest without one.
fn guest_uuid(arguments: &[OsString]) -> Option<String> {
    let probe = |word: &OsString| {
        matches!(
            word.to_str(),
            Some("-daemonize" | "--daemonize" | "-version" | "--version" | "-help" | "--help" | "-h")
        )
    };
    if arguments.iter().any(probe) {
        return None;
    }
    let at = arguments.iter().position(|word| word == "-uuid" || word == "--uuid")?;
    let uuid = arguments.get(at + 1)?.to_str()?.to_ascii_lowercase();
    plan_file::is_uuid(&uuid).then_some(uuid)
}

/// The emulator behind a shim: where the link `real/NAME` leads, else the first of the usual places that is not a
/// shim itself.
///
/// # Errors
/// There is none.
pub fn real_emulator(root: &Path, name: &OsStr) -> Result<PathBuf, String> {
    let found = real_beside(root, name, own(root, name).as_ref());
    found.map(|(path, _)| path).ok_or_else(|| {
        format!(
            "barfit: the emulator `{}` is in none of /{}; install QEMU, or uninstall barfit's shim with `barfit uninstall`",
            name.to_string_lossy(),
            EMULATOR_FOLDERS.join(", /")
        )
    })
}

/// The shim of this name. A link in its place, as a removal may leave one, is no shim.
fn own(root: &Path, name: &OsStr) -> Option<fs::Metadata> {
    fs::symlink_metadata(root.join(FOLDER).join(name)).ok().filter(|facts| !facts.is_symlink())
}

/// The emulator behind a shim, and what it is as far as it can be looked at.
fn real_beside(
    root: &Path,
    name: &OsStr,
    own: Option<&fs::Metadata>,
) -> Option<(PathBuf, Option<fs::Metadata>)> {
    let link = fs::read_link(root.join(FOLDER).join("real").join(name));
    let usual = EMULATOR_FOLDERS.iter().map(|folder| Path::new("/").join(folder).join(name));
    let real = |path: PathBuf| match fs::metadata(root.join(path.strip_prefix("/").unwrap_or(&path))) {
        Ok(facts) => {
            let is_real = facts.is_file() && Some(identity(&facts)) != own.map(identity);
            is_real.then_some((path, Some(facts)))
        }
        // What cannot be looked at for another reason than that it is not there may still run.
        Err(error) => {
            let is_there = !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            is_there.then_some((path, None))
        }
    };
    link.ok().into_iter().chain(usual).find_map(real)
}

/// Touches the shims that are older than the emulator behind them, and names them.
///
/// libvirt keeps an emulator's capabilities until the time of change of its file is another (`virQEMUCapsIsValid`,
/// libvirt 9.0). An upgrade of QEMU changes the real file, not the shim: libvirt would go on with what it knew of the
/// old QEMU. (Where the upgrade changes QEMU's folder of modules, too, libvirt notices by itself.)
///
/// libvirt compares whole seconds. A shim that changed in this very second is left to the next call: touched now, it
/// would look the same to libvirt, and no longer stale to barfit.
pub fn refresh(root: &Path) -> Vec<PathBuf> {
    refresh_at(root, plan_file::now())
}

/// `now` in whole seconds.
fn refresh_at(root: &Path, now: u64) -> Vec<PathBuf> {
    let changed = |facts: &fs::Metadata| (facts.ctime(), facts.ctime_nsec());
    let is_stale = |name: &OsStr| {
        let Some(shim) = own(root, name) else { return false };
        let real = real_beside(root, name, Some(&shim)).and_then(|(_, facts)| facts);
        real.is_some_and(|real| changed(&real) > changed(&shim))
            && u64::try_from(shim.ctime()).is_ok_and(|second| now > second)
    };
    let touch = |shim: &PathBuf| File::open(shim).and_then(|file| file.set_modified(SystemTime::now()));
    let stale = NAMES.iter().filter(|name| is_stale(OsStr::new(name)));
    stale.map(|name| root.join(FOLDER).join(name)).filter(|shim| touch(shim).is_ok()).collect()
}

fn identity(facts: &fs::Metadata) -> (u64, u64) {
    (facts.dev(), facts.ino())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for folder in [FOLDER, "usr/bin"] {
            fs::create_dir_all(root.path().join(folder)).expect("made");
        }
        fs::write(root.path().join(FOLDER).join("qemu-system-x86_64"), "shim").expect("written");
        fs::write(root.path().join("usr/bin/qemu-system-x86_64"), "real").expect("written");
        root
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn probes_go_through_untouched() {
        let root = root();
        for line in ["-version", "-S -machine none -qmp x -daemonize", "-uuid nonsense", "-uuid"] {
            let launch =
                launch(root.path(), OsStr::new("qemu-system-x86_64"), words(line)).expect("real one found");
            assert_eq!(launch.arguments, words(line));
            assert_eq!(launch.message, None);
            assert_eq!(launch.program, Path::new("/usr/bin/qemu-system-x86_64"));
        }
    }

    #[test]
    fn a_shim_never_becomes_itself() {
        let root = root();
        let real = root.path().join("usr/bin/qemu-system-x86_64");
        fs::remove_file(&real).expect("removed");
        fs::hard_link(root.path().join(FOLDER).join("qemu-system-x86_64"), &real).expect("linked");
        let error =
            real_emulator(root.path(), OsStr::new("qemu-system-x86_64")).expect_err("no other emulator");
        assert!(error.contains("/usr/bin"), "{error}");
    }

    #[test]
    fn a_shim_older_than_its_emulator_is_touched_once() {
        let root = root();
        let shim = root.path().join(FOLDER).join("qemu-system-x86_64");
        std::thread::sleep(Duration::from_millis(20));
        fs::write(root.path().join("usr/bin/qemu-system-x86_64"), "newer").expect("written");
        std::thread::sleep(Duration::from_millis(20));
        let since = u64::try_from(fs::metadata(&shim).expect("there").ctime()).expect("after 1970");
        assert_eq!(
            refresh_at(root.path(), since),
            [] as [PathBuf; 0],
            "libvirt could not tell it from before"
        );
        assert_eq!(refresh_at(root.path(), since + 1), std::slice::from_ref(&shim));
        assert_eq!(refresh_at(root.path(), since + 2), [] as [PathBuf; 0]);
        assert_eq!(fs::read_to_string(&shim).expect("read"), "shim");
    }

    #[test]
    fn only_the_installed_path_is_a_shim() {
        let root = root();
        assert!(is_shim(root.path(), Path::new("/usr/libexec/barfit/qemu-system-x86_64")));
        for path in
            ["/usr/bin/qemu-system-x86_64", "/usr/libexec/barfit/barfit", "/usr/libexec/barfit/kvm", ""]
        {
            assert!(!is_shim(root.path(), Path::new(path)), "{path}");
        }
    }
}
