"""``darkroom submit`` before a cluster is asked, and after one has answered."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

import jobs.submit
from jobs import render
from pipeline.distributed import address, submit
from pipeline.distributed.job_log import JobLog
from pipeline.distributed.submit import Cluster, Ended, exit_code_of
from pipeline.errors import JobBrokenError
from pipeline.import_path import RAYS_FOLDER
from tests.cluster.nodes import free_port
from tests.test_cli import darkroom
from tests.test_end_to_end import write_manifest

ADDRESS = ("--address", "http://127.0.0.1:1")
OUTPUT = ("-o", "s3://bucket/x")
VARIABLES = {
    ".env": "TOKEN=secret\n",
    "pairs.yaml": "env_vars: [TOKEN=secret]\n",
    "keys.yaml": "env_vars: {TOKEN=secret}\n",
    "null.yaml": "env_vars: {TOKEN: }\n",
    "octal.yaml": "env_vars: {TOKEN: 012}\n",
    "yes.yaml": "env_vars: {TOKEN: yes}\n",
}
"""Runtime environments that are none."""


@pytest.fixture(autouse=True)
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(address, "START_PATIENCE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "m.parquet", [{"prompt": "a"}])
    (tmp_path / "job.yaml").write_text("manifest: m.parquet\noutput: {uri: s3://bucket/x}\n")
    (tmp_path / "env.yaml").write_text("env_vars: {A: b}\n")
    (tmp_path / "list.yaml").write_text("[1]\n")
    for name, text in VARIABLES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


REFUSED = [
    (["job.yaml"], "no cluster is named"),
    (["job.yaml", "--address", "head:8265"], "has no scheme"),
    (["job.yaml", "--address", "ray://head:10001"], "address of a Ray client"),
    (["job.yaml", *ADDRESS], "nothing listens there"),
    (["none.yaml", *ADDRESS], "no such job file"),
    (["--manifest", "none.parquet", *OUTPUT, *ADDRESS], "no such manifest"),
    (["--manifest", "m.parquet", *ADDRESS], "no place for a relative output"),
    (["job.yaml", "--set", "foo=1", *ADDRESS], "unknown key 'foo'"),
    (["job.yaml", "--limit", "1", "--sample", "1", *ADDRESS], "exclude each other"),
    (["job.yaml", "--runtime-env", "none.yaml", *ADDRESS], "cannot be read: No such file"),
    (["job.yaml", "--runtime-env", "list.yaml", *ADDRESS], "this is no runtime environment"),
    (["job.yaml", "--runtime-env", "m.parquet", *ADDRESS], "it is not YAML"),
    (["job.yaml", "--runtime-env", ".env", *ADDRESS], "'.env'"),
    (["job.yaml", "--runtime-env", "pairs.yaml", *ADDRESS], "pairs.yaml, env_vars\n"),
    (["job.yaml", "--runtime-env", "keys.yaml", *ADDRESS], "keys.yaml, env_vars.TOKEN\n"),
    (["job.yaml", "--runtime-env", "null.yaml", *ADDRESS], "null.yaml, env_vars.TOKEN\n"),
    (["job.yaml", "--runtime-env", "octal.yaml", *ADDRESS], "octal.yaml, env_vars.TOKEN\n"),
    (["job.yaml", "--runtime-env", "yes.yaml", *ADDRESS], "yes.yaml, env_vars.TOKEN\n"),
    (["job.yaml", "--image", "x", "--working-dir", ".", *ADDRESS], "ships nothing"),
    (["job.yaml", "--working-dir", "none", *ADDRESS], "no such directory"),
    (["job.yaml", "--working-dir", "sub", *ADDRESS], "not in the directory that is shipped"),
]


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_refused_before_anything_is_submitted(
    words: list[str], says: str, shell: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shell / "sub").mkdir()
    assert darkroom(monkeypatch, "submit", *words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "secret" not in said


def test_rays_own_variable_is_taken_for_the_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{free_port()}")
    assert darkroom(monkeypatch, "submit", "job.yaml") == 2
    assert "nothing listens there" in capsys.readouterr().err


def test_a_job_submitted_in_another_way_is_kept_from_a_relative_output_too(
    shell: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shell / RAYS_FOLDER / "_ray_pkg_0"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert darkroom(monkeypatch, "render", "--manifest", str(shell / "m.parquet"), "-o", "renders/x") == 2
    assert "no place for a relative output" in capsys.readouterr().err
    assert not list(folder.iterdir())


class Taker:
    """A cluster that takes every job, and notes it."""

    address = "http://head:8265"

    def __init__(self) -> None:
        self.words: list[str] = []
        self.shipped: set[str] = set()
        self.environment: dict[str, Any] = {}
        self.folder: str | None = None
        self.linked: list[Path] = []
        self.log, self.end = "the driver's log\n", ended(3)

    def submit(
        self, words: list[str], environment: dict[str, Any], folder: str | None, tell: Callable[[str], None]
    ) -> str:
        self.words, self.environment, self.folder = words, environment, folder
        folder_of_job = Path(environment.get("working_dir", "/no-such-folder"))
        self.linked = [path.readlink() for path in folder_of_job.rglob("*") if path.is_symlink()]
        self.shipped = {
            path.relative_to(folder_of_job).as_posix() for path in folder_of_job.rglob("*") if path.is_file()
        }
        return "raysubmit_1"

    def follow(self, job: str, write: Callable[[str], None]) -> Ended:
        write(self.log)
        return self.end


@pytest.fixture
def taker(monkeypatch: pytest.MonkeyPatch) -> Taker:
    made = Taker()
    monkeypatch.setattr("jobs.following.cluster_at", lambda address, starting: made)
    return made


def submitted(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    return darkroom(monkeypatch, "submit", *words)


def test_without_waiting_rays_commands_are_told(
    taker: Taker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted(monkeypatch, "job.yaml", "--no-wait") == 0
    assert capsys.readouterr().out.splitlines() == [
        "submitted  raysubmit_1 to http://head:8265",
        "  ray job status --address http://head:8265 raysubmit_1",
        "  ray job logs --follow --address http://head:8265 raysubmit_1",
        "  ray job stop --address http://head:8265 raysubmit_1",
    ]


def test_a_job_is_followed_and_its_options_are_passed_on(
    taker: Taker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("job.yaml", "--set", "sweep.seeds=[0, 1]", "--limit", "3", "--runtime-env", "env.yaml")
    assert submitted(monkeypatch, *words) == 3
    assert capsys.readouterr().out == "the driver's log\n"
    assert taker.words == ["darkroom", "render", "job.yaml", "--limit", "3", "--set", "sweep.seeds=[0, 1]"]
    assert taker.shipped == {"darkroom-job/job.yaml", "darkroom-job/m.parquet"}
    assert taker.folder == "darkroom-job"
    assert taker.environment["env_vars"] == {"A": "b"}
    assert not Path(taker.environment["working_dir"]).exists(), "what was shipped is tidied away"


SUMMARY = '{"output": "s3://bucket/x", "launch": null, "added": 0}'
OF_THE_CORE = "[2026-12-01 04:06:03,864 E 20344 20705] core_worker.cc:2465: Actor with class name: 'MapWorker'\n"
RAYS_LINES = (
    "2026-12-01 04:05:53,448\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    "Running entrypoint for job raysubmit_1: cd darkroom-job && exec darkroom render job.yaml\n" + OF_THE_CORE
)
"""What Ray was seen to write into the log of a job."""


@pytest.mark.parametrize(
    ("log", "end", "code", "out"),
    [
        (f"one\n{SUMMARY}\ntwo\n", 3, 3, SUMMARY),
        (f"one\n{SUMMARY}", 0, 0, SUMMARY),
        ("error: no such model\n", 2, 2, '{"job": "raysubmit_1", "address": "http://head:8265", "exit_code": 2'),
        ("one\ntwo", -9, 1, '"exit_code": 1, "error": "the job\'s driver was killed or broke: exit code -9'),
    ],
)
def test_json_stands_alone_on_stdout(
    log: str, end: int, code: int, out: str, taker: Taker, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    taker.log, taker.end = RAYS_LINES + log, ended(end)
    assert submitted(monkeypatch, "job.yaml", "--json") == code
    assert taker.words == ["darkroom", "render", "job.yaml", "--json"]
    said = capsys.readouterr()
    assert isinstance(json.loads(said.out), dict)
    assert out in said.out
    assert set(log.replace(SUMMARY, "").split("\n")) <= set(said.err.split("\n"))
    assert "Running entrypoint" not in said.err
    assert (OF_THE_CORE in said.err) is (code == 1), "lines of Ray's core are shown where the job broke"


def test_a_job_that_is_not_followed_is_told_as_json(
    taker: Taker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted(monkeypatch, "job.yaml", "--no-wait", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "job": "raysubmit_1", "address": "http://head:8265", "exit_code": None, "error": None
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_lines_of_a_log_are_found_in_pieces_of_any_size(size: int) -> None:
    fatal = "[2026-12-01 04:06:03,864 C 20344 20705] core_worker.cc:99:  Check failed: ok\n"
    earlier = SUMMARY.replace("null", '"a"')
    log = f'{RAYS_LINES}one\n{earlier}\n{{"output": 1}}\n{fatal}\n{SUMMARY}\n[two]'
    written = list[str]()
    held = JobLog(written.append, hold_summary=True)
    for start in range(0, len(log), size):
        held.take(log[start : start + size])
    held.close()
    assert held.summary == SUMMARY
    assert "".join(written) == f'one\n{{"output": 1}}\n{fatal}\n{earlier}\n[two]\n'
    assert "".join(f"{line}\n" for line in held.rays) == OF_THE_CORE


def test_every_option_of_render_that_decides_what_is_rendered_is_passed_on(
    taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for ``--prompt``: one picture is made where somebody looks at it."""
    mine = set(inspect.signature(render.render).parameters) - {"address", "prompt", "negative_prompt"}
    assert mine < set(inspect.signature(jobs.submit.submit).parameters)
    words = [
        "--manifest",
        "m.parquet",
        "--model",
        "shapes",
        "--seeds",
        "0-3",
        "--guidance-scales",
        "1,4",
        "--steps",
        "2",
    ]
    words += ["--schedulers", "ddim", "--sizes", "32x32", "--output", "s3://b/x", "--sample", "2", "--skip-bad-rows"]
    words += ["--retry-failed", "--max-images", "9", "--max-cost", "1.5", "--price-per-hour", "2.0", "--rate", "3.0"]
    submitted(monkeypatch, *words)
    assert sorted(taker.words) == sorted(["darkroom", "render", *words])


