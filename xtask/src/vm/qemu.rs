//! Debian's stock kernel emulated by QEMU, for what needs PCI: emulated NVMe SSDs, hotplug, VFIO, vhost-user.
//!
//! The host's root and the kernel's modules reach the machine by 9p. All
//! instructions are translated (no KVM), so allow four times the time of
//! [`super::uml`]; one CPU boots twice as fast as two.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cache::{self, BuildFolder};
use super::control::Control;
use super::{RunOptions, ensure_packages};
use crate::setup::{self, Group};
use crate::steps;

const INIT: &str = include_str!("../../vm/init-qemu");
const PREFIX: &str = "linux-qemu";
/// Depends on the newest build of the kernel the User-Mode-Linux source is of.
const META_PACKAGE: &str = "linux-image-6.12-amd64";
/// Raised when what is put into an entry of the cache changes.
const LAYOUT: &str = "1";
const QEMU: &str = "qemu-system-x86_64";
const RUN_PROGRAMS: &[&str] = &[QEMU, "timeout"];

/// Modules the machine needs before it sees its root.
const BOOT_MODULES: &[&str] = &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];
/// Modules that can be loaded later; with their dependencies and all of crypto.
const MODULES: &[&str] = &[
    "9p",
    "9pnet_virtio",
    "af_packet",
    "bonding",
    "brd",
    "bridge",
    "configfs",
    "crc32c_generic",
    "crc_t10dif",
    "dm_delay",
    "dm_flakey",
    "dm_mod",
    "dummy",
    "ext4",
    "ib_umad",
    "ib_uverbs",
    "ip6_udp_tunnel",
    "ip_tables",
    "iptable_filter",
    "ipv6",
    "libcrc32c",
    "loop",
    "macvlan",
    "nbd",
    "nf_tables",
    "null_blk",
    "nvme",
    "nvme_auth",
    "nvme_loop",
    "nvme_rdma",
    "nvme_tcp",
    "nvmet",
    "nvmet_rdma",
    "nvmet_tcp",
    "overlay",
    "rdma_cm",
    "rdma_rxe",
    "rdma_ucm",
    "sch_netem",
    "scsi_debug",
    "siw",
    "tls",
    "tun",
    "ublk_drv",
    "uio_pci_generic",
    "vduse",
    "veth",
    "vfio_iommu_type1",
    "vfio_pci",
    "vhost_net",
    "virtio_blk",
    "virtio_console",
    "virtio_iommu",
    "virtio_net",
    "virtio_pci",
    "vrf",
    "xfs",
];
const CRYPTO_FOLDERS: &[&str] = &["kernel/crypto", "kernel/arch/x86/crypto"];

/// q35 without what a test never uses; microvm was rejected, it hangs every second boot.
const MACHINE: &str = "q35,sata=off,smbus=off,usb=off,vmport=off,i8042=off,hpet=off,graphics=off";
/// All TCG can do, less what costs translation time on every access.
const CPU: &str = "max,-la57,-erms,-fsrm,-smap,-smep,-umip,-pku";
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 oops=panic nokaslr mitigations=off tsc=reliable \
    no_timer_check rcupdate.rcu_expedited=1 cryptomgr.notests audit=0 apparmor=0 nowatchdog init_on_alloc=0 \
    hardened_usercopy=off randomize_kstack_offset=off";

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// What a kernel image may be compressed with: magic, and the program that decompresses one stream of it.
const COMPRESSIONS: &[(&[u8], &str, &[&str])] = &[
    (b"\xfd7zXZ\0", "xz", &["--decompress", "--stdout", "--single-stream"]),
    (b"\x28\xb5\x2f\xfd", "zstd", &["--decompress", "--stdout"]),
];

/// Fetches the kernel and makes its initial file system, unless they are in the cache.
pub fn build() -> Result<PathBuf> {
    setup::ensure(&[Group::Base, Group::Vm, Group::VmQemu])?;
    let folder = cache::folder()?;
    let package = kernel_package()?;
    let entry =
        folder.join(format!("{PREFIX}-{}-{}", package.trim_start_matches("linux-image-"), layout_hash()));
    if entry.is_dir() {
        return Ok(entry);
    }
    eprintln!("vm: making {}; this takes a minute, once", entry.display());
    let build = BuildFolder::create(&folder)?;
    let (root, made) = (build.path.join("root"), build.path.join("made"));
    fs::create_dir(&made)?;
    fetch(&build.path, &package, &root)?;
    let version = only_entry(&root.join("lib/modules"))?;
    let image =
        fs::read(root.join(format!("boot/vmlinuz-{version}"))).context("the package's kernel image")?;
    fs::write(made.join("vmlinux"), decompressed(&image, &build.path)?)?;
    copy_modules(&root, &made.join("modules"), &version)?;
    make_initrd(&build.path.join("initrd"), &made, &version)?;
    fs::rename(&made, &entry).with_context(|| format!("cannot create {}", entry.display()))?;
    Ok(entry)
}

