"""A cluster of separate processes with token authentication, used from outside as people use it."""

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster.nodes import LocalCluster
from tests.cluster.trial import SHORT, Trial, User, environment_of, worker_lines

MARK = "AKIAMARKEDSECRETOFTHETESTS"
"""A credential that all nodes have, and that must turn up nowhere."""


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    """A head and two nodes, and somebody with a job file."""
    folder = Path(tempfile.mkdtemp(prefix="dk-"))
    cluster = LocalCluster(folder, {**environment_of(folder, SHORT), "AWS_SECRET_ACCESS_KEY": MARK})
    try:
        cluster.start(nodes=2)
        yield Trial(cluster, SHORT, print)
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def said(user: User, *words: str, code: int, **environment: str) -> str:
    """What a command prints, all of it."""
    process = user.start(*words, **environment)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out + err


def test_only_the_right_token_is_let_in(trial: Trial) -> None:
    submit = ("submit", "job.yaml", "--address", trial.cluster.address)
    wrong = said(trial.user, *submit, code=2, RAY_AUTH_TOKEN="0" * 64)
    assert "the cluster refuses the token" in wrong
    none = said(trial.user, *submit, code=2, RAY_AUTH_MODE="disabled")
    assert "asks for a token, and none was given" in none
    unread = said(trial.user, *submit, code=2, RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH="/no-such-file")
    assert "/no-such-file" in unread
    assert not trial.user.output.exists()
    assert all(trial.cluster.token not in text for text in (wrong, none, unread))


def test_a_driver_that_joins_needs_the_token_too(trial: Trial) -> None:
    join = ("render", "job.yaml", "--output", "out", "--address", f"127.0.0.1:{trial.cluster.gcs_port}")
    assert "the cluster refuses the token" in said(trial.user, *join, code=2, RAY_AUTH_TOKEN="0" * 64)
    assert "asks for a token, and none was given" in said(trial.user, *join, code=2, RAY_AUTH_MODE="disabled")


def test_the_port_of_the_nodes_is_not_the_dashboards(trial: Trial) -> None:
    address = f"http://127.0.0.1:{trial.cluster.gcs_port}"
    assert "does not speak http" in said(trial.user, "submit", "job.yaml", "--address", address, code=2)


def test_bad_input_comes_back_as_2(trial: Trial) -> None:
    """The manifest's rows are looked at on the cluster."""
    pq.write_table(pa.table({"prompt": ["a", None]}), trial.user.folder / "bad.parquet")
    submit = ("submit", "job.yaml", "--address", trial.cluster.address, "--manifest", "bad.parquet")
    assert "1 of 2 manifest rows cannot be used" in said(trial.user, *submit, code=2)
    (trial.user.folder / "bad.parquet").unlink()


def test_a_node_is_killed_and_one_added(trial: Trial) -> None:
    seen = trial.run()
    assert seen.exit_codes == (3,), "the row that cannot be rendered; the driver's code comes back as it is"
    assert (seen.lost, seen.duplicated, seen.corrupt, seen.failed) == (0, 0, 0, SHORT.seeds)
    assert seen.verified == 0
    assert seen.again <= seen.in_flight
    summary = json.loads(seen.said)
    assert (summary["added"], summary["failed"], summary["remaining"]) == (seen.images, seen.failed, 0)


def test_submitted_again_through_rays_own_command(trial: Trial) -> None:
    user = trial.user
    ray = user.ray(
        "job", "submit", "--address", trial.cluster.address, "--working-dir", ".", "--", "darkroom", "render",
        "job.yaml",
    )  # fmt: skip
    out, err = ray.communicate(timeout=120)
    assert ray.returncode == 0, out + err
    assert "Nothing to render: all " in out
    assert f"failed     {SHORT.seeds} images in earlier launches" in out


def test_ctrl_c_leaves_the_job_alone(trial: Trial) -> None:
    user = trial.user
    with user.submit() as following:
        assert following.stderr is not None
        assert following.stderr.readline().startswith("submitted  raysubmit_")
        following.send_signal(signal.SIGINT)
        out, err = following.communicate(timeout=180)
    assert following.returncode == 130, out + err
    assert "the job goes on" in err
    status, logs, _ = commands(err)
    assert "Nothing to render: all " in user.ray(*logs).communicate(timeout=180)[0], "it followed the job to its end"
    assert "succeeded" in user.ray(*status).communicate(timeout=180)[0]


def commands(text: str) -> list[list[str]]:
    """What to tell ``ray``: status, logs, stop."""
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("  ray job ")]
    assert [line[1] for line in lines] == ["status", "logs", "stop"]
    return lines


def answer(user: User, *words: str) -> tuple[str, str]:
    """Return what a command prints on stdout, and on stderr."""
    process = user.start(*words, "--address", user.cluster.address)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    return out, err


def test_jobs_are_listed_read_and_stopped(trial: Trial) -> None:
    user = trial.user
    ray = user.ray(
        "job", "submit", "--address", trial.cluster.address, "--no-wait", "--submission-id", "not ours", "--",
        "sh", "-c", "echo here && exec sleep 600",
    )  # fmt: skip
    out, err = ray.communicate(timeout=120)
    assert ray.returncode == 0, out + err
    submit = ("submit", "job.yaml", "--no-wait", "--json", "--model", "/no-such-model")
    ours = json.loads(answer(user, *submit)[0])["job"]
    every, _ = answer(user, "jobs", "list", "--all")
    assert ours in every
    assert "not ours" in every
    listed = json.loads(answer(user, "jobs", "list", "--json")[0])["jobs"]
    assert listed[0]["job"] == ours
    assert "not ours" not in {job["job"] for job in listed}
    stopped = json.loads(answer(user, "jobs", "stop", "not ours", "--json")[0])
    assert stopped.keys() == {"address", *listed[0]}
    assert (stopped["status"], stopped["exit_code"], stopped["darkroom_version"]) == ("STOPPED", 130, None)
    assert answer(user, "jobs", "logs", "not ours")[0] == "here\n"
    assert "no such job" in said(user, "jobs", "logs", "none", "--address", trial.cluster.address, code=2)


def test_workers_log_a_line_for_each_shard(trial: Trial) -> None:
    lines = list(worker_lines(trial.cluster))
    assert {line["event"] for line in lines} <= {"ready", "shard"}
    shards = [line for line in lines if line["event"] == "shard"]
    assert {"time", "level", "job", "launch", "node", "worker", "part", "images", "failed", "seconds"} <= set(shards[0])
    assert len({line["node"] for line in shards}) >= 2


def test_no_credential_is_logged_and_nothing_is_reachable(trial: Trial) -> None:
    listeners = {ip.removeprefix("::ffff:") for ip in trial.cluster.listeners()}
    assert listeners
    assert listeners <= {"127.0.0.1", "::1"}
    logs = trial.cluster.logs()
    assert logs
    for path in logs:
        body = path.read_bytes()
        assert MARK.encode() not in body, path
        assert trial.cluster.token.encode() not in body, path