def test_a_whole_directory_and_an_image(shell: Path, taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell / "sub").mkdir()
    (shell / "sub" / "job.yaml").write_text("manifest: s3://b/m.parquet\noutput: {uri: s3://bucket/x}\n")
    submitted(monkeypatch, "sub/job.yaml", "--working-dir", "sub")
    assert taker.words == ["darkroom", "render", "job.yaml"]
    assert (taker.folder, taker.linked) == ("darkroom-job", [shell / "sub"])
    assert ".env" in taker.environment["excludes"]
    submitted(monkeypatch, "/etc/darkroom/job.yaml", "--image", "registry/darkroom:gpu")
    assert taker.words == ["darkroom", "render", "/etc/darkroom/job.yaml"]
    assert taker.environment == {"image_uri": "registry/darkroom:gpu"}


def ended(exit_code: int | None, *, stopped: bool = False, message: str = "") -> Ended:
    return Ended(stopped=stopped, exit_code=exit_code, message=message)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_the_drivers_codes_come_back(code: int) -> None:
    assert exit_code_of(ended(code)) == code
    assert exit_code_of(ended(None, stopped=True)) == 130


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (ended(127), "the cluster has no `darkroom`"),
        (ended(137), "exit code 137"),
        (ended(-9), "exit code -9"),
        (ended(None, message="runtime_env setup failed:\nno such package"), "did not run: no such package"),
        (ended(None), "Ray does not say why"),
    ],
)
def test_what_else_can_end_a_job_is_said(how: Ended, says: str) -> None:
    with pytest.raises(JobBrokenError, match=says):
        exit_code_of(how)


