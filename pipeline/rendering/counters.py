"""What an engine has done so far, as sums: this module loads no torch."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """Sums since the engine was made. On a GPU a second counts where the host waited for it, mostly in decode."""

    evaluations: int = 0
    """Rows of tasks that went through the denoiser."""
    megapixel_evaluations: float = 0.0
    """Each times the size of its picture: the unit of cost."""
    padded_rows: int = 0
    """Dummy rows that went along."""
    denoiser_calls: int = 0
    encode_s: float = 0.0
    """Of prompts."""
    denoise_s: float = 0.0
    decode_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """All stages."""
        return self.encode_s + self.denoise_s + self.decode_s

    @property
    def real_rows(self) -> float:
        """Fraction of the denoiser's rows that were tasks'; 0 before its first call."""
        return self.evaluations / max(1, self.evaluations + self.padded_rows)

    def __sub__(self, other: "EngineCounters") -> "EngineCounters":
        return EngineCounters(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def __add__(self, other: "EngineCounters") -> "EngineCounters":
        return EngineCounters(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})
