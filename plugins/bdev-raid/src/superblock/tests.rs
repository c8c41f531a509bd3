//! The format against images that a second, independent builder makes from the
//! field table with a bitwise checksum, and against arbitrary bytes.

use proptest::prelude::*;

use super::*;

/// Bit by bit, register from 0, no inversion.
fn crc_bitwise(bytes: &[u8]) -> u32 {
    let mut register = 0u32;
    for byte in bytes {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = if register & 1 == 1 { (register >> 1) ^ 0x82f6_3b78 } else { register >> 1 };
        }
    }
    register
}

/// An image of a raid1 of two from the field table.
fn image(seq: u64, states: [u32; 2]) -> Vec<u8> {
    let mut image = Vec::new();
    image.extend(b"SPDKRAID");
    image.extend([1, 0, 0, 0]);
    image.extend(384u32.to_le_bytes());
    image.extend([0; 4]); // crc
    image.extend([0; 4]); // flags
    image.extend((0..16).map(|n| 0xa0 + n));
    image.extend(b"Raid1");
    image.extend([0; 59]);
    image.extend(63488u64.to_le_bytes());
    image.extend(512u32.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    image.extend(0u32.to_le_bytes());
    image.extend(0u32.to_le_bytes());
    image.extend(seq.to_le_bytes());
    image.push(2);
    image.extend([0; 118]);
    image.push(2);
    assert_eq!(image.len(), 256);
    for (slot, state) in states.into_iter().enumerate() {
        image.extend([0x10 + slot as u8; 16]);
        image.extend(2048u64.to_le_bytes());
        image.extend(63488u64.to_le_bytes());
        image.extend(state.to_le_bytes());
        image.extend(0u32.to_le_bytes());
        image.push(slot as u8);
        image.extend([0; 23]);
    }
    let crc = crc_bitwise(&image);
    image[16..20].copy_from_slice(&crc.to_le_bytes());
    image
}

fn sealed(mut image: Vec<u8>) -> Vec<u8> {
    image[16..20].fill(0);
    let crc = crc_bitwise(&image);
    image[16..20].copy_from_slice(&crc.to_le_bytes());
    image
}

#[test]
fn a_golden_image_is_read_and_written_byte_for_byte() {
    let image = image(7, [1, 2]);
    let superblock = Superblock::parse(&image).unwrap();
    assert_eq!((superblock.name.as_str(), superblock.seq_number), ("Raid1", 7));
    assert_eq!((superblock.level, superblock.strip_size, superblock.block_size), (1, 0, 512));
    assert_eq!((superblock.raid_size, superblock.num_base_bdevs), (63488, 2));
    let second = superblock.slot(1).unwrap();
    assert_eq!((second.data_offset, second.data_size, second.state), (2048, 63488, EntryState::FAILED));
    assert!(superblock.member(&[0x10; 16]).unwrap().is_configured());
    assert_eq!(superblock.encode(), image);
}

#[test]
fn bytes_behind_the_length_do_not_count() {
    let mut device = image(1, [1, 1]);
    device.resize(4096, 0xee);
    assert_eq!(Superblock::parse(&device).unwrap().encode(), image(1, [1, 1]));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = image(1, [1, 1]);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::parse(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn a_torn_superblock_is_noticed() {
    let (old, new) = (image(1, [1, 1]), image(2, [1, 0]));
    for cut in 129..old.len() {
        let torn: Vec<u8> = new[..cut].iter().chain(&old[cut..]).copied().collect();
        if torn != new {
            assert!(Superblock::parse(&torn).is_err(), "cut at {cut}");
        }
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Vec<u8>), expected: SuperblockError) {
    let mut image = image(1, [1, 1]);
    change(&mut image);
    assert_eq!(Superblock::parse(&sealed(image)), Err(expected));
}

#[test]
fn what_cannot_be_used_says_why() {
    check(|image| image[0] = b'X', SuperblockError::NotOurs);
    check(|image| image[8] = 2, SuperblockError::Features { flags: 0 });
    check(|image| image[8] = 3, SuperblockError::Version { major: 3, minor: 0 });
    check(|image| (image[8], image[20]) = (2, 4), SuperblockError::Features { flags: 4 });
    check(|image| image[20] = 1, SuperblockError::Features { flags: 1 });
    check(|image| image[256 + 36] = 4, SuperblockError::Features { flags: 4 });
    check(|image| image[255] = 3, SuperblockError::Length { length: 384, entries: 3 });
    check(|image| image[12..16].fill(0), SuperblockError::Length { length: 0, entries: 2 });
    check(|image| image[136] = 0, SuperblockError::Field { field: "num_base_bdevs", value: 0 });
    check(|image| image[113] = 0, SuperblockError::Field { field: "block_size", value: 0 });
    check(|image| image[256 + 64 + 40] = 0, SuperblockError::Field { field: "slot", value: 0 });
    check(|image| image[256 + 40] = 9, SuperblockError::Field { field: "slot", value: 9 });
    check(|image| image[40] = 0, SuperblockError::Field { field: "name", value: 0 });
    check(|image| image[256 + 16..256 + 24].fill(0xff), {
        SuperblockError::Field { field: "data_size", value: 63488 }
    });
}

#[test]
fn a_superblock_with_features_is_one_that_readers_of_the_first_version_refuse() {
    let mut superblock = Superblock::parse(&image(1, [1, 1])).unwrap();
    assert_eq!(superblock.encode()[8..12], [1, 0, 0, 0]);
    superblock.features = Features::BITMAP;
    let bytes = superblock.encode();
    assert_eq!((&bytes[8..12], &bytes[20..24]), (&[2, 0, 0, 0][..], &[1, 0, 0, 0][..]));
    assert_eq!(Superblock::parse(&bytes).unwrap(), superblock);
}

#[test]
fn a_higher_minor_version_is_read() {
    let mut image = image(1, [1, 1]);
    image[10] = 3;
    assert!(Superblock::parse(&sealed(image)).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let _ = Superblock::parse(&bytes);
    }

    #[test]
    fn arbitrary_fields_under_a_right_checksum_never_panic(
        edits in prop::collection::vec((8usize..384, any::<u8>()), 0..24)
    ) {
        let mut image = image(1, [1, 1]);
        for (at, value) in edits {
            image[at] = value;
        }
        if let Ok(superblock) = Superblock::parse(&sealed(image)) {
            let again = superblock.encode();
            prop_assert_eq!(Superblock::parse(&again).unwrap(), superblock);
        }
    }

    #[test]
    fn what_is_built_is_read(
        name in "[a-z0-9_.]{1,63}",
        seq in any::<u64>(),
        count in 1u8..=255,
        size in 0u64..1 << 60,
    ) {
        let entry = |slot: u8| Entry {
            uuid: [slot; 16],
            data_offset: 2048,
            data_size: size,
            state: EntryState(u32::from(slot) % 4),
            slot,
        };
        let superblock = Superblock {
            features: if size % 2 == 0 { Features::NONE } else { Features::BITMAP.union(Features::JOURNAL) },
            uuid: [9; 16],
            name,
            raid_size: size,
            block_size: 4096,
            level: 95,
            strip_size: 16,
            seq_number: seq,
            num_base_bdevs: count,
            members: (0..count).map(entry).collect(),
        };
        let bytes = superblock.encode();
        prop_assert!(bytes.len() <= MAX_LENGTH);
        prop_assert_eq!(Superblock::parse(&bytes).unwrap(), superblock);
    }
}

/// Images of a script of its own, `tests/golden.py`, which knows the field table only.
#[test]
fn images_of_an_independent_script_are_read_and_written_byte_for_byte() {
    let directory = std::env::temp_dir().join(format!("tenon-raid-golden-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.py");
    let status = std::process::Command::new("python3").arg(script).arg(&directory).status().unwrap();
    assert!(status.success());
    let read = |title: &str| std::fs::read(directory.join(title)).unwrap();
    let parse = |title: &str| {
        let image = read(title);
        let superblock = Superblock::parse(&image).unwrap();
        assert_eq!(superblock.encode(), image, "{title}");
        superblock
    };
    let states =
        |superblock: &Superblock| superblock.members.iter().map(|entry| entry.state.0).collect::<Vec<_>>();
    let (raid0, degraded, raid5f) = (parse("raid0"), parse("raid1_degraded"), parse("raid5f"));
    assert_eq!((raid0.level, raid0.strip_size, raid0.raid_size), (0, 128, 126_976));
    assert_eq!((degraded.seq_number, states(&degraded)), (9, vec![1, 0]));
    assert_eq!((raid5f.level, states(&raid5f)), (95, vec![1, 1, 2]));
    assert_eq!(parse("concat").members[1].data_offset, 4096);
    assert_eq!(parse("raid1_with_bitmap").features, Features::BITMAP);
    assert_eq!(parse("largest").members.len(), 255);
    std::fs::remove_dir_all(directory).unwrap();
}
