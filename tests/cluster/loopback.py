"""The command ``ray`` for several nodes on one machine that nobody else can reach: every node is 127.0.0.1.

``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`` makes Ray take 127.0.0.1 for its own address instead of the machine's; but then
``ray start`` refuses a second node. This lifts that refusal, and changes nothing else.
"""

from ray._private import ray_constants, services
from ray.scripts.scripts import main

LOOPBACK = "127.0.0.1"


def _own_address(_: object = None) -> str:
    return LOOPBACK


if __name__ == "__main__":
    services.get_node_ip_address = _own_address
    ray_constants.ENABLE_RAY_CLUSTER = True
    main()
