"""Rows of the batch when the job does not say: known devices, and what any answer must fulfil."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.family import FAMILIES, Family
from pipeline.model.rows import MOST_ROWS, BatchRows, auto_rows

GIB = 2**30
SD, SDXL, SD3, FLUX, PIXART = (
    f"{name}Pipeline" for name in ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "PixArtAlpha")
)
FAMILY = st.sampled_from(list(FAMILIES.values()))
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])
SIDES = st.integers(1, 1024).map(lambda eighths: 8 * eighths)
SIZES = st.tuples(SIDES, SIDES)
MEMORY = st.integers(1, 512 * GIB)


@pytest.mark.parametrize(
    ("name", "side", "gib", "rows"),
    [
        (SD, 512, 80, 64), (SDXL, 1024, 80, 32), (SD3, 1024, 80, 8), (FLUX, 1024, 80, 8), (PIXART, 1024, 80, 8),
        (SD, 768, 80, 32), (SD, 1024, 80, 16), (SDXL, 512, 80, 64), (SDXL, 2048, 80, 8), (SD3, 512, 80, 32),
        (SD, 512, 24, 64), (SDXL, 1024, 24, 32), (SD, 512, 8, 16), (SDXL, 1024, 8, 8), (FLUX, 1024, 8, 2),
        (SD, 64, 80, 64), (SDXL, 1024, 2, 2), (SD, 8192, 512, 2),
    ],
)  # fmt: skip
def test_rows_of_known_models(name: str, side: int, gib: int, rows: int) -> None:
    assert auto_rows(FAMILIES[name], side, side, "bfloat16", gib * GIB) == rows


@given(FAMILY, SIZES, DTYPES)
def test_a_cpu_has_16_whatever_the_images(family: Family, size: tuple[int, int], dtype: str) -> None:
    assert auto_rows(family, *size, dtype, None) == 16


@given(FAMILY, SIZES, DTYPES, MEMORY)
def test_a_power_of_two_and_not_too_many(family: Family, size: tuple[int, int], dtype: str, memory: int) -> None:
    rows = auto_rows(family, *size, dtype, memory)
    assert 2 <= rows <= MOST_ROWS
    assert rows.bit_count() == 1


@given(FAMILY, SIZES, DTYPES, MEMORY, MEMORY)
def test_more_memory_never_means_fewer(
    family: Family, size: tuple[int, int], dtype: str, memory: int, more: int
) -> None:
    less, more = sorted((memory, more))
    assert auto_rows(family, *size, dtype, less) <= auto_rows(family, *size, dtype, more)


@given(FAMILY, SIZES, SIZES, DTYPES, MEMORY)
def test_larger_images_never_mean_more(
    family: Family, one: tuple[int, int], other: tuple[int, int], dtype: str, memory: int
) -> None:
    small, large = sorted((one, other), key=lambda size: size[0] * size[1])
    assert auto_rows(family, *large, dtype, memory) <= auto_rows(family, *small, dtype, memory)


@given(FAMILY, SIZES, DTYPES, MEMORY)
def test_what_the_job_says_counts_for_all_sizes(family: Family, size: tuple[int, int], dtype: str, memory: int) -> None:
    assert BatchRows(fixed=6, family=family, dtype=dtype, device_bytes=memory)(*size) == 6
    by_rule = BatchRows(family=family, dtype=dtype, device_bytes=memory)
    assert by_rule(*size) == auto_rows(family, *size, dtype, memory)


@given(FAMILY, SIZES, MEMORY, st.sampled_from(["float16", "bfloat16"]))
def test_half_precision_has_at_least_as_many(family: Family, size: tuple[int, int], memory: int, half: str) -> None:
    assert auto_rows(family, *size, half, memory) >= auto_rows(family, *size, "float32", memory)
