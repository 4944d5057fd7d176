"""The Ray that a launch starts, until standard input ends: ``python -m tests.metrics.local_ray [CPUS]``.

It outlives the launches that use it, so that what their workers told can still be read when they have ended, and so
that many launches can share it. ``CPUS`` for workers in place of those of this machine.
"""

import json
import sys
from unittest.mock import patch

import ray

from pipeline.distributed import connecting
from pipeline.distributed.cpus import usable_cpus


def main() -> None:
    cpus = int(sys.argv[1]) if sys.argv[1:] else usable_cpus()
    with patch.object(connecting, "usable_cpus", return_value=cpus):
        connecting.connect(None)
    (node,) = ray.nodes()
    found = {
        "address": ray.get_runtime_context().gcs_address,
        "node": node["NodeID"],
        "port": node["MetricsExportPort"],
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
