//! What an OVMF image is, by its own contents: the era of its rules, and the features that distributions backport.
//!
//! RELEASE builds carry no debug texts, but three things tell: a version string in UTF-16 (builds since 202302, if
//! the distribution sets it), names of fw_cfg files in ASCII, and the GUIDs of modules that every build has. Each
//! marker below was found by comparing OvmfPkg at consecutive stable tags: it is in OvmfPkgX64.fdf without a
//! condition, or in a library that decides the window (PlatformInitLib). Whether `X-PciMmio64Mb` is an exact size
//! shows nowhere but in the machine code that reads it.

use memchr::memmem;

use super::release;
use super::volume::{Image, guid};

/// What was found out about an OVMF image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) era: String,
    pub(super) fw_cfg_override: Option<bool>,
    pub(super) gib_page_tables: Option<bool>,
    pub(super) because: String,
}

/// A marker and the first era that has it.
type Marker = (&'static str, &'static [u8]);

/// The file name that every OVMF with a 64-bit window knows.
const WINDOW: &[u8] = b"opt/ovmf/X-PciMmio64Mb";

/// Markers in what runs early, newest first.
const EARLY: [Marker; 6] = [
    (release::OVERRIDE, b"opt/org.tianocore/PagingLevel"),
    ("202411", b"opt/org.tianocode/PagingLevel"), // a slip of the pen, set right two tags later
    ("202302", b"opt/org.tianocore/X-Cpuhp-Bugcheck-Override"),
    ("202211", b"AuthenticAMD"), // PlatformAddressWidthFromCpuid compares the vendor
    ("202208", b"etc/hardware-info"),
    (OLDEST, WINDOW),
];

/// Markers anywhere, newest first: what splits the gaps that the early ones leave.
const ANYWHERE: [Marker; 10] = [
    ("202605", &guid(0x29e54f5e, 0x365a, 0x4235, [0xba, 0x62, 0xc8, 0x32, 0xd7, 0x66, 0x08, 0x52])), // CxlDxe
    ("202502", &guid(0xf141b1e5, 0x9c7c, 0x44cc, [0xaf, 0xaa, 0xe8, 0x7d, 0x76, 0x89, 0xb1, 0x13])), // VirtioKeyboard
    ("202408", &guid(0xb981a835, 0x6ee8, 0x4f4c, [0xae, 0x0b, 0x21, 0x0a, 0xa0, 0xbf, 0xbf, 0x01])), // RngDxe
    ("202405", &guid(0x60740cf3, 0xd428, 0x4500, [0x80, 0xe6, 0x04, 0xa5, 0x79, 0x82, 0x41, 0xed])), // VirtHstiDxe
    ("202402", b"opt/org.tianocore/UninstallMemAttrProtocol"),
    ("202308", &guid(0x820c59bb, 0x274c, 0x43b2, [0x83, 0xea, 0xda, 0xc6, 0x73, 0x03, 0x5a, 0x59])), // SataController
    ("202305", &guid(0x23cace14, 0xeba4, 0x49f6, [0x96, 0x81, 0xc6, 0x97, 0xff, 0x0b, 0x64, 0x9e])), // VirtioSerial
    ("202205", &guid(0xe750224e, 0x7bce, 0x40af, [0xb5, 0xbb, 0x47, 0xe3, 0x61, 0x1e, 0xb5, 0xc2])), // TdxDxe
    ("202102", &guid(0x7bd9ddf7, 0x8b83, 0x488e, [0xae, 0xc9, 0x24, 0xc7, 0x86, 0x10, 0x28, 0x9c])), // VirtioFsDxe
    ("202005", &guid(0x806040ca, 0xdad9, 0x4978, [0xa3, 0xb4, 0x2d, 0x2a, 0xb0, 0xc8, 0xa4, 0x8f])), // QemuKernelLoader
];

/// The oldest stable tag.
const OLDEST: &str = "201808";

/// A PEI module that only AmdSevX64 has, the build without 1 GiB page tables (SecretPei).
const AMD_SEV: [u8; 16] = guid(0x45260dde, 0x0c3c, 0x4b41, [0xa2, 0x26, 0xef, 0x38, 0x03, 0xfa, 0xc7, 0xd4]);

