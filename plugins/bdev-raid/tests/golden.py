"""Writes superblock images by the field table of the format, and by nothing else.

Usage: golden.py DIRECTORY. Knows nothing of the code it tests: offsets are those of
the table, the checksum is CRC-32C as a bare register that starts at 0.
"""

import pathlib
import struct
import sys


def crc32c_register(data):
    register = 0
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register


def superblock(name, level, strip, seq, members, raid_size, major=1, flags=0):
    image = bytearray(256 + 64 * len(members))
    image[0:8] = b"SPDKRAID"
    struct.pack_into("<HHI", image, 8, major, 0, len(image))
    struct.pack_into("<I", image, 20, flags)
    image[24:40] = bytes(range(0xA0, 0xB0))
    image[40 : 40 + len(name)] = name.encode()
    struct.pack_into("<QIII", image, 104, raid_size, 512, level, strip)
    struct.pack_into("<Q", image, 128, seq)
    image[136] = len(members)
    image[255] = len(members)
    for slot, (offset, size, state) in enumerate(members):
        at = 256 + 64 * slot
        image[at : at + 16] = bytes([(0x10 + slot) % 256] * 16)
        struct.pack_into("<QQII", image, at + 16, offset, size, state, 0)
        image[at + 40] = slot
    struct.pack_into("<I", image, 16, crc32c_register(image))
    return bytes(image)


IMAGES = {
    "raid0": superblock("Raid0", 0, 128, 1, [(2048, 63488, 1)] * 2, 126976),
    "raid1_degraded": superblock("Raid1", 1, 0, 9, [(2048, 63488, 1), (2048, 63488, 0)], 63488),
    "raid5f": superblock("Raid5f", 95, 128, 3, [(2048, 63488, 1), (2048, 63488, 1), (2048, 63488, 2)], 126976),
    "concat": superblock("Concat", 99, 128, 2, [(2048, 63488, 1), (4096, 1024, 1)], 64512),
    "raid1_with_bitmap": superblock("Raid1b", 1, 0, 4, [(2048, 63488, 1)] * 2, 63488, major=2, flags=1),
    "largest": superblock("Wide", 1, 0, 2**63, [(2048, 63488, 1)] * 255, 63488),
}

if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    for title, content in IMAGES.items():
        (directory / title).write_bytes(content)
