"""How figures are said to people."""


def duration(seconds: float) -> str:
    """1:02:03, 2:03"""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, thing: str = "image") -> str:
    """Return a number of things: 1 image, 1,000 images."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def requested(images: int, distinct: int) -> str:
    """Return how many images are asked for and how many of them differ."""
    return (
        f"{counted(images)}, {distinct:,} distinct: {images - distinct:,} "
        f"request{'s are' if images - distinct != 1 else ' is'} answered by an image that another row asks for"
    )


def size(number: int) -> str:
    """Return a number of bytes in GB, or in MB below one GB."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
