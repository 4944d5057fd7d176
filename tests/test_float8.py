"""Jobs with ``model.precision: fp8`` on machines that cannot compute it, and runs that began with it or without it."""

import json
import shlex
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import api
from pipeline.config import load_job
from pipeline.distributed import launch as launching
from pipeline.distributed.binding import ModelFiles, bind, find_model
from pipeline.distributed.spec import Device, Pool
from pipeline.errors import JobFileError
from pipeline.output.finalize import finalize
from pipeline.output.layout import Packing
from pipeline.output.run import Run, read_run
from pipeline.prepare import Prepared, prepare
from pipeline.rendering.loading import load_model
from pipeline.rendering.precision import check_float8
from pipeline.storage.local import LocalStore
from tests.rendering.test_precision import TORCHAO
from tests.test_explain import Command, darkroom
from tests.test_output import FACTS, commit, rendered
from tests.tiny_models import save, stable_diffusion

__all__ = ["darkroom"]  # a fixture

GPU, CPU = Device(name="NVIDIA H200", memory_bytes=80 * 2**30), Device(name="cpu", memory_bytes=None)
ON_GPU, ON_CPU = Pool(workers=1, gpus=1, cpus=1), Pool(workers=1, gpus=0, cpus=1)
NO_GPU = "fp8 needs NVIDIA GPUs of compute capability 8.9 or higher (Ada, Hopper or newer)"
NOT_INSTALLED = "fp8 needs torchao, which is not installed"


@pytest.fixture(autouse=True)
def torchao_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TORCHAO)


def hide_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [place for place in sys.path if place != str(TORCHAO)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(stable_diffusion(), tmp_path_factory.mktemp("model"))


class Place:
    """A folder with a manifest, a model and an output."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.store = folder, model, LocalStore(folder / "out")
        pq.write_table(pa.table({"prompt": ["a cat"]}), folder / "m.parquet")

    def job(self, precision: str | None, dtype: str = "auto") -> Prepared:
        told = {"manifest": str(self.folder / "m.parquet"), "output.uri": self.store.uri, "model.id": str(self.model),
                "model.dtype": dtype, "model.precision": precision}  # fmt: skip
        return prepare(load_job(None, list(told.items()), date(2026, 1, 1)))

    def words(self, precision: str | None) -> list[str]:
        """What follows a verb on a command line that is about the same job."""
        given = [] if precision is None else ["--set", f"model.precision={precision}"]
        return ["--manifest", str(self.folder / "m.parquet"), "--model", str(self.model), *given]

    def bind(self, prepared: Prepared, pool: Pool, device: Device) -> Run:
        known = read_run(self.store)
        return bind(self.store, known, known, prepared, self.files(prepared), pool, device, print)

    def files(self, prepared: Prepared) -> ModelFiles:
        return find_model(prepared, None, self.folder / "cache", print)

    def run(self, precision: str | None) -> tuple[Run, str]:
        """A run with an image, as GPUs would have made it, and where the image is."""
        run = self.bind(self.job(precision, "bfloat16"), ON_GPU, GPU)
        facts = replace(
            FACTS,
            model_id=str(self.model),
            dtype="bfloat16",
            model_fingerprint=run.constants.model_fingerprint,
            packing=Packing(provenance="full", columns="readable"),
        )
        rows = commit(self.store, rendered(1), facts=facts)
        return run, f"{self.store.uri}/{rows['file_name'][0].as_py()}"


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Place:
    return Place(tmp_path, model)


def test_a_cluster_without_gpus_is_refused_and_nothing_is_bound(place: Place) -> None:
    with pytest.raises(JobFileError) as refused:
        place.bind(place.job("fp8"), ON_CPU, CPU)
    assert (refused.value.what, refused.value.where) == (NO_GPU, "workers.gpus")
    assert refused.value.value == "'auto, and there is no GPU'"
    assert list(place.store.list("")) == []
    constants = place.bind(place.job("fp8"), ON_GPU, GPU).constants
    assert (constants.precision, constants.dtype) == ("fp8", "bfloat16")
    bound = place.store.get("_darkroom/run.json")
    assert "torchao" in json.loads(bound)["numerics"]["versions"]
    with pytest.raises(JobFileError, match="and there is no GPU"):
        place.bind(place.job("fp8"), ON_CPU, CPU)
    assert place.store.get("_darkroom/run.json") == bound


@pytest.mark.parametrize(
    ("began", "goes_on", "says"),
    [
        ("fp8", None, "precision: the run has 'fp8', this job None"),
        (None, "fp8", "precision: the run has None, this job 'fp8'"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "render"])
def test_a_run_goes_on_with_its_own_precision_only(
    began: str | None, goes_on: str | None, says: str, verb: str, place: Place, darkroom: Command
) -> None:
    place.run(began)
    before = {info.key: place.store.get(info.key) for info in place.store.list("")}
    code, _, errors = darkroom(verb, *place.words(goes_on), "-o", place.store.uri)
    assert code == 2
    assert f"this output holds a run made with other settings: {says}" in errors
    assert "another output.uri" in errors
    assert {info.key: place.store.get(info.key) for info in place.store.list("")} == before


def test_an_image_in_float8_says_so_and_is_asked_for_again(
    place: Place, darkroom: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``explain`` and the command it prints, and the dataset card."""
    run, image = place.run("fp8")
    code, said, _ = darkroom("explain", image)
    assert code == 0
    assert f"model      {place.model}, bfloat16 and fp8, fingerprint" in said
    assert f"torchao {run.numerics.versions['torchao']}" in said
    finalize(place.store)
    assert "fp8" in place.store.get("README.md").decode()
    facts = json.loads(darkroom("explain", image, "--json")[1])
    assert facts["precision"] == "fp8"
    _, *words = shlex.split(facts["again"])
    caught: list[Prepared] = []

    def caught_launch(prepared: Prepared, *_: object) -> None:
        caught.append(prepared)
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "launch", caught_launch)
    monkeypatch.chdir(place.folder)
    assert darkroom(*words)[0] == 130
    again = caught[0].constants(place.files(caught[0]).fingerprint, caught[0].job.model.dtype)
    assert again.digest() == run.constants.digest()
    hide_torchao(monkeypatch)
    code, _, errors = darkroom(*words)
    assert (code, NOT_INSTALLED in errors) == (2, True)


