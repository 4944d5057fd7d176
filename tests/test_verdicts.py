"""What is said of a picture: by its numbers, and by the safety checker that its model came with."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from benchmarks.pretend_gpu import CUDA, PretendGpu
from jobs.render import _as_text
from pipeline.config import load_job
from pipeline.distributed.outcomes import Tally, Teller, Worked
from pipeline.distributed.report import Report
from pipeline.distributed.runner import LeaseRunner
from pipeline.errors import JobFileError, ManifestError, ModelError
from pipeline.manifest.blocklist import blocklist_of
from pipeline.model.check import check_checker
from pipeline.model.files import has_checker
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.selection import patterns_of_files
from pipeline.output.finalize import Finalized, finalize
from pipeline.output.part import PartWriter
from pipeline.output.verdicts import verdict_of
from pipeline.planning.amount import Amount
from pipeline.prepare import Prepared, prepare
from pipeline.rendering.engine import Engine
from pipeline.rendering.judge import Judge
from pipeline.rendering.loading import DTYPES, load_model
from pipeline.rendering.results import Outcome
from pipeline.rendering.safety import SafetyChecker, load_checker
from pipeline.storage.local import LocalStore
from tests import tiny_models
from tests.noise import noise
from tests.test_end_to_end import Darkroom
from tests.test_outcomes import metadata
from tests.test_output import FACTS, commit, rendered
from tests.test_runner import shard_of

NEVER, ALWAYS = 1.5, -1.5


def shaded(*values: int) -> NDArray[np.uint8]:
    return np.tile(np.array(values, np.uint8), (8, 8, 1))


def with_dot(pixels: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
    dotted = pixels.copy()
    dotted[3, 4, 1] = value
    return dotted


@pytest.mark.parametrize(
    ("pixels", "verdict"),
    [
        (shaded(0, 0, 0), "black"), (shaded(5, 3, 0), "black"), (with_dot(shaded(0, 0, 0), 6), "ok"),
        (shaded(6, 0, 0), "flat"), (shaded(255, 255, 255), "flat"), (shaded(200, 10, 90), "flat"),
        (with_dot(shaded(90, 90, 90), 92), "flat"), (with_dot(shaded(90, 90, 90), 93), "ok"),
        (with_dot(shaded(90, 90, 90), 87), "ok"), (noise(0), "ok"),
    ],
)  # fmt: skip
def test_black_and_flat(pixels: NDArray[np.uint8], verdict: str) -> None:
    assert verdict_of(pixels) == verdict


def test_verdicts_are_in_the_metadata_and_the_picture_stays(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    pictures = {1: shaded(0, 0, 0), 2: shaded(9, 9, 9), 3: noise(3)[:8, :8], 4: noise(4)[:8, :8]}
    outcomes = [replace(rendered(number), pixels=pixels, flagged=number == 4) for number, pixels in pictures.items()]
    rows = commit(store, *outcomes)
    assert rows["verdict"].to_pylist() == ["black", "flat", "ok", "flagged"]
    assert rows["status"].to_pylist() == ["ok"] * 4
    finalize(store)
    assert pq.read_table(tmp_path / "metadata.parquet")["verdict"].to_pylist() == ["black", "flat", "ok", "flagged"]
    assert len(list(store.list("images/"))) == 4


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """The same model with checkers of any severity."""
    made: dict[float, Path] = {}

    def model(threshold: float) -> Path:
        if threshold not in made:
            tiny = tiny_models.with_checker(tiny_models.stable_diffusion(), threshold)
            made[threshold] = tiny_models.save(tiny, tmp_path_factory.mktemp("model"))
        return made[threshold]

    return model


def judge_of(model: Path, *, drop: bool = False) -> Judge:
    return Judge(load_checker(model, dtype="float32", device="cpu"), drop=drop)


def run(model: Path, folder: Path, judge: Callable[[Outcome], Outcome]) -> pa.Table:
    store = LocalStore(folder)
    engine = Engine(load_model(model, dtype="float32", device="cpu"), 4)
    runner = LeaseRunner(engine, lambda shard: PartWriter(store, shard, FACTS), judge)
    rows = runner.submit(shard_of(1, 2, 3)).result(timeout=60)
    runner.close()
    return rows


def test_flagged_pictures_are_kept_or_dropped(model_of: Callable[[float], Path], tmp_path: Path) -> None:
    plain = run(model_of(ALWAYS), tmp_path / "plain", lambda outcome: outcome)
    assert set(plain["verdict"].to_pylist()) == {"ok"}
    never = run(model_of(NEVER), tmp_path / "never", judge_of(model_of(NEVER)))
    assert set(never["verdict"].to_pylist()) == {"ok"}
    kept = run(model_of(ALWAYS), tmp_path / "kept", judge_of(model_of(ALWAYS)))
    assert (set(kept["verdict"].to_pylist()), set(kept["status"].to_pylist())) == ({"flagged"}, {"ok"})
    assert kept["pixel_sha256"].to_pylist() == plain["pixel_sha256"].to_pylist(), "never blackened"
    dropped = run(model_of(ALWAYS), tmp_path / "dropped", judge_of(model_of(ALWAYS), drop=True))
    assert set(dropped["status"].to_pylist()) == {"failed"}
    assert set(dropped["verdict"].to_pylist()) == {"flagged"}
    assert dropped["error"][0].as_py() == "check: Flagged: the model's safety checker flagged it"
    assert not (tmp_path / "dropped" / "images").exists()


def test_the_checker_says_what_it_says_in_the_stock_pipeline(model_of: Callable[[float], Path]) -> None:
    pictures = [
        noise(0),
        noise(1)[:64, :48],
        shaded(0, 0, 0),
        shaded(250, 10, 10),
        *(noise(n) // n for n in range(2, 9)),
    ]
    seen = set()
    for threshold in (0.3, 0.4, 0.5, 0.6):
        checker = load_checker(model_of(threshold), dtype="float32", device="cpu")
        assert checker is not None
        stock = StableDiffusionPipeline.from_pretrained(model_of(threshold))
        for picture in pictures:
            _, (theirs,) = stock.run_safety_checker(picture[None].astype(np.float32) / 255, "cpu", stock.dtype)
            assert checker.flagged(picture) is bool(theirs)
            seen.add(theirs)
    assert seen == {True, False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_checker_waits_for_the_gpu_three_times_per_image(model_of: Callable[[float], Path], dtype: str) -> None:
    """To send the image and to fetch two tables of distances; the reference also fetches 20 thresholds one by one.

    The thresholds here are numbers that half precision rounds.
    """
    seen = set()
    for threshold in (0.31, 0.47, 0.53):
        stock, other = (StableDiffusionPipeline.from_pretrained(model_of(threshold), dtype=DTYPES[dtype]) for _ in "ab")
        with PretendGpu() as gpu:
            for network in (stock.safety_checker, other.safety_checker):
                gpu.send_module(network)
            checker = SafetyChecker(other.safety_checker, other.feature_extractor)
            for picture in (noise(0), shaded(250, 10, 10), noise(3) // 3):
                gpu.reset()
                _, (flag,) = stock.run_safety_checker(picture[None].astype(np.float32) / 255, CUDA, DTYPES[dtype])
                waits = gpu.waits
                gpu.reset()
                assert checker.flagged(picture) is bool(flag)
                assert (waits, gpu.waits) == (23, 3)
                seen.add(flag)
    assert seen == {True, False}


def test_a_launch_says_what_was_flagged(
    model_of: Callable[[float], Path], tmp_path: Path, shared_ray: Mapping[str, str]
) -> None:
    darkroom = Darkroom(tmp_path, shared_ray)
    words = (
        "render",
        "--prompt",
        "a star",
        "--model",
        str(model_of(ALWAYS)),
        "--seeds",
        "0-2",
        "--steps",
        "2",
        "-o",
        "out",
    )
    said = darkroom.run(*words, "--set", "workers.count=1", "--set", "render.safety_checker=drop", code=3)
    assert "verdicts   3 flagged\n" in said
    assert "check: Flagged: the model's safety checker flagged it" in said
    assert "failed     3 images" in darkroom.run("status", "out")


def test_a_model_without_a_checker(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.stable_diffusion(), tmp_path)
    assert not has_checker(model)
    assert load_checker(model, dtype="float32", device="cpu") is None
    check_checker(model)


def test_the_checker_is_trusted_no_more_than_the_rest(model_of: Callable[[float], Path], tmp_path: Path) -> None:
    """And its weights are no part of what makes the pixels."""
    model = shutil.copytree(model_of(NEVER), tmp_path / "model")
    check_checker(model)
    before = fingerprint(model, DigestCache(tmp_path / "cache"))
    weights = model / "safety_checker" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    assert fingerprint(model, DigestCache(tmp_path / "cache")) == before
    for look in (check_checker, lambda folder: load_checker(folder, dtype="float32", device="cpu")):
        with pytest.raises(ModelError, match="pickled weights are refused"):
            look(model)
    with pytest.raises(ModelError) as caught:
        check_checker(model)
    assert "render.safety_checker: off" in (caught.value.allowed or "")
    shutil.rmtree(model / "safety_checker")
    assert not has_checker(model), "some models name one and come without"


INDEX = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}


def test_the_hub_is_asked_for_it_only_when_it_is_wanted() -> None:
    assert "safety_checker/*.json" not in patterns_of_files(INDEX, ("json",))
    assert {"safety_checker/*.json", "feature_extractor/*.json"} <= {*patterns_of_files(INDEX, ("json",), checked=True)}
    other = {**INDEX, "safety_checker": ["mine", "Checker"]}
    assert patterns_of_files(other, ("json",), checked=True) == patterns_of_files(other, ("json",))


def job_for(folder: Path, **settings: str) -> Prepared:
    pq.write_table(
        pa.table({"prompt": ["a red star", "A Nasty-Thing, here", "nastything", "Ärger"]}), folder / "m.parquet"
    )
    given = [
        ("manifest", str(folder / "m.parquet")),
        *((key.replace("__", "."), value) for key, value in settings.items()),
    ]
    return prepare(load_job(None, given, date(2026, 1, 1)), skip_bad_rows="prompts__blocklist" in settings)


def test_drop_needs_a_checker(tmp_path: Path) -> None:
    for policy in ("flag", "off"):
        assert job_for(tmp_path, render__safety_checker=policy).source.checked is (policy == "flag")
    with pytest.raises(JobFileError, match="has no safety checker"):
        job_for(tmp_path, render__safety_checker="drop")


def test_counts_are_in_the_report() -> None:
    tally, teller = Tally.of(Amount()), Teller(worker="a", model_load="b")
    ones = pa.array([1] * 4, pa.uint32())
    shard = pa.table(
        {"task_id": [bytes([n]) * 16 for n in range(4)], "evaluations": ones, "width": ones, "height": ones}
    )
    rows = metadata(0, 0)
    rows = pa.Table.from_pylist(
        [
            {"task_id": (bytes([n]) * 16).hex(), "status": "ok", "verdict": verdict}
            for n, verdict in enumerate(["ok", "black", "flat", "black"])
        ],
        schema=rows.schema,
    )
    tally.take(teller.told(rows, shard, Worked()), 0.0)
    assert tally.verdicts == {"black": 2, "flat": 1}
    report = Report(
        output_uri="out", finalized=Finalized(ok=4, failed=0, parts=1), ok=4, verdicts=tally.verdicts, images_per_s=4.0
    )
    assert "verdicts   2 black, 1 flat\n" in f"{_as_text(report)}\n"
    assert "verdicts" not in _as_text(replace(report, verdicts={}))


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a nasty thing", "nasty thing"), ("A NASTY, thing!", "nasty thing"), ("nasty-thing", "nasty thing"),
        ("a nasty little thing", None), ("nastything", None), ("a gun", "gun"), ("begun", None), ("GUN", "gun"),
        ("the guns", None), ("ÄRGER", "ärger"), ("arger", None), ("ｇｕｎ", "gun"), ("straße", "strasse"), ("", None),
        ("a comment", None), ("nasty\nthing", "nasty thing"), ("a 🔫", None),
        ("nasty_thing", "nasty thing"), ("a _gun_", "gun"),
    ],
)  # fmt: skip
def test_blocked_terms_are_whole_words(prompt: str, found: str | None) -> None:
    terms = blocklist_of(["Nasty Thing # a comment", "gun", "", "# comment", "  ", "ärger", "strasse", "🔫"])
    assert terms.found_in(prompt) == found


def test_rows_with_blocked_terms_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("\ufeffnasty thing\n# more\närger\n", "utf-8")
    prepared = job_for(tmp_path, prompts__blocklist=str(tmp_path / "blocked.txt"))
    assert [(row.row, row.reason) for row in prepared.rejected] == [
        (1, "blocked term 'nasty thing'"),
        (3, "blocked term 'ärger'"),
    ]
    assert prepared.count.rows == 2
    given = load_job(
        None,
        [("manifest", str(tmp_path / "m.parquet")), ("prompts.blocklist", str(tmp_path / "blocked.txt"))],
        date(2026, 1, 1),
    )
    with pytest.raises(ManifestError, match="2 of 4 manifest rows cannot be used"):
        prepare(given)


@pytest.mark.parametrize("body", [None, b"\xff\xfe"])
def test_block_lists_that_cannot_be_read(tmp_path: Path, body: bytes | None) -> None:
    if body is not None:
        (tmp_path / "list.txt").write_bytes(body)
    with pytest.raises(JobFileError) as caught:
        job_for(tmp_path, prompts__blocklist=str(tmp_path / "list.txt"))
    assert caught.value.where == "prompts.blocklist"
