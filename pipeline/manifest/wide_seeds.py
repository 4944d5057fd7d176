"""Seeds of more than 32 bits, of which torch's CPU generator uses the lower 32 alone."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FIRST_WIDE = 2**32


def rows_with_wide_seeds(rows: pa.Table) -> int:
    """Return the number of rows with a seed of their own of 2**32 or more."""
    seeds = rows["seeds"].combine_chunks()
    parents = pc.list_parent_indices(seeds).to_numpy()
    return len(np.unique(parents[pc.list_flatten(seeds).to_numpy() >= _FIRST_WIDE]))


def row_warnings(rows: int) -> tuple[str, ...]:
    """Return what to say of this many rows with wide seeds."""
    return (_sentence(f"seeds of {rows:,} manifest row{'s' * (rows != 1)}"),) if rows else ()


def sweep_warnings(seeds: Sequence[int]) -> tuple[str, ...]:
    """Return what to say of wide seeds in the sweep."""
    wide = sum(seed >= _FIRST_WIDE for seed in seeds)
    return (_sentence(f"{wide:,} of sweep.seeds"),) if wide else ()


def _sentence(subject: str) -> str:
    return (
        f"{subject} have more than 32 bits; torch's CPU generator, which draws the noise here and in stock diffusers, "
        f"uses the lower 32 alone, so that the seeds 5 and {_FIRST_WIDE + 5} give the same image"
    )
