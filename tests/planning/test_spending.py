"""Hours, money, and limits of both."""

import pytest

from pipeline.errors import InputError
from pipeline.planning.amount import Amount
from pipeline.planning.spending import Pace, Spending

WORK = Amount(images=7200, megapixel_evaluations=180_000.0)


def test_hours_follow_what_is_known() -> None:
    assert Pace().hours(WORK) is None
    assert Pace(images_per_s=2.0).hours(WORK) == 1.0
    assert Pace(megapixel_evaluations_per_s=25.0).hours(WORK) == 2.0
    assert Pace(images_per_s=2.0, megapixel_evaluations_per_s=25.0).hours(WORK) == 1.0


def test_what_is_within_its_limits_passes() -> None:
    Spending().check(WORK, Pace())
    Spending(max_images=7200, max_cost=6.0, price_per_hour=3.0).check(WORK, Pace(megapixel_evaluations_per_s=25.0))
    Spending(max_images=0, max_cost=0.0, price_per_hour=3.0).check(Amount(), Pace(images_per_s=1.0))


@pytest.mark.parametrize(
    ("spending", "pace", "says"),
    [
        (Spending(max_images=7199), Pace(), r"more to render than allowed(.|\n)*7,200 images(.|\n)*up to 7,199"),
        (Spending(max_cost=1.0, price_per_hour=1.0), Pace(), "nobody knows yet how fast"),
        (
            Spending(max_cost=2.99, price_per_hour=3.0),
            Pace(images_per_s=2.0),
            r"cost more than allowed(.|\n)*3\.00, 1\.00 hours at 3(.|\n)*up to 2\.99",
        ),
    ],
)
def test_what_is_beyond_is_refused(spending: Spending, pace: Pace, says: str) -> None:
    with pytest.raises(InputError, match=says):
        spending.check(WORK, pace)


def test_a_cost_needs_a_price() -> None:
    with pytest.raises(InputError, match="a cost needs a price"):
        Spending(max_cost=1.0)
