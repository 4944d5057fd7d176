"""What an amount of work takes in hours and money, and limits that stop it before anything is spent."""

from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.planning.amount import Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast the workers of a launch are together: as somebody says, or as an earlier one of the run measured."""

    images_per_s: float | None = None
    """Given; counts before what was measured."""
    megapixel_evaluations_per_s: float | None = None
    """Measured while engines worked: it holds for other steps and sizes too, and knows nothing of starting."""
    workers: int | None = None
    """Where it is known how many will work."""
    measured_images: int = 0
    """That the measured launch rendered."""

    def hours(self, work: Amount) -> float | None:
        """None where neither is known."""
        if self.images_per_s is not None:
            return work.images / self.images_per_s / 3600
        if self.megapixel_evaluations_per_s:
            return work.megapixel_evaluations / self.megapixel_evaluations_per_s / 3600
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a launch may spend. None: without limit."""

    max_images: int | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None
    """Of all workers together, in the currency of ``max_cost``."""

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price_per_hour is None:
            raise InputError("a cost needs a price", where="--max-cost", allowed="--price-per-hour as well")

    def check(self, work: Amount, pace: Pace) -> None:
        """``InputError`` where a launch would render or cost more, or nobody can know what it costs."""
        if self.max_images is not None and work.images > self.max_images:
            raise InputError(
                "there is more to render than allowed",
                where="--max-images",
                value=f"{work.images:,} images",
                allowed=f"up to {self.max_images:,}",
            )
        if self.max_cost is None or self.price_per_hour is None:
            return
        hours = pace.hours(work)
        if hours is None:
            raise InputError(
                "nobody knows yet how fast this run is",
                where="--max-cost",
                allowed="--rate as well, or an earlier launch of this run, of a --sample for example",
            )
        if hours * self.price_per_hour > self.max_cost:
            raise InputError(
                "this would cost more than allowed",
                where="--max-cost",
                value=f"{hours * self.price_per_hour:,.2f}, {hours:,.2f} hours at {self.price_per_hour:g}",
                allowed=f"up to {self.max_cost:,.2f}",
            )


def check_rate(rate: float | None, price: float | None) -> None:
    """``InputError`` for numbers that are none of what they are called."""
    if rate is not None and not 0 < rate < float("inf"):
        raise InputError("nothing is rendered at this rate", where="--rate", value=rate, allowed="more than 0 images/s")
    if price is not None and not 0 <= price < float("inf"):
        raise InputError("this is no price", where="--price-per-hour", value=price, allowed="0 or more")
