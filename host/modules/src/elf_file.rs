//! What can be told about a plugin from its ELF file alone: that it is a
//! complete shared library for this machine, and the bytes of its metadata
//! section. Nothing of it is mapped or run.
//!
//! Reads only headers, section names and the dynamic symbol table, since a
//! plugin with debug information may have tens of megabytes.

use std::io::{Cursor, Read, Seek, SeekFrom};

use elf::ElfStream;
use elf::abi::{EM_386, EM_AARCH64, EM_ARM, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64};
use elf::abi::{ET_CORE, ET_DYN, ET_EXEC, ET_REL, PT_LOAD, SHN_UNDEF, SHT_NOBITS};
use elf::endian::NativeEndian;
use elf::parse::ParseError;
use tenon_abi::{ENTRY_SYMBOL, METADATA_SECTION};

use crate::error::LoadError;
use crate::metadata::{MAX_SECTION_BYTES, Metadata};

/// Bytes of the ELF identification we look at.
const IDENT_LEN: usize = 20;
const CLASS_64: u8 = 2;
#[cfg(target_endian = "little")]
const HOST_DATA: u8 = 1;
#[cfg(target_endian = "big")]
const HOST_DATA: u8 = 2;

#[cfg(target_arch = "x86_64")]
const HOST_MACHINE: u16 = EM_X86_64;
#[cfg(target_arch = "aarch64")]
const HOST_MACHINE: u16 = EM_AARCH64;
#[cfg(target_arch = "riscv64")]
const HOST_MACHINE: u16 = EM_RISCV;

/// Checks that `reader` holds a complete shared library for this host with an entry symbol, and reads its
/// metadata. `reader` stands at its start.
pub(crate) fn read_metadata<R: Read + Seek>(mut reader: R) -> Result<Metadata, LoadError> {
    check_ident(&mut reader)?;
    let len = reader.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let mut file = ElfStream::<NativeEndian, R>::open_stream(reader).map_err(elf_fault)?;
    // The loader maps segments: a file cut short would kill the host with SIGBUS at the first missing page.
    for segment in file.segments().iter().filter(|segment| segment.p_type == PT_LOAD) {
        let end = segment.p_offset.checked_add(segment.p_filesz);
        if end.is_none_or(|end| end > len) {
            let detail = format!(
                "a segment ends at byte {}, the file at {len}",
                segment.p_offset.saturating_add(segment.p_filesz)
            );
            return Err(LoadError::Truncated { detail });
        }
    }
    let section = section_bytes(&mut file)?;
    let metadata = Metadata::parse(&section)?;
    if !exports_entry(&mut file)? {
        return Err(LoadError::NoEntrySymbol);
    }
    Ok(metadata)
}

/// Reads any bytes as a plugin file: what `cargo xtask fuzz` drives. Must return for every input.
pub fn fuzz_metadata(data: &[u8]) {
    let _ = read_metadata(Cursor::new(data));
    let _ = Metadata::parse(data);
}

/// The checks that tell a person most, before the library's generic ones.
fn check_ident<R: Read + Seek>(reader: &mut R) -> Result<(), LoadError> {
    let mut ident = [0_u8; IDENT_LEN];
    let mut got = 0;
    while got < IDENT_LEN {
        match reader.read(&mut ident[got..]).map_err(unreadable)? {
            0 => break,
            count => got += count,
        }
    }
    reader.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    if got < 4 || ident[..4] != *b"\x7fELF" {
        return Err(LoadError::NotElf { start: hexadecimal(&ident[..got.min(4)]) });
    }
    if got < IDENT_LEN {
        return Err(LoadError::Truncated { detail: format!("{got} bytes are less than an ELF header") });
    }
    if ident[4] != CLASS_64 {
        return Err(LoadError::Not64Bit);
    }
    if ident[5] != HOST_DATA {
        return Err(LoadError::WrongByteOrder);
    }
    let kind = u16::from_ne_bytes([ident[16], ident[17]]);
    let machine = u16::from_ne_bytes([ident[18], ident[19]]);
    if machine != HOST_MACHINE {
        return Err(LoadError::OtherArchitecture {
            found: architecture(machine),
            host: std::env::consts::ARCH,
        });
    }
    match kind {
        ET_DYN => Ok(()),
        ET_EXEC => Err(LoadError::NotSharedLibrary { kind: "an executable" }),
        ET_REL => Err(LoadError::NotSharedLibrary { kind: "an object file" }),
        ET_CORE => Err(LoadError::NotSharedLibrary { kind: "a core dump" }),
        _ => Err(LoadError::NotSharedLibrary { kind: "an ELF file of unknown type" }),
    }
}

