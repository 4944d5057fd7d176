"""Counters of an engine's work. This module does not load torch."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """Sums since the engine was made. The engine of batches measures denoising and decoding on the device."""

    evaluations: int = 0
    """Rows of tasks that went through the denoiser, each call counted."""
    megapixel_evaluations: float = 0.0
    """Evaluations, each times the megapixels of its image; the unit of cost."""
    padded_rows: int = 0
    """Dummy rows that went through the denoiser."""
    denoiser_calls: int = 0
    encode_s: float = 0.0
    """Seconds in which tasks were prepared: texts, schedulers and first latents."""
    denoise_s: float = 0.0
    decode_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """Seconds of all stages."""
        return self.encode_s + self.denoise_s + self.decode_s

    @property
    def real_rows(self) -> float:
        """The fraction of the denoiser's rows that belonged to tasks; 0 before its first call."""
        return self.evaluations / max(1, self.evaluations + self.padded_rows)

    def __sub__(self, other: "EngineCounters") -> "EngineCounters":
        return EngineCounters(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def __add__(self, other: "EngineCounters") -> "EngineCounters":
        return EngineCounters(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})
