"""Seeds beyond 32 bits make the images of smaller ones, which is said."""

import pyarrow as pa
import pytest
import torch

from pipeline.manifest.wide_seeds import row_warnings, rows_with_wide_seeds, sweep_warnings


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_torch_draws_the_same_noise_for_seeds_that_share_32_bits(seed: int) -> None:
    first, second, other = (
        torch.randn(4, generator=torch.Generator("cpu").manual_seed(given))
        for given in (seed, seed + 2**32 * (2**32 - 1), seed + 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_rows_are_counted_once() -> None:
    seeds = [[1], [2**32], None, [1, 2**63, 2**64 - 1], [2**32 - 1]]
    assert rows_with_wide_seeds(pa.table({"seeds": pa.array(seeds, pa.list_(pa.uint64()))})) == 2


def test_what_is_said() -> None:
    assert sweep_warnings((0, 2**32 - 1)) == row_warnings(0) == ()
    assert sweep_warnings((0, 2**32))[0].startswith("1 of sweep.seeds have more than 32 bits")
    assert row_warnings(3)[0].startswith("seeds of 3 manifest rows have more than 32 bits")
