"""Rows of the batch and of the decoder when the job does not say: known devices, and what any answer must fulfil."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.family import FAMILIES, Family
from pipeline.model.rows import MOST_DECODE_ROWS, MOST_ROWS, BatchRows, auto_decode_rows, auto_rows
from pipeline.rendering.renderer import load_renderer
from tests import tiny_models
from tests.rendering.tasks import task

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


@pytest.mark.parametrize(
    ("side", "dtype", "gib", "rows"),
    [
        (512, "bfloat16", 80, 4), (1024, "bfloat16", 80, 4), (2048, "bfloat16", 80, 2), (1024, "float32", 80, 4),
        (1024, "bfloat16", 24, 2), (1024, "float32", 24, 1), (512, "bfloat16", 8, 4), (1024, "bfloat16", 8, 1),
        (8192, "float32", 80, 1), (512, "float32", 1, 1),
    ],
)  # fmt: skip
def test_decode_rows_of_known_devices(side: int, dtype: str, gib: int, rows: int) -> None:
    assert auto_decode_rows(side, side, dtype, gib * GIB) == rows


@pytest.mark.parametrize(
    ("family", "dtype", "side", "rows"),
    [(SD, "float32", 32, 2), (SD, "bfloat16", 32, 4), (SDXL, "float16", 32, 2), (SD, "float32", 64, 1)],
)
def test_the_decoder_takes_as_many_as_fit(
    family: str, dtype: str, side: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own dtype, which is float32 for the autoencoder of Stable Diffusion XL in float16."""
    calls, decode = [], AutoencoderKL.decode

    def noted(vae: AutoencoderKL, latents: torch.Tensor, **options: Any) -> Any:
        calls.append(len(latents))
        return decode(vae, latents, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", noted)
    tiny = tiny_models.stable_diffusion_xl() if family == SDXL else tiny_models.stable_diffusion()
    room = BatchRows(fixed=8, family=FAMILIES[family], dtype=dtype, device_bytes=2 * 10**9 + 30_000_000)
    renderer = load_renderer(tiny_models.save(tiny, tmp_path), dtype=dtype, device="cpu", rows=room)
    size = {"width": side, "height": side}
    outcomes = list(renderer.render(task(seed=seed, num_inference_steps=1, **size) for seed in range(4)))
    assert len(outcomes) == 4
    assert set(calls) == {rows}


@given(FAMILY, SIZES, DTYPES)
def test_a_cpu_has_16_and_4_whatever_the_images(family: Family, size: tuple[int, int], dtype: str) -> None:
    assert auto_rows(family, *size, dtype, None) == 16
    assert auto_decode_rows(*size, dtype, None) == 4


@given(FAMILY, SIZES, DTYPES, MEMORY)
def test_a_power_of_two_and_not_too_many(family: Family, size: tuple[int, int], dtype: str, memory: int) -> None:
    rows, decoded = auto_rows(family, *size, dtype, memory), auto_decode_rows(*size, dtype, memory)
    assert 2 <= rows <= MOST_ROWS
    assert 1 <= decoded <= MOST_DECODE_ROWS
    assert rows.bit_count() == decoded.bit_count() == 1


@given(FAMILY, SIZES, DTYPES, MEMORY, MEMORY)
def test_more_memory_never_means_fewer(
    family: Family, size: tuple[int, int], dtype: str, memory: int, more: int
) -> None:
    less, more = sorted((memory, more))
    assert auto_rows(family, *size, dtype, less) <= auto_rows(family, *size, dtype, more)
    assert auto_decode_rows(*size, dtype, less) <= auto_decode_rows(*size, dtype, more)


@given(FAMILY, SIZES, SIZES, DTYPES, MEMORY)
def test_larger_images_never_mean_more(
    family: Family, one: tuple[int, int], other: tuple[int, int], dtype: str, memory: int
) -> None:
    small, large = sorted((one, other), key=lambda size: size[0] * size[1])
    assert auto_rows(family, *large, dtype, memory) <= auto_rows(family, *small, dtype, memory)
    assert auto_decode_rows(*large, dtype, memory) <= auto_decode_rows(*small, dtype, memory)


@given(FAMILY, SIZES, DTYPES, MEMORY)
def test_what_the_job_says_counts_for_all_sizes(family: Family, size: tuple[int, int], dtype: str, memory: int) -> None:
    assert BatchRows(fixed=6, family=family, dtype=dtype, device_bytes=memory)(*size) == 6
    by_rule = BatchRows(family=family, dtype=dtype, device_bytes=memory)
    assert by_rule(*size) == auto_rows(family, *size, dtype, memory)


@given(FAMILY, SIZES, MEMORY, st.sampled_from(["float16", "bfloat16"]))
def test_half_precision_has_at_least_as_many(family: Family, size: tuple[int, int], memory: int, half: str) -> None:
    assert auto_rows(family, *size, half, memory) >= auto_rows(family, *size, "float32", memory)
    assert auto_decode_rows(*size, half, memory) >= auto_decode_rows(*size, "float32", memory)
