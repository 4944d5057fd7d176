"""``shards.txt``: the keys of all committed objects that hold several images, one a line.

Readers of an object store need no listing then, and a pattern would also take in what was never committed.
"""

from collections.abc import Iterable

from pipeline.output.finalized import Table
from pipeline.output.layout import SHARD_LIST_KEY
from pipeline.storage.base import ObjectStore


def write_shard_list(store: ObjectStore, images: Iterable[Table]) -> None:
    """Write the list, unless it is there as it should be. A run of single files has none.

    ``images``: the tables that hold the metadata of images.
    """
    keys = sorted({key for table in images for key in table.objects})
    if not keys:
        return
    listed = "".join(f"{key}\n" for key in keys).encode()
    if not store.head(SHARD_LIST_KEY) or store.get(SHARD_LIST_KEY) != listed:
        store.put(SHARD_LIST_KEY, listed)
