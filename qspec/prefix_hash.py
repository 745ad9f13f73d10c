"""Names for beginnings of texts: one hash for each full block of tokens, chained.

A KV entry depends on its own token and on every token before it, so what two texts may share is their common
beginning, and only in whole blocks. The hash of a block covers the block's tokens and the hash of the block before it;
equal hashes therefore mean equal texts up to the block's end. Model, methods and epoch are no part of it: whoever keeps
entries under these names (``qspec.memory.prefix_blocks``) keeps those of one verifier only, and whoever places requests
by them asks where a prefix lies, not what its entries are.

The same everywhere and for ever: coordinator and verifier, on any machine and in any run, name a prefix alike. The hash
is a cryptographic one (BLAKE2b, 32 bytes), because its inputs are chosen by clients and nothing compares the tokens
afterwards. A ``salt`` starts a chain of its own, so that texts with different salts never share anything.

Pure, and free of torch: the coordinator uses it, too.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

HASH_BYTES = 32
"""Length of a hash."""


def root_hash(salt: str = "") -> bytes:
    """What stands in the place of a hash before the first block of texts with this ``salt``."""
    return hashlib.blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"qspec salt").digest()


def block_hash(before: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of a full block of ``token_ids`` (32-bit numbers ≥ 0) behind the block (or root) of hash ``before``."""
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return hashlib.blake2b(before + packed, digest_size=HASH_BYTES, person=b"qspec block").digest()


def extend_hashes(hashes: list[bytes], token_ids: Sequence[int], block_size: int, salt: str = "") -> None:
    """Append to ``hashes``, which has those of the first blocks, the ones of all full blocks of ``token_ids``."""
    before = hashes[-1] if hashes else root_hash(salt)
    for start in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        before = block_hash(before, token_ids[start : start + block_size])
        hashes.append(before)


def prefix_hashes(token_ids: Sequence[int], block_size: int, salt: str = "") -> list[bytes]:
    """One hash for each full block of ``block_size`` of a text's tokens, from the first on; a partial tail has none."""
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, block_size, salt)
    return hashes
