"""A pool that grows when a node joins, and a node that says that it leaves: nothing is rendered twice for it."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.location import open_store
from tests.cluster.nodes import LocalCluster
from tests.cluster.trial import PATIENCE_S, Scale, User, environment_of, worker_lines
from tests.faults.launched import wait_until
from tests.faults.oracle import examine, pixels_of

SCALE = Scale(prompts=40, seeds=4, pause_s=0.25)


@pytest.fixture
def user() -> Iterator[User]:
    """Of a head and one node; a job for one worker or two."""
    folder = Path(tempfile.mkdtemp(prefix="dk-"))
    cluster = LocalCluster(folder, environment_of(folder, SCALE))
    try:
        cluster.start(nodes=1)
        user = User(cluster, SCALE)
        job = user.folder / "job.yaml"
        job.write_text(job.read_text().replace("count: 2", "count: {min: 1, max: 2}"))
        yield user
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def drain(user: User, node_id: str) -> None:
    ray = user.start_module(
        "ray.scripts.scripts", "drain-node", "--address", f"127.0.0.1:{user.cluster.gcs_port}", "--node-id", node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "90",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # else it looks for 127.0.0.1 at this machine's other address
    )  # fmt: skip
    out, err = ray.communicate(timeout=60)
    assert ray.returncode == 0, out + err


def test_a_pool_grows_and_a_node_leaves_without_loss(user: User) -> None:
    cluster, first = user.cluster, user.cluster.nodes[1]
    with user.submit("--json") as job:
        try:
            assert wait_until(lambda: user.committed() > 2, PATIENCE_S), job.communicate(timeout=30)
            (leaving,) = {str(line["node"]) for line in worker_lines(cluster)}
            added = cluster.add()
            assert wait_until(lambda: bool(added.render_workers()) or job.poll() is not None, PATIENCE_S)
            assert job.poll() is None, "the pool grew before the job ended"
            drain(user, leaving)
            assert wait_until(lambda: not first.render_workers() or job.poll() is not None, PATIENCE_S)
            said, err = job.communicate(timeout=PATIENCE_S)
        finally:
            job.kill()
    assert job.returncode == 3, "of the row that cannot be rendered: " + said + err
    assert f"node {leaving[:8]} is about to leave" in said + err
    store = open_store(str(user.output))
    held = examine(store, pixels_of(store, SCALE.seeds))
    assert (held.images + len(held.failed), held.duplicated, held.corrupt) == (SCALE.images, (), ())
    begun = len((cluster.folder / "ledger").read_text().splitlines())
    assert begun == held.images, "an image was begun twice"
    summary = json.loads(next(line for line in said.splitlines() if line.startswith('{"output"')))
    assert summary["worker_deaths"] == 0
    assert summary["workers"] >= 2
