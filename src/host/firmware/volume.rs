//! The inside of an OVMF image: what lies open in the flash, and the volumes that are compressed in it.
//!
//! Format: UEFI Platform Initialization specification, volume 3. The main volume holds one section that is guarded
//! by a GUID and compressed with LZMA ("alone" format): first PEI's volume, then DXE's. PEI's decides the window
//! and fits in the first MiB, so a look at it costs a tenth of unpacking everything.

use std::io::Read;

use lzma_rust2::LzmaReader;
use memchr::memmem;

/// EE4E5898-3914-4259-9D6E-DC7BD79403CF: section compressed with LZMA.
const LZMA_SECTION: [u8; 16] =
    guid(0xee4e5898, 0x3914, 0x4259, [0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf]);

/// Where a firmware volume has its signature, and what it is.
const SIGNATURE: (usize, &[u8]) = (40, b"_FVH");

/// The PEI volume comes first and is smaller than this.
const PEI: u64 = 1 << 20;
/// All builds seen unpack to 13 to 17 MiB; a bomb would not stop there.
const MOST: u64 = 64 << 20;
/// What unpacking may take, in KiB: the dictionary is as large as the output (up to 16 MiB in edk2's encoder).
const MEMORY_KIB: u32 = 96 << 10;

/// A GUID as it lies in memory.
pub(super) const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// An image that begins with a firmware volume.
pub(super) struct Image<'f> {
    flash: &'f [u8],
    packed: Option<&'f [u8]>,
    pei: Vec<u8>,
}

impl<'f> Image<'f> {
    /// The image in a file, with PEI's volume unpacked; `None` when it is no firmware volume.
    pub(super) fn new(flash: &'f [u8]) -> Option<Image<'f>> {
        let (at, signature) = SIGNATURE;
        if !flash.get(at..)?.starts_with(signature) {
            return None;
        }
        let packed = packed(flash);
        let pei = packed.map(|packed| unpack(packed, PEI)).unwrap_or_default();
        Some(Image { flash, packed, pei })
    }

    /// What decides the window: PEI's volume, or, in a build without PEI (Intel TDX), code that lies open in the flash.
    pub(super) fn early(&self) -> [&[u8]; 2] {
        [&self.pei, self.flash]
    }

    /// Everything that was compressed, PEI's volume included.
    pub(super) fn unpack(&self) -> Vec<u8> {
        self.packed.map(|packed| unpack(packed, MOST)).unwrap_or_default()
    }
}

/// The data of the first LZMA section.
fn packed(flash: &[u8]) -> Option<&[u8]> {
    memmem::find_iter(flash, &LZMA_SECTION).find_map(|at| {
        let (start, size) = section(flash, at)?;
        let offset = u16::from_le_bytes(flash.get(at + 16..at + 18)?.try_into().ok()?);
        flash.get(start.checked_add(usize::from(offset))?..start.checked_add(size)?)
    })
}

/// Start and size of the GUID-defined section whose GUID is at `at`. Sections of 16 MiB and more have a longer head.
fn section(flash: &[u8], at: usize) -> Option<(usize, usize)> {
    const GUID_DEFINED: u8 = 0x02;
    let short: [u8; 4] = flash.get(at.checked_sub(4)?..at)?.try_into().ok()?;
    if let [a, b, c, GUID_DEFINED] = short {
        return Some((at - 4, usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16));
    }
    let start = at.checked_sub(8)?;
    let long = flash.get(start..)?.starts_with(&[0xff, 0xff, 0xff, GUID_DEFINED]);
    long.then(|| usize::try_from(u32::from_le_bytes(short)).ok().map(|size| (start, size))).flatten()
}

/// Up to `limit` bytes of what unpacks; what is broken ends there.
fn unpack(packed: &[u8], limit: u64) -> Vec<u8> {
    let mut unpacked = Vec::new();
    if let Ok(reader) = LzmaReader::new_mem_limit(packed, MEMORY_KIB, None) {
        // An error leaves what came before it, and that is all there is to look at.
        let _ = reader.take(limit).read_to_end(&mut unpacked);
    }
    unpacked
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use lzma_rust2::{LzmaOptions, LzmaWriter};

    use super::*;

    /// A flash image: a firmware volume with `content` compressed in it, and `open` behind that.
    pub(in crate::host::firmware) fn flash(content: &[u8], open: &[u8]) -> Vec<u8> {
        let options = LzmaOptions::with_preset(1);
        let mut writer =
            LzmaWriter::new_use_header(Vec::new(), &options, Some(content.len() as u64)).expect("an encoder");
        writer.write_all(content).expect("in memory");
        let packed = writer.finish().expect("in memory");
        let mut flash = vec![0; 0x90];
        flash[40..44].copy_from_slice(b"_FVH");
        let size = u32::try_from(24 + packed.len()).expect("small").to_le_bytes();
        flash.extend_from_slice(&[size[0], size[1], size[2], 0x02]);
        flash.extend_from_slice(&LZMA_SECTION);
        flash.extend_from_slice(&[24, 0, 1, 0]);
        flash.extend_from_slice(&packed);
        flash.extend_from_slice(open);
        flash
    }

    #[test]
    fn guids_lie_in_memory_little_end_first() {
        assert_eq!(LZMA_SECTION[..8], [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42]);
    }

    #[test]
    fn a_volume_unpacks() {
        let content: Vec<u8> = (0..3u32 << 18).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let file = flash(&content, b"open");
        let image = Image::new(&file).expect("a volume");
        assert_eq!(image.early()[0], &content[..1 << 20]);
        assert_eq!(image.unpack(), content);
    }

    #[test]
    fn what_is_broken_ends_early() {
        let content: Vec<u8> =
            (0..60_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let file = flash(&content, b"");
        let short = &file[..file.len() / 2];
        // The section says that it goes on behind the end of the file.
        assert!(Image::new(short).expect("a volume").unpack().is_empty());
        assert!(Image::new(b"MZ").is_none());
        let mut spoiled = file.clone();
        spoiled[0x90 + 24] = 0xff;
        assert!(Image::new(&spoiled).expect("a volume").unpack().is_empty());
    }
}