/// Looks into an image. `package` is the version of the package that owns the file, where one does.
///
/// The string in the image is believed first, then the package, each only if the markers of what runs early do not
/// contradict it; only where neither stands is everything unpacked. `None`: no OVMF of PCs with a 64-bit window.
pub(super) fn examine(image: &Image<'_>, package: Option<&str>) -> Option<Findings> {
    let has = |marker: &[u8]| image.early().iter().any(|part| memmem::find(part, marker).is_some());
    let early = EARLY.iter().position(|(_, marker)| has(marker))?;
    let from = EARLY[early].0;
    let below = early.checked_sub(1).map(|newer| EARLY[newer].0);
    let fits = |era: &String| era.as_str() >= from && below.is_none_or(|below| era.as_str() < below);

    let believe = |version: &str| release::era(version).filter(fits);
    let string = image.early().into_iter().find_map(version_string);
    let (named, source) = match (string, package) {
        (Some(string), _) if believe(&string).is_some() => (Some(string), "version in the image:"),
        (_, Some(package)) if believe(package).is_some() => (Some(package.to_owned()), "package"),
        _ => (None, ""),
    };
    let (era, known_override, because) = match named {
        Some(version) => {
            let era = release::era(&version)?;
            let known = release::overrides(&version, &era);
            (era, known, format!("{source} {version}"))
        }
        None => {
            let everything = image.unpack();
            let anywhere = ANYWHERE.iter().find(|(_, marker)| memmem::find(&everything, marker).is_some());
            let era = anywhere.map_or(from, |(era, _)| from.max(era));
            ((*era).to_owned(), (era >= release::OVERRIDE).then_some(true), "markers in the image".to_owned())
        }
    };
    Some(Findings {
        fw_cfg_override: known_override.or_else(|| image.early().into_iter().find_map(override_in_code)),
        gib_page_tables: has(&AMD_SEV).then_some(false),
        era,
        because,
    })
}

/// A string in UTF-16 that is the version of a build: it has no blanks, and an era can be read out of it.
fn version_string(bytes: &[u8]) -> Option<String> {
    let mut run = String::new();
    let mut at = 0;
    while let Some(&[low, high]) = bytes.get(at..at + 2) {
        if high == 0 && (low.is_ascii_alphanumeric() || b"+-.:~_".contains(&low)) {
            run.push(char::from(low));
            at += 2;
            continue;
        }
        // Shorter ones are numbers that look like a month.
        if low == 0 && high == 0 && run.len() >= 7 && release::era(&run).is_some() {
            return Some(run);
        }
        // After a run the next string begins at the byte that ended it; else at any byte.
        at += if run.is_empty() { 1 } else { 0 };
        run.clear();
    }
    None
}

/// Whether the code that reads `X-PciMmio64Mb` notes beside the size that it was given; `None` where that code is not
/// recognised.
///
/// PlatformGetFirstNonAddress accepts up to 0x1000000 MiB and shifts the number left by 20. With the override it
/// then sets a flag that stands right behind the size in a packed structure: a byte store of 1 at some offset, a
/// store of the size 8 below it, from the same base register. Seen in Debian's builds by GCC, for PEI in 32 and 64
/// bits.
fn override_in_code(code: &[u8]) -> Option<bool> {
    const LIMIT: [u8; 4] = 0x100_0000u32.to_le_bytes();
    const REACH: usize = 96;
    let mut recognised = None;
    for at in memmem::find_iter(code, &LIMIT) {
        // cmp eax, imm32; cmp r32, imm32
        let compares = match code.get(at.saturating_sub(2)..at) {
            Some(&[0x81, modrm]) => modrm >= 0xf8,
            Some(&[_, 0x3d]) => true,
            _ => false,
        };
        let after = &code[at + 4..code.len().min(at + 4 + REACH)];
        // shl r, 20, or the argument of LShiftU64
        let shifts = after.windows(2).any(|w| w == [0x6a, 20])
            || after.windows(3).any(|w| w[0] == 0xc1 && (0xe0..0xe8).contains(&w[1]) && w[2] == 20);
        if compares && shifts {
            recognised = Some(false);
            if sets_flag_behind_size(after) {
                return Some(true);
            }
        }
    }
    recognised
}

