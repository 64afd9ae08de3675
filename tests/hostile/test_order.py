"""Callers who read cursors: they do not learn the order of keys that they have not listed."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

from keyvalue_engine import Store

MASK = 2**64 - 1


def before_avalanche(position: int) -> int:
    """Undo the last step of XXH3 for short keys: x ^= x >> 33; x *= A; x ^= x >> 29; x *= B; x ^= x >> 32."""
    position ^= position >> 32
    position = position * pow(0x165667B19E3779F9, -1, 2**64) & MASK
    position ^= position >> 29 ^ position >> 58
    position = position * pow(0xC2B2AE3D27D4EB4F, -1, 2**64) & MASK
    return position ^ position >> 33


def seed_of(key: bytes, position: int) -> int:
    """Return the XXH3 seed that places a key of one byte there, as an attack on an earlier version did."""
    combined = key[0] << 16 | key[0] << 24 | key[0] | 1 << 8
    of_seed, of_zero = (combined ^ before_avalanche(hashed) for hashed in (position, xxh3_64_intdigest(key, 0)))
    return of_seed - of_zero & MASK


def test_a_cursor_and_the_first_key_of_its_page_do_not_reveal_the_order() -> None:
    assert seed_of(b"k", xxh3_64_intdigest(b"k", 7**21)) == 7**21, "the attack itself works"
    bucket = Store().bucket(b"b")
    keys = [bytes([number]) for number in range(256)]
    bucket.set_many(dict.fromkeys(keys, b""))
    cursor = bucket.page(keys_max=1).cursor
    assert cursor is not None
    seed = seed_of(bucket.page(cursor, 1).keys[0], cursor)
    assert sorted(keys, key=lambda key: xxh3_64_intdigest(key, seed)) != list(bucket.keys())
