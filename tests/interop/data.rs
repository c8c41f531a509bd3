//! Data: file systems, verification, commands beyond read and write.

use std::path::Path;

use serde_json::json;

use crate::kernel::{NQN, connect, device, finish, sh, target, try_sh};

/// Writes random blocks over so much of a device, and reads them back.
#[track_caller]
pub fn verify(device: &Path, size: &str) {
    sh(&format!(
        "fio --name=verify --filename={} --size={size} --direct=1 --ioengine=psync --rw=randwrite --bs=4k --verify=crc32c --verify_fatal=1 2>&1",
        device.display()
    ));
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_file_system_survives_a_remount() {
    let host = target("");
    connect("");
    let device = device(1).display().to_string();
    sh(&format!("mkfs.ext4 -q {device} && mkdir -p /mnt/t && mount {device} /mnt/t"));
    let job = "--name=f --directory=/mnt/t --size=16M --rw=randwrite --bs=4k --ioengine=psync --verify=crc32c --verify_fatal=1";
    sh(&format!("fio {job} --fsync=64 2>&1"));
    sh("umount /mnt/t && nvme disconnect-all");
    connect("");
    let device = crate::kernel::device(1).display().to_string();
    sh(&format!("fsck.ext4 -fn {device} 2>&1"));
    sh(&format!("mount {device} /mnt/t"));
    sh(&format!("fio {job} --verify_only 2>&1"));
    sh("fstrim -v /mnt/t; umount /mnt/t");
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn every_size_and_direction_arrives_whole() {
    let host = target("");
    connect("");
    let device = device(1);
    for (bs, extra) in [
        ("512", ""),
        ("4k", ""),
        ("8k", ""),
        ("128k", ""),
        ("1M", ""),
        ("512-64k", "--bsrange=512-64k --bs_unaligned=0"),
    ] {
        let bs = if extra.is_empty() { format!("--bs={bs}") } else { extra.to_owned() };
        sh(&format!(
            "fio --name=s --filename={} --size=16M --direct=1 --ioengine=psync --rw=randwrite {bs} --verify=crc32c --verify_fatal=1 --numjobs=1 2>&1",
            device.display()
        ));
    }
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn discard_write_zeroes_flush_and_compare_do_what_they_say() {
    let host = target("");
    connect("");
    let device = device(1).display().to_string();
    sh(&format!("dd if=/dev/urandom of={device} bs=1M count=2 oflag=direct status=none"));
    sh(&format!("nvme flush {device} -n 1"));
    sh(&format!("blkdiscard -o 0 -l 1048576 {device}"));
    sh(&format!("blkdiscard -z -o 1048576 -l 524288 {device}"));
    sh(&format!("cmp -n 524288 -i 1048576:0 {device} /dev/zero"));
    sh(&format!("dd if={device} of=/run/block bs=4096 count=1 skip=400 iflag=direct status=none"));
    sh(&format!("nvme compare {device} -s 3200 -c 7 -z 4096 -d /run/block"));
    sh("printf x | dd of=/run/block conv=notrunc bs=1 seek=77 status=none");
    let differs = try_sh(&format!("nvme compare {device} -s 3200 -c 7 -z 4096 -d /run/block 2>&1"));
    assert!(differs.is_err_and(|text| text.to_lowercase().contains("compare")), "no miscompare");
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_read_only_namespace_refuses_writes() {
    let mut host = target("");
    host.ok("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 2048, "block_size": 4096 }));
    let namespace = json!({ "bdev_name": "m1", "nsid": 5, "read_only": true });
    host.ok("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": namespace }));
    connect("");
    let device = device(5).display().to_string();
    assert_eq!(sh(&format!("blockdev --getro {device}")).trim(), "1");
    assert_eq!(sh(&format!("blockdev --getss {device}")).trim(), "4096");
    sh(&format!("dd if={device} of=/dev/null bs=4096 count=8 iflag=direct status=none"));
    assert!(
        try_sh(&format!("dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct status=none")).is_err()
    );
    finish(host);
}