class Flaky:
    """A job API whose connection breaks now and then. It is asked for a log from the beginning each time."""

    log = "one\ntwo\nthree\nfour\n"

    def __init__(self, breaks: int) -> None:
        self._breaks = breaks
        self.asked = 0

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        self.asked += 1
        await asyncio.sleep(0)
        yield self.log[:6]
        if self.asked <= self._breaks:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield self.log[6:]

    def get_job_info(self, _: str) -> Any:
        class Info:
            status = JobStatus.FAILED
            driver_exit_code = 3
            message = None

        return Info()


class Starting:
    """A job API of a head that has just started, in the words of Ray's client."""

    def __init__(self, after: int, message: str, *, takes_unheard: bool = False) -> None:
        self.left, self.message, self.takes_unheard = after, message, takes_unheard
        self.ids = list[str]()
        self.entrypoint = ""

    def submit_job(
        self, *, entrypoint: str, runtime_env: dict[str, Any], submission_id: str, metadata: dict[str, str]
    ) -> str:
        assert set(metadata) == {"darkroom"}
        self.entrypoint = entrypoint
        self.ids.append(submission_id)
        if self.takes_unheard and len(self.ids) > 1:
            raise RuntimeError(f"ValueError: Job with submission_id {submission_id} already exists.")
        self.left -= 1
        if self.left >= 0:
            raise RuntimeError(f"Request failed with status code 500: {self.message}.")
        return submission_id


