"""The CPUs that this process may use: its affinity and the quotas of its control groups, not the machine's size."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_MEMBERSHIP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_V1_MOUNTS = ("cpu,cpuacct", "cpuacct,cpu", "cpu")
"""Names under which the `cpu` controller of version 1 is mounted."""


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1; part of a CPU counts as one."""
    quota = cgroup_cpus()
    allowed = _affinity()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cgroup_cpus(membership: Path = _MEMBERSHIP, groups: Path = _GROUPS) -> float | None:
    """Return the smallest CPU quota of this process's control groups, in CPUs; None where nothing is limited.

    Reads `cpu.max` (version 2) and `cpu.cfs_quota_us` (version 1) of each group and of the groups above it.
    See https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files.
    """
    found = [quota for folder in _folders(membership, groups) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folders(membership: Path, groups: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups and of all groups above; in a container some may not exist."""
    lines = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in [groups / name for name in _V1_MOUNTS] if controllers else [groups]:
            inside = mount / PurePosixPath(path.lstrip("/"))
            yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(mount))


def _quota(folder: Path) -> float | None:
    """Return the quota that is set for one group, in CPUs."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            return int(quota) / int(period)
    return None