def test_what_renders_here_is_refused_before_a_model_is_loaded(
    place: Place, darkroom: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``verify --rerender``, ``calibrate`` and ``draw`` on this machine, which has no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place.run("fp8")
    for words in (["verify", place.store.uri, "--rerender", "1"], ["calibrate", *place.words("fp8")]):
        code, _, errors = darkroom(*words)
        assert code == 2, words
        assert NO_GPU in errors
        assert "value:   'fp8 on cpu'" in errors
    with pytest.raises(JobFileError, match=r"compute capability 8\.9"):
        list(api.draw(place.job("fp8").job))


def test_without_torchao_every_verb_says_what_to_install(
    place: Place, darkroom: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.run("fp8")
    hide_torchao(monkeypatch)
    for words in (
        ["verify", place.store.uri, "--rerender", "1"],
        ["calibrate", *place.words("fp8")],
        ["plan", *place.words("fp8")],
        ["render", *place.words("fp8")],
    ):
        code, _, errors = darkroom(*words)
        assert code == 2, words
        assert NOT_INSTALLED in errors
        assert "pip install -c constraints.txt torchao" in errors


def test_a_node_without_torchao_is_found_before_the_model_is_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_torchao(monkeypatch)
    with pytest.raises(JobFileError, match=NOT_INSTALLED):
        load_model(model, dtype="bfloat16", device="cuda", precision="fp8")


@pytest.mark.parametrize(
    ("capability", "cuda", "computes"),
    [
        ((7, 5), "13.0", False), ((8, 0), "13.0", False), ((8, 6), "13.0", False), ((9, 4), None, False),
        ((8, 9), "13.0", True), ((9, 0), "13.0", True), ((10, 0), "13.0", True), ((12, 0), "13.0", True),
    ],
)  # fmt: skip
def test_old_gpus_and_those_without_cuda_are_refused(
    capability: tuple[int, int], cuda: str | None, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if computes:
        check_float8("bfloat16", "cuda")
        return
    with pytest.raises(JobFileError, match=r"compute capability 8\.9") as refused:
        check_float8("bfloat16", "cuda")
    assert refused.value.value == f"'fp8 on Some GPU, compute capability {capability[0]}.{capability[1]}'"
    assert "leave model.precision out" in str(refused.value.allowed)
