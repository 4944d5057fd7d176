"""Picture sizes are rendered one after the other."""

from itertools import product

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.shards import MAX_PASSES, PASSES_OF_ONE_SIZE, SIZES_PER_PASS, ShardSize, cut, passes
from pipeline.rendering.compiled import MAX_SHAPES

SIZES = list(product(range(8, 72, 8), range(8, 40, 8)))
"""Not more than four for each of eight passes."""


@given(st.lists(st.sampled_from(SIZES), min_size=1, unique=True))
def test_passes_keep_every_size_once_and_in_order(sizes: list[tuple[int, int]]) -> None:
    groups = passes(sizes)
    assert len(groups) == min(len(sizes), PASSES_OF_ONE_SIZE)
    assert [size for group in groups for size in sizes if size in group] == sizes
    assert sum(map(len, groups)) == len(sizes)


def test_a_pass_has_no_more_sizes_than_a_worker_keeps_compiled() -> None:
    for number in (33, 40, 100, SIZES_PER_PASS * MAX_PASSES):
        assert max(map(len, passes([(8 * n, 8) for n in range(number)]))) <= SIZES_PER_PASS == MAX_SHAPES
    assert len(passes([(8 * n, 8) for n in range(10_000)])) == MAX_PASSES


def test_a_pass_cuts_only_its_sizes() -> None:
    widths = pa.array([8, 16, 8, 24] * 5, pa.uint32())
    table = pa.table({"width": widths, "height": widths, "evaluations": pa.array([1] * 20, pa.uint32())})
    size = ShardSize(megapixel_evaluations=0.0, min_images=4, max_images=4)
    shards = list(cut([table], dict.fromkeys([(8, 8), (24, 24)], size).get))
    assert sorted(width for shard in shards for width in shard["width"].to_pylist()) == [8] * 10 + [24] * 5
    assert all(len(shard["width"].unique()) == 1 for shard in shards)
