"""The Ray that a launch starts, until standard input ends: ``python -m tests.metrics.local_ray``.

It outlives the launches that use it, so that what their workers told can still be read when they have ended.
"""

import json
import sys

import ray

from pipeline.distributed.connecting import connect


def main() -> None:
    connect(None)
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
