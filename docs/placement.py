#!/usr/bin/env python3
"""Placement version 2, without anything of Dispatch's: python3 docs/placement.py docs/placement-v2.json checks the vectors.

A key has canonical bytes; their XXH3-64 hash says its slot; in each slot the instances have an order of preference."""
import json
import sys
from functools import cmp_to_key

M64, M32 = (1 << 64) - 1, (1 << 32) - 1
P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a"
    "51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8f"
    "f8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")


def u32(data, at=0): return int.from_bytes(data[at:at + 4], "little")
def u64(data, at=0): return int.from_bytes(data[at:at + 8], "little")
def secret(at): return u64(SECRET, at)
def fold(a, b): return (a * b & M64) ^ (a * b >> 64)
def swap(value, size): return int.from_bytes(value.to_bytes(size, "little"), "big")
def rotate(value, by): return (value << by | value >> 64 - by) & M64


def avalanche(h, factor=0x165667919E3779F9, shifts=(37, 32)):
    h = (h ^ h >> shifts[0]) * factor & M64
    return h ^ h >> shifts[1]


def avalanche64(h): return avalanche((h ^ h >> 33) * P64[1] & M64, P64[2], (29, 32))


def mix16(data, at, key): return fold(u64(data, at) ^ secret(key), u64(data, at + 8) ^ secret(key + 8))


def xxh3(data):
    """XXH3-64 with seed 0."""
    n = len(data)
    if n == 0:
        return avalanche64(secret(56) ^ secret(64))
    if n <= 3:
        mixed = data[0] << 16 | data[n >> 1] << 24 | data[n - 1] | n << 8
        return avalanche64(mixed ^ u32(SECRET) ^ u32(SECRET, 4))
    if n <= 8:
        h = u32(data, n - 4) + (u32(data) << 32) ^ secret(8) ^ secret(16)
        h = (h ^ rotate(h, 49) ^ rotate(h, 24)) * 0x9FB21C651E98DF25 & M64
        h = (h ^ (h >> 35) + n) * 0x9FB21C651E98DF25 & M64
        return h ^ h >> 28
    if n <= 16:
        low, high = secret(24) ^ secret(32) ^ u64(data), secret(40) ^ secret(48) ^ u64(data, n - 8)
        return avalanche(n + swap(low, 8) + high + fold(low, high) & M64)
    if n <= 128:
        h = n * P64[0]
        for at in range((n - 1) // 32, -1, -1):
            h += mix16(data, 16 * at, 32 * at) + mix16(data, n - 16 * (at + 1), 32 * at + 16)
        return avalanche(h & M64)
    if n <= 240:
        h = n * P64[0] + sum(mix16(data, 16 * at, 16 * at) for at in range(8))
        h = avalanche(h & M64) + sum(mix16(data, 16 * at, 16 * (at - 8) + 3) for at in range(8, n // 16))
        return avalanche(h + mix16(data, n - 16, 119) & M64)
    return xxh3_long(data, n)


def xxh3_long(data, n):
    acc = [P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]]

    def stripe(at, key):
        for lane in range(8):
            value = u64(data, at + 8 * lane)
            keyed = value ^ secret(key + 8 * lane)
            acc[lane ^ 1] = acc[lane ^ 1] + value & M64
            acc[lane] = acc[lane] + (keyed & M32) * (keyed >> 32) & M64

    blocks = (n - 1) // 1024
    for block in range(blocks + 1):
        stripes = 16 if block < blocks else (n - 1 - 1024 * blocks) // 64
        for at in range(stripes):
            stripe(1024 * block + 64 * at, 8 * at)
        if block < blocks:
            for lane in range(8):
                acc[lane] = (acc[lane] ^ acc[lane] >> 47 ^ secret(128 + 8 * lane)) * P32[0] & M64
    stripe(n - 64, 192 - 64 - 7)
    h = n * P64[0] + sum(fold(acc[i] ^ secret(11 + 8 * i), acc[i + 1] ^ secret(19 + 8 * i)) for i in (0, 2, 4, 6))
    return avalanche(h & M64)


def canonical(key):
    """A string, bytes as {"hex": …}, an integer, or a list of these."""
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, int):
        return key.to_bytes(16, "little", signed=True)
    if isinstance(key, dict):
        return bytes.fromhex(key["hex"])
    return b"".join(len(part).to_bytes(4, "little") + part for part in map(canonical, key))


def slot_of(key): return xxh3(canonical(key)) >> 44


def mix(z):
    """The finaliser of SplitMix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


def cost(draw):
    """-ln((draw + 1) / 2^64) in units of 2^-64, all divisions rounded down."""
    octaves = 64 - draw.bit_length()
    missing = (1 << 64) - (draw + 1 << octaves)
    y = (missing << 64) // ((2 << 64) - missing)
    total = 0
    for term in range(19, -1, -1):
        total = (total * (y * y >> 64) >> 64) + (1 << 64) // (2 * term + 1)
    return octaves * 0xB17217F7D1CF79AC + 2 * (total * y >> 64)


def order(instances, slot):
    """The instances, {name: weight}, in their order of preference for a slot."""
    salt = mix(slot + 0x9E3779B97F4A7C15 & M64)
    hashes = {name: xxh3(name.encode()) for name in instances}
    draws = {name: mix(hashes[name] ^ salt) for name in instances}

    def compare(a, b):
        by_cost = 0
        if instances[a] != instances[b]:
            by_cost = cost(draws[a]) * instances[b] - cost(draws[b]) * instances[a]
        rest = (-draws[a], hashes[a], a), (-draws[b], hashes[b], b)
        return by_cost or (rest[0] > rest[1]) - (rest[0] < rest[1])

    return sorted(instances, key=cmp_to_key(compare))


def check(vectors):
    for row in vectors["keys"]:
        assert canonical(row["key"]).hex() == row["canonical"], row
        assert f"{xxh3(canonical(row['key'])):016x}" == row["hash"] and slot_of(row["key"]) == row["slot"], row
    for placement in vectors["placements"]:
        for row in placement["owners"]:
            assert order(placement["instances"], row["slot"])[:len(row["names"])] == row["names"], row
    return sum(len(placement["owners"]) for placement in vectors["placements"])


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        VECTORS = json.load(file)
    print(f"{len(VECTORS['keys'])} keys and {check(VECTORS)} slots as in the vectors")