/// Runs a command under the kernel and returns its exit code.
pub fn run(options: &RunOptions) -> Result<i32> {
    let entry = match cache::newest(&cache::folder()?, PREFIX, &layout_hash())? {
        Some(entry) => entry,
        None => build()?,
    };
    ensure_packages(Group::VmQemu, RUN_PROGRAMS)?;
    let control = Control::create("qemu", Some("/dev/hvc0"), &options.command)?;
    let shared = control.folder.display();
    let mut machine = Command::new(QEMU);
    machine.args(["-M", MACHINE, "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU]);
    machine.args(["-smp", &options.cpus.to_string(), "-m", &options.memory]);
    machine.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    machine.arg("-kernel").arg(entry.join("vmlinux")).arg("-initrd").arg(entry.join("initrd.img"));
    machine.args(["-append", &format!("{KERNEL_ARGUMENTS} {}", options.kernel_arg.join(" "))]);
    machine.args(["-serial", &format!("file:{shared}/console"), "-device", "virtio-serial-pci"]);
    machine.args(["-chardev", "stdio,id=output,signal=off", "-device", "virtconsole,chardev=output"]);
    // QMP is reachable from inside, so that a script in the machine can plug and unplug devices.
    machine.args(["-chardev", &format!("socket,id=qmp,path={shared}/qmp,server=on,wait=off")]);
    machine.args(["-mon", "chardev=qmp,mode=control", "-chardev"]);
    machine.arg(format!("socket,id=port,path={shared}/qmp"));
    machine.args(["-device", "virtserialport,chardev=port,name=qmp"]);
    share(&mut machine, "root", Path::new("/"), ",readonly=on,multidevs=remap");
    share(&mut machine, "modules", &entry.join("modules/lib/modules"), ",readonly=on");
    share(&mut machine, "control", &control.folder, "");
    machine.args(&options.qemu_arg);
    control.run(options.timeout, &machine, "console", options.keep.as_deref())
}

/// Lends a folder of the host to the machine by 9p.
fn share(machine: &mut Command, tag: &str, folder: &Path, more: &str) {
    let path = folder.display();
    machine.args(["-fsdev", &format!("local,id={tag},path={path},security_model=none{more}")]);
    machine.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}

/// The package with the kernel itself, which the meta package depends on.
fn kernel_package() -> Result<String> {
    let text = steps::output_of(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    dependency_in(&text).with_context(|| format!("{META_PACKAGE} depends on no kernel; try `apt-get update`"))
}

fn dependency_in(text: &str) -> Option<String> {
    let dependencies = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    dependencies.map(str::to_owned).find(|name| name.starts_with("linux-image-"))
}

/// Downloads a package and unpacks it, without installing it: the host does not boot this kernel.
fn fetch(folder: &Path, package: &str, root: &Path) -> Result<()> {
    let mut download = Command::new("apt-get");
    download.args(["download", "--quiet", package]).current_dir(folder).stdout(std::io::stderr());
    steps::must(&mut download)?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let archive = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).find(is_package);
    let archive = archive.context("apt-get download left no package")?;
    steps::must(Command::new("dpkg").arg("--extract").arg(archive).arg(root))?;
    // Newer packages have usr/lib only, while modprobe looks in lib.
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    Ok(())
}

fn only_entry(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("folder {}", folder.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", folder.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// The kernel inside a compressed image: unpacking it here is quicker than having the emulator do it.
fn decompressed(image: &[u8], folder: &Path) -> Result<Vec<u8>> {
    let part = folder.join("part");
    for (magic, program, arguments) in COMPRESSIONS {
        for at in (0..image.len()).filter(|at| image[*at..].starts_with(magic)) {
            fs::write(&part, &image[at..])?;
            let output = Command::new(program)
                .args(*arguments)
                .stdin(File::open(&part)?)
                .stderr(Stdio::null())
                .output()
                .with_context(|| format!("cannot start {program}"))?;
            // The exit code tells nothing: what follows the stream is not compressed.
            if output.stdout.starts_with(ELF_MAGIC) {
                return Ok(output.stdout);
            }
        }
    }
    bail!("no kernel found in the image: its compression is not known here")
}

/// Copies the wanted modules and their dependencies, decompressed, and indexes them.
fn copy_modules(root: &Path, to: &Path, version: &str) -> Result<()> {
    steps::must(Command::new("depmod").arg("--basedir").arg(root).arg(version))?;
    let from = fs::canonicalize(root.join("lib/modules").join(version))?;
    let target = to.join("lib/modules").join(version);
    fs::create_dir_all(&target)?;
    for index in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(from.join(index), target.join(index)).with_context(|| format!("the package's {index}"))?;
    }
    let mut names: Vec<String> = MODULES.iter().map(|name| (*name).to_owned()).collect();
    for folder in CRYPTO_FOLDERS {
        names.extend(module_names(&from.join(folder))?);
    }
    for file in files_of(root, version, &names)? {
        let file = fs::canonicalize(&file).with_context(|| format!("module {}", file.display()))?;
        copy_module(&file, &target.join(file.strip_prefix(&from)?))?;
    }
    steps::must(Command::new("depmod").arg("--basedir").arg(to).arg(version))
}

fn copy_module(file: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target.parent().context("a module has a folder")?)?;
    if file.extension().is_none_or(|extension| extension != "xz") {
        fs::copy(file, target)?;
        return Ok(());
    }
    let output = File::create(target.with_extension(""))?;
    steps::must(Command::new("xz").args(["--decompress", "--stdout"]).arg(file).stdout(output))
}

/// Names of all modules below a folder.
fn module_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("folder {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            names.extend(module_names(&entry.path())?);
        } else if let Some((name, _)) = name.split_once(".ko") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Files of these modules and all they depend on, in load order. A module that is built in, or unknown, has none.
fn files_of(root: &Path, version: &str, names: &[String]) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for name in names {
        let output = Command::new("modprobe")
            .arg("--dirname")
            .arg(root)
            .args(["--set-version", version, "--show-depends", name])
            .stderr(Stdio::null())
            .output()
            .context("cannot start modprobe")?;
        for file in String::from_utf8_lossy(&output.stdout).lines().filter_map(insmod_file) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// The file in a line `insmod FILE [PARAMETERS]` of modprobe.
fn insmod_file(line: &str) -> Option<PathBuf> {
    line.strip_prefix("insmod ")?.split_whitespace().next().map(PathBuf::from)
}

/// Packs busybox, the boot modules and the init.
fn make_initrd(folder: &Path, made: &Path, version: &str) -> Result<()> {
    fs::create_dir_all(folder.join("bin"))?;
    fs::create_dir_all(folder.join("modules"))?;
    fs::copy("/bin/busybox", folder.join("bin/busybox")).context("busybox")?;
    let init = folder.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let names: Vec<String> = BOOT_MODULES.iter().map(|name| (*name).to_owned()).collect();
    let mut order = String::new();
    for file in files_of(&made.join("modules"), version, &names)? {
        let name = file.file_name().context("a module has a name")?.to_string_lossy().into_owned();
        fs::copy(&file, folder.join("modules").join(&name))?;
        order += &format!("{name}\n");
    }
    fs::write(folder.join("modules/order"), order)?;
    let mut find = Command::new("find").arg(".").current_dir(folder).stdout(Stdio::piped()).spawn()?;
    let mut pack = Command::new("cpio");
    pack.args(["--create", "--format=newc", "--owner=0:0", "--quiet"]).current_dir(folder);
    pack.stdin(find.stdout.take().context("find has an output")?)
        .stdout(File::create(made.join("initrd.img"))?);
    steps::must(&mut pack)?;
    if find.wait()?.success() { Ok(()) } else { bail!("cannot list {}", folder.display()) }
}

fn layout_hash() -> String {
    let mut inputs = vec![LAYOUT, INIT];
    inputs.extend(BOOT_MODULES);
    inputs.extend(MODULES);
    cache::hash_of(&inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_package_is_the_meta_packages_dependency() {
        let text = "linux-image-6.12-amd64\n  Depends: linux-image-6.12.117+deb12-amd64\n";
        assert_eq!(dependency_in(text).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(dependency_in("linux-image-6.12-amd64\n"), None);
    }

    #[test]
    fn module_files_are_read_from_insmod_lines_only() {
        assert_eq!(insmod_file("insmod /m/a.ko.xz p=1"), Some(PathBuf::from("/m/a.ko.xz")));
        assert_eq!(insmod_file("builtin a"), None);
    }

    #[test]
    fn an_image_without_a_kernel_is_refused() {
        let folder = std::env::temp_dir();
        assert!(decompressed(b"no kernel here", &folder).is_err());
    }

    #[test]
    fn modules_are_listed_once_and_in_order() {
        assert!(MODULES.is_sorted_by(|a, b| a < b));
    }
}
