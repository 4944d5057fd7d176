"""Objects that no part names: left by launches that were stopped before a commit, or replaced by a later one."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from hashlib import blake2b
from itertools import chain, islice

from pipeline.identity import ID_BYTES, Ids, IdSet, ids_from_bytes
from pipeline.output.layout import DATA_PREFIX, IMAGES_PREFIX, SHARDS_PREFIX, WRITTEN_PREFIXES, is_payload_key
from pipeline.output.parallel import in_parallel
from pipeline.storage.base import ObjectInfo, ObjectStore

_BATCH = 10_000
_PREFIXES = (IMAGES_PREFIX, SHARDS_PREFIX, DATA_PREFIX)


def key_ids(keys: Iterable[str]) -> Ids:
    """Keys as 16 bytes each, to hold millions of them."""
    return ids_from_bytes(b"".join(blake2b(key.encode(), digest_size=ID_BYTES).digest() for key in keys))


def unnamed(store: ObjectStore, named: IdSet) -> Iterator[ObjectInfo]:
    """The images, and objects with several, that are not, by ``key_ids``, among ``named``; no other files."""
    listed = chain.from_iterable(map(store.list, _PREFIXES))
    found = (info for info in listed if is_payload_key(info.key))
    while batch := list(islice(found, _BATCH)):
        known = named.contains(key_ids(info.key for info in batch)).tolist()
        yield from (info for info, is_named in zip(batch, known, strict=True) if not is_named)


def delete_orphans(store: ObjectStore, orphans: Sequence[ObjectInfo], before: datetime) -> int:
    """Delete those last written before a moment; returns how many.

    Each is looked at once more: a launch may have written the same bytes again, and be about to commit them.
    """
    old = [info.key for info in orphans if info.modified < before]
    return sum(in_parallel(partial(_delete_if_old, store, before), old))


def sweep(store: ObjectStore, before: datetime) -> int:
    """Remove what killed writers left unfinished before a moment; returns how many there were."""
    return sum(store.sweep(prefix, before) for prefix in WRITTEN_PREFIXES)


def _delete_if_old(store: ObjectStore, before: datetime, key: str) -> bool:
    now = store.head(key)
    if now is None or now.modified >= before:
        return False
    store.delete(key)
    return True