def cluster_with(client: Flaky | Starting) -> Cluster:
    cluster = object.__new__(Cluster)
    cluster.address, cluster._client = "http://head:8265", cast("Any", client)
    return cluster


def test_a_broken_connection_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    client, written = Flaky(breaks=3), list[str]()
    assert cluster_with(client).follow("job", written.append).exit_code == 3
    assert "".join(written) == Flaky.log
    assert client.asked == 4


def test_a_cluster_that_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    monkeypatch.setattr(submit, "PATIENCE_S", 0.05)
    with pytest.raises(JobBrokenError, match="answers no more; its job job may go on"):
        cluster_with(Flaky(breaks=10**9)).follow("job", lambda _: None)


def test_a_log_that_cannot_be_written_is_no_fault_of_the_cluster() -> None:
    def full(_: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        cluster_with(Flaky(breaks=0)).follow("job", full)


NO_AGENT = "No available agent to submit job, please try again later"


AGENT_DEAF = "ClientConnectorError: Cannot connect to host 127.0.0.1:52365 ssl:default [Connect call failed]"


@pytest.mark.parametrize("says", [NO_AGENT, AGENT_DEAF])
@pytest.mark.parametrize("takes_unheard", [False, True])
def test_a_head_that_has_just_started_is_asked_again(
    says: str, takes_unheard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was taken although the answer was lost is not submitted twice."""
    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    client, told = Starting(3, says, takes_unheard=takes_unheard), list[str]()
    job = cluster_with(client).submit(["darkroom", "render"], {}, "darkroom-job", told.append)
    assert client.entrypoint == "cd darkroom-job && exec darkroom render"
    assert set(client.ids) == {job}
    assert len(client.ids) == (2 if takes_unheard else 4)
    assert told == ["the cluster does not take jobs yet; trying again for up to 60 s"]


def test_a_head_that_takes_no_job_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    with pytest.raises(JobBrokenError, match="disk full"):
        cluster_with(Starting(1, "disk full")).submit(["darkroom"], {})
    monkeypatch.setattr(submit, "AGENT_PATIENCE_S", 0.05)
    with pytest.raises(JobBrokenError, match=NO_AGENT):
        cluster_with(Starting(10**9, NO_AGENT)).submit(["darkroom"], {})


def test_of_a_directory_the_same_is_left_out_as_by_ray(shell: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Patterns mean the directory that was given, and nothing of it lies where Ray makes it importable."""
    (shell / "sub" / "renders").mkdir(parents=True)
    (shell / "renders").mkdir()
    for name in ("torch.py", "renders/a", "sub/renders/a", "sub/b.log", "kept.log"):
        (shell / name).write_text("")
    (shell / ".gitignore").write_text("*.yaml\n")
    archive = tmp_path_factory.mktemp("made") / "made.zip"
    with ExitStack() as stack:
        environment = {"excludes": ["/renders", "*.log", "!kept.log", ".env"]}
        made = jobs.submit._with_directory(stack, environment, shell)
        create_package(made["working_dir"], archive, include_gitignore=True, excludes=made["excludes"])
    assert set(ZipFile(archive).namelist()) == {
        f"darkroom-job/{name}" for name in (".gitignore", "m.parquet", "kept.log", "torch.py", "sub/renders/a")
    }