fn section_bytes<R: Read + Seek>(file: &mut ElfStream<NativeEndian, R>) -> Result<Vec<u8>, LoadError> {
    let header =
        *file.section_header_by_name(METADATA_SECTION).map_err(elf_fault)?.ok_or(LoadError::NoMetadata)?;
    if header.sh_type == SHT_NOBITS {
        return Err(LoadError::MalformedMetadata { detail: "the section has no bytes in the file".into() });
    }
    if header.sh_size > MAX_SECTION_BYTES {
        let detail = format!("{} bytes are more than {MAX_SECTION_BYTES}", header.sh_size);
        return Err(LoadError::MalformedMetadata { detail });
    }
    let (bytes, compression) = file.section_data(&header).map_err(elf_fault)?;
    if compression.is_some() {
        return Err(LoadError::MalformedMetadata { detail: "the section is compressed".into() });
    }
    Ok(bytes.to_vec())
}

fn exports_entry<R: Read + Seek>(file: &mut ElfStream<NativeEndian, R>) -> Result<bool, LoadError> {
    let Some((symbols, names)) = file.dynamic_symbol_table().map_err(elf_fault)? else {
        return Ok(false);
    };
    Ok(symbols.iter().any(|symbol| {
        symbol.st_shndx != SHN_UNDEF
            && names.get(symbol.st_name as usize).is_ok_and(|name| name == ENTRY_SYMBOL)
    }))
}

fn elf_fault(error: ParseError) -> LoadError {
    match error {
        ParseError::BadOffset(offset) => LoadError::Truncated {
            detail: format!("its headers point to byte {offset}, which it does not have"),
        },
        ParseError::SliceReadError((_, end)) => LoadError::Truncated {
            detail: format!("its headers point to byte {end}, which it does not have"),
        },
        ParseError::IOError(error) => unreadable(error),
        other => LoadError::MalformedElf { detail: other.to_string().to_lowercase() },
    }
}

fn unreadable(error: std::io::Error) -> LoadError {
    LoadError::Unreadable { step: "read it", cause: error.to_string() }
}

fn hexadecimal(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing: it is empty".into();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

fn architecture(machine: u16) -> String {
    match machine {
        EM_X86_64 => "x86_64".into(),
        EM_AARCH64 => "aarch64".into(),
        EM_RISCV => "riscv".into(),
        EM_386 => "x86".into(),
        EM_ARM => "arm".into(),
        EM_PPC64 => "powerpc64".into(),
        EM_S390 => "s390".into(),
        other => format!("ELF machine {other}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// This test program: an ELF file of this machine that is no plugin.
    fn own_bytes() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: &str) {
        let error = read_metadata(Cursor::new(bytes)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }

    fn altered(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut all = own_bytes();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        all
    }

    #[test]
    fn wrong_files_are_told_apart() {
        check(b"", "starts with nothing: it is empty");
        check(b"#!/bin/sh\n", "starts with 23 21 2f 62");
        check(b"\x7fELF", "4 bytes are less than an ELF header");
        check(&altered(4, &[1]), "is a 32-bit object");
        check(&altered(5, &[3 - HOST_DATA]), "the other byte order");
        check(&altered(18, &u16::to_ne_bytes(EM_S390)), "is built for s390, this host is");
        check(&altered(16, &u16::to_ne_bytes(ET_REL)), "is an object file, not a shared library");
        check(&own_bytes(), "has no section .tenon_plugin");
    }

    #[test]
    fn a_file_cut_anywhere_is_truncated() {
        let whole = own_bytes();
        for part in [1, 2, 3, 5, 9] {
            let cut = whole.len() * part / 10;
            check(&whole[..cut], "is truncated");
        }
        check(&whole[..30], "is truncated");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            fuzz_metadata(&bytes);
            if bytes.len() >= IDENT_LEN {
                bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', CLASS_64, HOST_DATA]);
                bytes[16..18].copy_from_slice(&ET_DYN.to_ne_bytes());
                bytes[18..20].copy_from_slice(&HOST_MACHINE.to_ne_bytes());
            }
            fuzz_metadata(&bytes);
        }
    }
}
