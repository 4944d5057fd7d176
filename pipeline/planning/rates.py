"""What may be said of a launch's rate and price, on the command line and in Python."""

from pipeline.errors import InputError


def check_rate(rate: float | None, price: float | None) -> None:
    """``InputError`` for numbers that are none of what they are called."""
    if rate is not None and not 0 < rate < float("inf"):
        raise InputError("nothing is rendered at this rate", where="--rate", value=rate, allowed="more than 0 images/s")
    if price is not None and not 0 <= price < float("inf"):
        raise InputError("this is no price", where="--price-per-hour", value=price, allowed="0 or more")
