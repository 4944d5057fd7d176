"""Rows of the batch when the job does not say: what any answer must fulfil."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.rows import MOST_ROWS, BatchRows, auto_rows

GIB = 2**30
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])
SIDES = st.integers(1, 1024).map(lambda eighths: 8 * eighths)
SIZES = st.tuples(SIDES, SIDES)
MEMORY = st.integers(GIB, 512 * GIB)


@pytest.mark.parametrize(("side", "gib", "rows"), [(512, 80, 32), (1024, 80, 8), (1024, 8, 2), (64, 80, 64)])
def test_known_devices(side: int, gib: int, rows: int) -> None:
    assert auto_rows(side, side, "bfloat16", gib * GIB) == rows


@given(SIZES, DTYPES)
def test_a_cpu_has_16_whatever_the_pictures(size: tuple[int, int], dtype: str) -> None:
    assert auto_rows(*size, dtype, None) == 16


@given(SIZES, DTYPES, MEMORY)
def test_a_power_of_two_from_2_on_and_not_too_many(size: tuple[int, int], dtype: str, memory: int) -> None:
    rows = auto_rows(*size, dtype, memory)
    assert 2 <= rows <= MOST_ROWS
    assert rows.bit_count() == 1


@given(SIZES, DTYPES, MEMORY, MEMORY)
def test_more_memory_never_means_fewer(size: tuple[int, int], dtype: str, memory: int, more: int) -> None:
    less, more = sorted((memory, more))
    assert auto_rows(*size, dtype, less) <= auto_rows(*size, dtype, more)


@given(SIZES, SIZES, DTYPES, MEMORY)
def test_larger_pictures_never_mean_more(one: tuple[int, int], other: tuple[int, int], dtype: str, memory: int) -> None:
    small, large = sorted((one, other), key=lambda size: size[0] * size[1])
    assert auto_rows(*large, dtype, memory) <= auto_rows(*small, dtype, memory)


@given(SIZES, DTYPES, MEMORY)
def test_what_the_job_says_counts_for_all_sizes(size: tuple[int, int], dtype: str, memory: int) -> None:
    assert BatchRows(fixed=6, dtype=dtype, device_bytes=memory)(*size) == 6
    assert BatchRows(dtype=dtype, device_bytes=memory)(*size) == auto_rows(*size, dtype, memory)


@given(SIZES, MEMORY, st.sampled_from(["float16", "bfloat16"]))
def test_half_precision_has_at_least_as_many(size: tuple[int, int], memory: int, half: str) -> None:
    assert auto_rows(*size, half, memory) >= auto_rows(*size, "float32", memory)
