"""The Ray cluster: what it has, and what a launch asks of it."""

import math
import time
from typing import Literal

import ray

from pipeline.config import PoolSection, WorkersSection
from pipeline.distributed.ray_errors import our_error
from pipeline.distributed.report import Tell
from pipeline.distributed.spec import Device, Pool
from pipeline.errors import JobBrokenError, JobFileError

PATIENCE_S = 60.0
"""After so long people are told what is waited for."""


def cluster_gpus() -> float:
    """GPUs of the cluster as it is now."""
    return float(ray.cluster_resources().get("GPU", 0))


def cluster_cpus() -> int:
    """Return the CPUs of the cluster as it is now, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def room(gpus: float, cpus: int) -> int:
    """How many workers, each with so many GPUs or else CPUs, the cluster can hold as it is now."""
    return int(cluster_gpus() / gpus) if gpus else cluster_cpus() // cpus


def device_of(pool: Pool, tell: Tell, within_s: float | None = None) -> Device | None:
    """What the pool's workers compute on, asked of a GPU of the cluster: the driver may have none.

    Waits for one to join, and says so. None when there is none within that time.
    """
    if not pool.gpus:
        return Device(name="cpu", memory_bytes=None)
    described = ray.remote(num_gpus=pool.gpus, num_cpus=0)(_describe_gpu).remote()
    until = math.inf if within_s is None else time.monotonic() + within_s
    try:
        while not ray.wait([described], timeout=max(0.0, min(PATIENCE_S, until - time.monotonic())))[0]:
            if time.monotonic() >= until:
                ray.cancel(described)
                return None
            tell(f"waiting for a GPU; the cluster has {cluster_summary()}")
        name, memory_bytes = ray.get(described)
    except ray.exceptions.RayError as error:
        raise our_error(error) from error
    return Device(name=name, memory_bytes=memory_bytes)


def _describe_gpu() -> tuple[str, int]:
    import torch  # here, in a worker's process: the driver needs none of it

    if not torch.cuda.is_available():
        raise JobBrokenError("Ray counts a GPU that torch cannot use: is a CUDA build of torch installed there?")
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory


def cluster_summary() -> str:
    """What the cluster has and what of it is free, for people."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(
        f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s free" for kind in ("CPU", "GPU") if kind in total
    )


def pool_of(workers: WorkersSection, *, local: bool) -> Pool:
    """The workers this launch asks for; ``InputError`` where a Ray of our own could never place them."""
    gpus = float(cluster_gpus() > 0) if workers.gpus == "auto" else workers.gpus
    fitting = room(gpus, workers.cpus)
    least, most = _bounds(workers.count, fitting)
    if local and least > fitting:
        unit = f"{gpus:g} GPU(s)" if gpus else f"{workers.cpus} CPU(s)"
        raise JobFileError(
            "this machine has no room for the workers",
            where="workers",
            value=f"{least} × {unit}",
            allowed=f"up to {fitting} of them here" if fitting else f"less than {unit} each: there are not as many",
        )
    return Pool(workers=most, least=least, gpus=gpus, cpus=workers.cpus)


def _bounds(count: int | PoolSection | Literal["auto"], fitting: int) -> tuple[int, int]:
    """How many workers at least and at most."""
    if isinstance(count, PoolSection):
        return count.min, count.max
    fixed = max(1, fitting) if count == "auto" else count
    return fixed, fixed
