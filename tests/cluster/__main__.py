"""``python -m tests.cluster``: three nodes, two drivers killed, a node killed, one added; prints a time line.

Ends with exit code 1 if anything was lost, duplicated, corrupt or rendered again without need.
"""

import sys
import tempfile
from pathlib import Path

from tests.cluster.nodes import LocalCluster
from tests.cluster.trial import FULL, Seen, Trial, environment_of


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="dk-") as name:
        folder = Path(name)
        cluster = LocalCluster(folder, environment_of(folder, FULL))
        try:
            cluster.start(nodes=2)
            print(f"a head and 2 nodes at {cluster.address}, {FULL.images} images to render", flush=True)
            seen = Trial(cluster, FULL, lambda line: print(line, flush=True)).run()
        finally:
            cluster.stop()
    broken = _broken(seen)
    print(
        f"images {seen.images}, failed on purpose {seen.failed}, lost {seen.lost}, duplicated {seen.duplicated}, "
        f"corrupt {seen.corrupt}, rendered again {seen.again}, in flight when killed at most {seen.in_flight}\n"
        f"images by node: {', '.join(f'{node} {images}' for node, images in seen.by_node.items())}\n"
        f"{'; '.join(broken) or 'as promised'}"
    )
    sys.exit(bool(broken))


def _broken(seen: Seen) -> list[str]:
    wrong = {
        "images lost": seen.lost,
        "images twice": seen.duplicated,
        "files with other bytes": seen.corrupt,
        "verify found something": seen.verified,
        "more rendered again than was in flight": seen.again > seen.in_flight,
        "exit codes": seen.exit_codes != (*[1] * FULL.driver_kills, 3),
    }
    return [sentence for sentence, is_so in wrong.items() if is_so]


if __name__ == "__main__":
    main()
