"""Picture sizes are rendered one after the other."""

from itertools import product

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.shards import MAX_PASSES, ShardSize, cut, passes

SIZES = list(product(range(8, 72, 8), range(8, 40, 8)))


@given(st.lists(st.sampled_from(SIZES), min_size=1, unique=True))
def test_passes_keep_every_size_once_and_in_order(sizes: list[tuple[int, int]]) -> None:
    groups = passes(sizes)
    assert len(groups) == min(MAX_PASSES, len(sizes))
    assert [size for group in groups for size in sizes if size in group] == sizes
    assert sum(map(len, groups)) == len(sizes)


def test_a_pass_cuts_only_its_sizes() -> None:
    widths = pa.array([8, 16, 8, 24] * 5, pa.uint32())
    table = pa.table({"width": widths, "height": widths, "evaluations": pa.array([1] * 20, pa.uint32())})
    size = ShardSize(megapixel_evaluations=0.0, min_images=4, max_images=4)
    shards = list(cut([table], size, frozenset([(8, 8), (24, 24)])))
    assert sorted(width for shard in shards for width in shard["width"].to_pylist()) == [8] * 10 + [24] * 5
    assert all(len(shard["width"].unique()) == 1 for shard in shards)
