"""What a prompt row may hold, given by the caller, who knows the model and our metadata schema."""

from dataclasses import dataclass

from pipeline.manifest.blocklist import Blocklist


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """Limits for the cells of a manifest; everything the validation of a row needs beside the row."""

    size_factor: int
    """Width and height divide by it, in px; 1 where no model is known yet."""
    schedulers: frozenset[str]
    """Names a ``scheduler`` cell may have."""
    offered: frozenset[str] | None = None
    """Those of them that work with the model, for errors; None: all."""
    lists: frozenset[str] = frozenset({"timesteps", "sigmas"})
    """What such a cell may list."""
    reserved: frozenset[str]
    """Names of our metadata schema, which no extra column may have."""
    max_side_px: int = 8192
    max_seed: int = 2**64 - 1
    max_steps: int = 1000
    max_guidance: float = 1000.0
    blocklist: Blocklist | None = None
