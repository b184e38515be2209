//! The diffs, taken by the programs they are for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use barfit::rewrite::diff;

/// Old and new texts in every shape of line ends.
const PAIRS: &[(&str, &[u8], &[u8])] = &[
    ("plain.xml", b"<a>\n <b/>\n</a>\n", b"<a>\n <c/>\n <b/>\n</a>\n"),
    ("crlf.xml", b"<a>\r\n <b/>\r\n</a>\r\n", b"<a>\r\n <c/>\r\n</a>\r\n"),
    ("mixed.xml", b"<a>\r\n <b/>\n</a>\r\n", b"<a>\r\n <b/>\r\n</a>\n"),
    ("lone-cr.xml", b"<a>\r <b/>\r</a>\r", b"<a>\r <b/>\r <c/>\r</a>\r"),
    ("no-newline.xml", b"<a><b/></a>", b"<a><b/><c/></a>"),
    ("newline-added.xml", b"<a>\n</a>", b"<a>\n</a>\n"),
    ("newline-taken.xml", b"<a>\n</a>\n", b"<a>\n</a>"),
    ("one-line-more.xml", b"<a/>", b"<!-- -->\n<a/>"),
    ("crlf-no-newline.xml", b"<a>\r\n</a>", b"<a>\r\n<b/></a>"),
    ("from-nothing.xml", b"", b"<a/>\n"),
    ("directory/in a directory.xml", b"<a/>\n", b"<b/>\n"),
    ("caf\u{e9} \u{6f22}.xml", b"<a/>\n", b"<b/>\n"),
    ("quote\"back\\slash.xml", b"<a/>\n", b"<b/>\n"),
    ("bytes.xml", b"\xef\xbb\xbf<a>\xff\n</a>\n", b"\xef\xbb\xbf<b>\xff\n</b>\n"),
];

/// A long text with two changes far apart: two hunks, whose numbers count.
fn far_apart() -> (Vec<u8>, Vec<u8>) {
    let lines: Vec<String> = (0..100).map(|n| format!("<line n='{n}'/>\r\n")).collect();
    let mut changed = lines.clone();
    changed[10].push_str("<new/>\r\n<new/>\r\n");
    changed[80].clear();
    (lines.concat().into_bytes(), changed.concat().into_bytes())
}

fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a scratch directory");
    path
}

/// Applies every pair's diff with a program, in a directory of its own.
fn applied_by(program: &str, install: &str, args: &[&str]) {
    let directory = scratch(program);
    let (old, new) = far_apart();
    let pairs = PAIRS.iter().copied().chain([("far apart.xml", &old[..], &new[..])]);
    fs::create_dir(directory.join("directory")).expect("a directory in it");
    for (name, old, new) in pairs {
        let file = directory.join(name);
        fs::write(&file, old).expect(name);
        let patch = diff::unified(&format!("./{name}"), old, new);
        let patch_file = directory.join("the.patch");
        fs::write(&patch_file, &patch).expect("the patch");
        let output = Command::new(program)
            .args(args)
            .arg(&patch_file)
            .current_dir(&directory)
            .env("LC_ALL", "C")
            .env("GIT_CEILING_DIRECTORIES", &directory)
            .env("GIT_DIR", directory.join("no-repository"))
            .output()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}; {install}"));
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let patch = String::from_utf8_lossy(&patch);
        assert!(output.status.success(), "{program}, {name}: {said}\n{patch}");
        assert!(!said.contains("fuzz") && !said.contains("offset"), "{program}, {name}: {said}\n{patch}");
        assert!(fs::read(&file).expect(name) == new, "{program}, {name}: another result\n{patch}");
    }
}

#[test]
fn patch_applies_them() {
    applied_by("patch", "install the package `patch`", &["--batch", "-p1", "-i"]);
}

#[test]
fn git_applies_them() {
    applied_by("git", "install the package `git`", &["apply", "-p1", "--whitespace=nowarn"]);
}

#[test]
fn equal_texts_have_no_diff() {
    assert!(diff::unified("a.xml", b"<a/>\r\n", b"<a/>\r\n").is_empty());
    assert!(diff::coloured("a.xml", b"", b"").is_empty());
}

/// Without its colours the coloured diff is the plain one, and no colour spans a line break.
#[test]
fn colours_only_add() {
    let (old, new) = far_apart();
    for (name, old, new) in PAIRS.iter().copied().chain([("far.xml", &old[..], &new[..])]) {
        let coloured = diff::coloured(name, old, new);
        for line in coloured.split(|&byte| byte == b'\n') {
            let escapes = line.windows(2).filter(|pair| pair == b"\x1b[").count();
            assert_eq!(escapes % 2, 0, "{name}: {}", String::from_utf8_lossy(line));
        }
        let mut plain = coloured;
        for code in ["1", "36", "31", "32", "0"] {
            let escape = format!("\x1b[{code}m").into_bytes();
            while let Some(at) = plain.windows(escape.len()).position(|window| window == escape) {
                plain.drain(at..at + escape.len());
            }
        }
        assert!(plain == diff::unified(name, old, new), "{name}");
    }
}