/// `mov byte [base+N], 1` and `mov [base+N-8], r`, with offsets of one byte.
fn sets_flag_behind_size(code: &[u8]) -> bool {
    code.windows(4).any(|w| match *w {
        [0xc6, modrm @ 0x40..=0x47, flag, 1] if modrm != 0x44 && flag >= 8 => {
            let base = modrm & 7;
            code.windows(3).any(|w| w[0] == 0x89 && w[1] >> 6 == 1 && w[1] & 7 == base && w[2] == flag - 8)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::volume::tests::flash;
    use super::*;
    use proptest::prelude::*;

    fn examined(flash: &[u8], package: Option<&str>) -> Option<(String, Option<bool>, String)> {
        let found = examine(&Image::new(flash)?, package)?;
        Some((found.era, found.fw_cfg_override, found.because))
    }

    /// PEI's volume, with these texts in it.
    fn pei(texts: &[&[u8]]) -> Vec<u8> {
        let mut pei = vec![0xff; 0x400];
        for text in texts {
            pei.extend_from_slice(text);
            pei.extend_from_slice(&[0; 3]);
        }
        pei
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).chain([0, 0]).collect()
    }

    #[test]
    fn each_marker_begins_its_era() {
        let ladder = EARLY.iter().chain(&ANYWHERE);
        for (era, marker) in ladder {
            // What runs early has the markers of all eras up to this one.
            let early: Vec<&[u8]> = EARLY.iter().filter(|(e, _)| e <= era).map(|(_, m)| *m).collect();
            let mut content = pei(&early);
            content.extend_from_slice(marker);
            let found = examined(&flash(&content, b""), None).map(|(era, _, because)| (era, because));
            assert_eq!(found, Some(((*era).to_owned(), "markers in the image".to_owned())));
        }
    }

    #[test]
    fn versions_are_believed_unless_the_markers_contradict() {
        let old: &[&[u8]] = &[WINDOW, b"etc/hardware-info"];
        let dynamic: &[&[u8]] = &[WINDOW, b"etc/hardware-info", b"AuthenticAMD"];
        let named = utf16("2022.11-6+deb12u2");
        let wrong = utf16("2025.02-8");
        let not_a_version = utf16("202211 is a month");
        for (texts, string, package, era, because) in [
            (dynamic, Some(&named), None, "202211", "version in the image: 2022.11-6+deb12u2"),
            (dynamic, None, Some("2022.11-6"), "202211", "package 2022.11-6"),
            (dynamic, Some(&wrong), Some("2022.11-6"), "202211", "package 2022.11-6"),
            (dynamic, Some(&not_a_version), None, "202211", "markers in the image"),
            // A newer file lies where the package put an older one, or the other way round.
            (dynamic, None, Some("2020.11-2"), "202211", "markers in the image"),
            (old, None, Some("2022.11-6"), "202208", "markers in the image"),
            (old, None, Some("local build"), "202208", "markers in the image"),
        ] {
            let string = string.cloned().unwrap_or_default();
            let texts: Vec<&[u8]> = texts.iter().copied().chain([string.as_slice()]).collect();
            let (found, _, why) = examined(&flash(&pei(&texts), b""), package).expect("an OVMF");
            assert_eq!((found.as_str(), why.as_str()), (era, because));
        }
    }

    #[test]
    fn a_build_without_pei_shows_its_markers_in_the_open() {
        let open: Vec<u8> = pei(&[WINDOW, b"etc/hardware-info", b"AuthenticAMD"]);
        let (era, ..) = examined(&flash(b"nothing", &open), None).expect("an OVMF");
        assert_eq!(era, "202211");
        assert_eq!(examined(&flash(b"nothing", b"nothing"), None), None);
    }

    #[test]
    fn the_build_without_large_page_tables_is_recognised() {
        let image = flash(&pei(&[WINDOW, &AMD_SEV]), b"");
        let found = examine(&Image::new(&image).expect("a volume"), None).expect("an OVMF");
        assert_eq!(found.gib_page_tables, Some(false));
    }

    #[test]
    fn the_override_shows_in_the_code() {
        // cmp eax, 0x1000000; ja; shl rax, 20; …
        let limit = [0x3d, 0, 0, 0, 1, 0x77, 0x18, 0x48, 0xc1, 0xe0, 0x14];
        let flag = [0xc6, 0x43, 0x72, 0x01];
        let size = [0x48, 0x89, 0x43, 0x6a];
        let elsewhere = [0x48, 0x89, 0x43, 0x60];
        let push = [0x81, 0xf9, 0, 0, 0, 1, 0x77, 0x13, 0x50, 0x6a, 0x14];
        for (code, expected) in [
            ([&[0x90][..], &limit, &flag, &size].concat(), Some(true)),
            ([&[0x90][..], &limit, &size].concat(), Some(false)),
            ([&[0x90][..], &limit, &flag, &elsewhere].concat(), Some(false)),
            (push.to_vec(), Some(false)),
            ([&push[..], &flag, &[0x89, 0x43, 0x6a], &[0x89, 0x53, 0x6e]].concat(), Some(true)),
            ([&[0x90, 0x3d, 0, 0, 0, 1][..], &flag, &size].concat(), None),
            (vec![0, 0, 0, 1], None),
            (vec![], None),
        ] {
            assert_eq!(override_in_code(&code), expected, "{code:x?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_file_is_examined_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0usize..2000) {
            if bytes.len() > 44 {
                bytes[40..44].copy_from_slice(b"_FVH");
            }
            let _ = examined(&bytes, Some("2022.11"));
            let whole = flash(&pei(&[WINDOW, b"AuthenticAMD"]), &bytes);
            let _ = examined(&whole[..cut.min(whole.len())], None);
        }
    }
}
