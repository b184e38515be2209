//! The contents of a qcow2 container, as far as firmware uses it: Fedora ships OVMF that way.
//!
//! Format: QEMU `docs/interop/qcow2.txt`. Versions 2 and 3, without backing file, encryption, compression or any
//! other feature that changes what the tables mean; anything else is refused, not guessed at.

/// Offset bits of an entry in either table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;

/// Whether a file is a qcow2 container.
pub(super) fn is_qcow2(file: &[u8]) -> bool {
    file.starts_with(b"QFI\xfb")
}

/// The disk inside, if it is at most `limit` bytes; `None` for what is refused or broken.
pub(super) fn contents(file: &[u8], limit: u64) -> Option<Vec<u8>> {
    let version = be32(file, 4)?;
    let (backing, encryption) = (be64(file, 8)?, be32(file, 32)?);
    // Of the incompatible features only "dirty" leaves the tables as they are.
    let features = if version == 2 { 0 } else { be64(file, 72)? & !1 };
    let plain =
        is_qcow2(file) && matches!(version, 2 | 3) && backing == 0 && encryption == 0 && features == 0;
    let cluster_bits = be32(file, 20).filter(|bits| plain && (9..=21).contains(bits))?;
    let (size, tables) = (be64(file, 24).filter(|size| *size <= limit)?, be64(file, 40)?);
    let cluster = 1usize << cluster_bits;
    let entries = cluster / 8;

    let mut disk = vec![0; usize::try_from(size).ok()?];
    for (number, part) in disk.chunks_mut(cluster).enumerate() {
        let table = be64(file, index(tables, number / entries)?)? & OFFSET;
        if table == 0 {
            continue;
        }
        let entry = be64(file, index(table, number % entries)?)?;
        if entry & COMPRESSED != 0 {
            return None;
        }
        let start = usize::try_from(entry & OFFSET).ok()?;
        if start != 0 && entry & READS_AS_ZERO == 0 {
            part.copy_from_slice(file.get(start..start.checked_add(part.len())?)?);
        }
    }
    Some(disk)
}

/// Where an entry of a table is.
fn index(table: u64, entry: usize) -> Option<usize> {
    usize::try_from(table).ok()?.checked_add(entry.checked_mul(8)?)
}

fn be32(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(file.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn be64(file: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(file.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A container of 512-byte clusters: header, table of tables, one table, then the clusters given.
    fn container(size: u64, clusters: &[Option<&[u8]>]) -> Vec<u8> {
        let mut file = vec![0; 512 * 3];
        file[..4].copy_from_slice(b"QFI\xfb");
        file[4..8].copy_from_slice(&3u32.to_be_bytes());
        file[20..24].copy_from_slice(&9u32.to_be_bytes());
        file[24..32].copy_from_slice(&size.to_be_bytes());
        file[40..48].copy_from_slice(&512u64.to_be_bytes());
        file[512..520].copy_from_slice(&(1u64 << 63 | 1024).to_be_bytes());
        for (number, cluster) in clusters.iter().enumerate() {
            if let Some(content) = cluster {
                let entry = (1u64 << 63 | file.len() as u64).to_be_bytes();
                file[1024 + 8 * number..][..8].copy_from_slice(&entry);
                file.extend_from_slice(content);
                file.resize(file.len().next_multiple_of(512), 0);
            }
        }
        file
    }

    #[test]
    fn clusters_are_found_and_holes_are_zero() {
        let file = container(1100, &[Some(b"first"), None, Some(b"third")]);
        let disk = contents(&file, 4096).expect("a container");
        assert_eq!((disk.len(), &disk[..5], &disk[1024..1029]), (1100, &b"first"[..], &b"third"[..]));
        assert!(disk[512..1024].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_not_plain_is_refused() {
        let good = container(512, &[Some(b"x")]);
        assert_eq!(contents(&good, 511), None, "too large");
        for (at, value, why) in [
            (7, 4, "a version that does not exist"),
            (15, 1, "a backing file"),
            (35, 1, "encryption"),
            (79, 1 << 4, "extended tables"),
            (23, 40, "absurd clusters"),
            (1024, 0xc0, "a compressed cluster"),
            (1028, 0xff, "a cluster behind the end of the file"),
            (0, 0, "no container"),
        ] {
            let mut file = good.clone();
            file[at] = value;
            assert_eq!(contents(&file, 4096), None, "{why}");
        }
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(spoil in proptest::collection::vec((0usize..2048, any::<u8>()), 0..6), cut in 0usize..2048) {
            let mut file = container(1024, &[Some(b"one"), Some(b"two")]);
            for (at, value) in spoil {
                if let Some(byte) = file.get_mut(at) {
                    *byte = value;
                }
            }
            file.truncate(cut);
            prop_assert!(contents(&file, 1 << 20).is_none_or(|disk| disk.len() <= 1 << 20));
        }
    }
}
