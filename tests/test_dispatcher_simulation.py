"""The product's dispatcher with a pretended cluster and pretended time, in small; ``benchmarks.simulation`` in full."""

from benchmarks.simulated_crew import Cluster
from benchmarks.simulation import measure


def test_workers_are_busy_whatever_dies() -> None:
    """The tail weighs more here than in an hour."""
    measured = measure(Cluster(workers=16, deaths=2, lost_nodes=1, within_s=300.0), seed=1)
    assert measured.efficient > 0.95, measured
    assert measured.died >= 3
    assert measured.quarantines == 0
    assert measured.again > 0


def test_workers_seldom_change_the_size() -> None:
    sizes = 9
    measured = measure(Cluster(workers=18, within_s=120.0, calm=True), sizes=sizes, lease_images=8)
    assert measured.leases > 18 * sizes
    assert measured.changes <= 1.3 * sizes, measured
