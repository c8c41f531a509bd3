//! Arrays on files, created by a host that is killed: the next host finds no array,
//! a whole one, or one that the operator can end, whatever the moment.
//!
//! The moment is chosen by a seed, within the time a create takes that is left
//! alone. `TENON_TEST_SEED` chooses other moments, `TENON_TEST_ROUNDS` how many.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenon_tests::{Host, Scratch, number};

/// Times a host is killed while it creates an array: each level twice.
const ROUNDS: u64 = 10;
const MEMBERS: usize = 3;
/// Level, strip in KiB, and whether it keeps a bitmap.
const LEVELS: [(&str, u32, bool); 5] = [
    ("raid5", 4, true),
    ("raid1", 0, true),
    ("raid5f", 4, false),
    ("raid0", 64, false),
    ("concat", 64, false),
];

/// What the next host may find.
#[derive(Debug, Default)]
struct Found {
    none: u32,
    whole: u32,
    /// The superblock is not on all members.
    partial: u32,
}

fn member_files(scratch: &Scratch) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = (0..MEMBERS).map(|nth| scratch.join(&format!("member{nth}.img"))).collect();
    for file in &files {
        File::create(file).unwrap().set_len(4 << 20).unwrap();
    }
    files
}

fn config_of(files: &[PathBuf]) -> String {
    let table = |(nth, file): (usize, &PathBuf)| {
        format!(
            "[[bdev]]\nmodule = \"uring\"\nname = \"f{nth}\"\nblock_size = 512\nfilename = {:?}\n\
             uuid = \"00000000-0000-4000-8000-00000000000{nth}\"\n",
            file.to_str().unwrap()
        )
    };
    let devices: String = files.iter().enumerate().map(table).collect();
    format!("[[module]]\nname = \"raid\"\n{devices}")
}

/// Sequence number of the superblock in a file, if it carries one.
fn superblock(file: &Path) -> Option<u64> {
    let mut block = [0u8; 512];
    File::open(file).unwrap().read_exact(&mut block).unwrap();
    let seq = u64::from_le_bytes(block[128..136].try_into().unwrap());
    block.starts_with(b"SPDKRAID").then_some(seq)
}

fn create_of((level, strip, bitmap): (&str, u32, bool)) -> Value {
    json!({ "name": "r0", "raid_level": level, "strip_size_kb": strip, "bitmap": bitmap,
        "base_bdevs": ["f0", "f1", "f2"], "superblock": true })
}

/// What a host finds on the members; ends it as an operator would.
fn judge(host: &mut Host, files: &[PathBuf], found: &mut Found, round: u64) {
    host.ok("bdev_wait_for_examine", json!({}));
    let arrays = host.ok("bdev_raid_get_bdevs", json!({ "category": "all" }));
    let superblocks: Vec<Option<u64>> = files.iter().map(|file| superblock(file)).collect();
    match arrays.as_array().unwrap().as_slice() {
        [] => {
            assert_eq!(superblocks, [None; MEMBERS], "round {round}: an array was overlooked");
            found.none += 1;
            return;
        }
        [array] if array["state"] == "online" => {
            assert!(superblocks.iter().all(|one| one.is_some() && *one == superblocks[0]), "{superblocks:?}");
            assert_eq!(array["num_base_bdevs_operational"], MEMBERS, "round {round}: {array}");
            assert_eq!(host.ok("bdev_get_bdevs", json!({ "name": "r0" }))[0]["state"], "ready");
            found.whole += 1;
        }
        [array] => {
            assert_eq!(array["state"], "configuring", "round {round}: {array}");
            assert!(superblocks.contains(&None), "round {round}: all are there: {superblocks:?} {array}");
            found.partial += 1;
        }
        several => panic!("round {round}: {several:?}"),
    }
    host.ok("bdev_raid_destroy", json!({ "name": "r0", "wipe": true }));
    assert!(files.iter().all(|file| superblock(file).is_none()), "round {round}: not wiped");
}

/// How long a create takes that nobody disturbs.
fn undisturbed(host: &mut Host, level: (&str, u32, bool)) -> Duration {
    let begin = Instant::now();
    assert_eq!(host.ok("bdev_raid_create", create_of(level)), true, "{level:?}");
    let taken = begin.elapsed();
    host.ok("bdev_raid_destroy", json!({ "name": "r0", "wipe": true }));
    taken
}

#[test]
fn s4_h_a_host_that_is_killed_while_it_creates_an_array_leaves_none_or_a_whole_one_or_one_to_end() {
    let rounds = number("TENON_TEST_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("TENON_TEST_SEED").unwrap_or(0x5a1d);
    let mut scratch = Scratch::new();
    let files = member_files(&scratch);
    let config = config_of(&files);
    let mut found = Found::default();
    for round in 0..rounds {
        let level = LEVELS[(round % LEVELS.len() as u64) as usize];
        let mut host = Host::start_in(scratch, &config, &[]);
        let all = undisturbed(&mut host, level);
        let mut client = host.connect();
        client.send("bdev_raid_create", create_of(level));
        // Also a moment after the create, since the next one may be slower.
        let share = ((seed + round).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % 1200;
        let moment = Instant::now() + all.mul_f64(share as f64 / 1000.0);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        scratch = host.kill();
        let mut next = Host::start_in(scratch, &config, &[]);
        judge(&mut next, &files, &mut found, round);
        // What was killed can be repeated.
        let _ = undisturbed(&mut next, level);
        scratch = next.kill();
    }
    println!("{found:?}");
    assert!(found.none > 0 && found.whole + found.partial > 0, "all moments were alike: {found:?}");
}

#[test]
fn s4_j_a_create_takes_over_the_array_that_its_members_brought_up_before() {
    let scratch = Scratch::new();
    let files = member_files(&scratch);
    let mut host = Host::start_in(scratch, &config_of(&files), &[]);
    assert_eq!(host.ok("bdev_raid_create", create_of(LEVELS[1])), true);
    let mut host = Host::start_in(host.kill(), &config_of(&files), &[]);
    host.ok("bdev_wait_for_examine", json!({}));
    assert!(host.bdevs().iter().any(|name| name == "r0"));
    let other = host.err("bdev_raid_create", create_of(LEVELS[4]));
    assert_eq!((other.code, &other.data["object"]), (-17, &json!("r0")));
    assert_eq!(host.ok("bdev_raid_create", create_of(LEVELS[1])), true);
    let again = host.err("bdev_raid_create", create_of(LEVELS[1]));
    assert_eq!((again.code, &again.data["object"]), (-17, &json!("r0")));
    let config = host.ok("framework_get_config", json!({ "name": "bdev" }));
    assert_eq!(config.to_string().matches("bdev_raid_create").count(), 1, "{config}");
    host.ok("bdev_raid_delete", json!({ "name": "r0" }));
    host.stop();
}
