"""Jobs for models with schedulers of every kind: what is the default, what is refused, and which runs continue."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_job
from pipeline.errors import InputError, JobFileError, ManifestError, ModelError, RunMismatchError
from pipeline.identity import RunConstants
from pipeline.model.facts import read_facts
from pipeline.model.own_scheduler import read_own_scheduler
from pipeline.model.resolve import BUILT_IN
from pipeline.output.run import NumericsProfile, Run, read_run, write_run
from pipeline.prepare import Prepared, check_run, prepare
from pipeline.storage.local import LocalStore
from tests import tiny_models

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MakeModel = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> MakeModel:
    """A function that writes a copy of the built-in model with another scheduler, and returns its folder."""

    def make(class_name: str, config: dict[str, Any], written_class: str | None = None) -> str:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        shutil.copytree(BUILT_IN["shapes"], folder, copy_function=os.link)
        index = json.loads((folder / "model_index.json").read_text())
        for path, content in (
            (folder / "model_index.json", {**index, "scheduler": ["diffusers", class_name]}),
            (folder / "scheduler" / "scheduler_config.json", {"_class_name": written_class or class_name, **config}),
        ):
            path.unlink()
            path.write_text(json.dumps(content))
        return str(folder)

    return make


def planned(model: str, *schedulers: str, **columns: list[Any]) -> Prepared:
    """Return the prepared job; without ``schedulers`` the model's own is the default."""
    manifest = Path(model).parent / "m.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], **columns}), manifest)
    keys: list[tuple[str, Any]] = [("manifest", str(manifest)), ("model.id", model)]
    keys += [("sweep.schedulers", list(schedulers))] if schedulers else []
    return prepare(load_job(None, keys, date(2026, 1, 1)))


def run_of(constants: RunConstants) -> Run:
    return Run(
        model_id="m",
        model_revision=None,
        constants=constants,
        numerics=NumericsProfile(rows=8, compiled=False, threads=1, device="cpu", versions={}),
        job={},
        created_at="",
        darkroom_version="",
    )


@pytest.mark.parametrize(
    ("class_name", "config", "says"),
    [
        (
            "TCDScheduler",
            BETAS,
            r"not supported, and the job names no other.*value: +'TCDScheduler'.*one of ddim, ddpm",
        ),
        ("PNDMScheduler", BETAS, r"variant of PNDMScheduler.*skip_prk_steps\n.*False"),
        ("DPMSolverMultistepScheduler", {**BETAS, "algorithm_type": "dpmsolver"}, r"variant of.*'dpmsolver'\n"),
        ("UniPCMultistepScheduler", {**BETAS, "solver_type": "bh3"}, r"cannot make a UniPC.*solver_type\n.*'bh3'"),
    ],
)
def test_an_own_scheduler_without_a_name_stops_only_who_uses_it(
    model: MakeModel, class_name: str, config: dict[str, Any], says: str
) -> None:
    folder = model(class_name, config)
    with pytest.raises(ModelError, match=f"(?s){says}"):
        planned(folder)
    assert planned(folder, "euler", "ddim").axes.schedulers == ("euler", "ddim")
    keys = [("manifest", f"{folder}/../m.parquet"), ("model.id", folder), ("model.scheduler", "lms")]
    assert prepare(load_job(None, keys, date(2026, 1, 1))).axes.schedulers == ("lms",)


def test_a_scheduler_class_that_does_not_exist_is_refused(model: MakeModel) -> None:
    with pytest.raises(ModelError, match=r"(?s)no class of this name.*'NoSuchScheduler'"):
        planned(model("NoSuchScheduler", BETAS), "euler")


def test_a_scheduler_whose_package_is_absent_is_refused(model: MakeModel) -> None:
    with pytest.raises(ModelError, match=r"(?s)without the package torchsde.*'DPMSolverSDEScheduler'"):
        planned(model("DPMSolverSDEScheduler", BETAS), "euler")


def test_settings_that_a_scheduler_cannot_work_with_are_found_by_plan(model: MakeModel) -> None:
    folder = model("DDIMScheduler", {**BETAS, "prediction_type": "sample"})
    planned(folder, "ddim", "euler")
    with pytest.raises(ModelError, match=r"(?s)kdpm2 cannot work.*prediction_type\n.*'sample'.*epsilon, v_prediction;"):
        planned(folder, "kdpm2")
    with pytest.raises(
        ManifestError, match=r"row 1 .*column scheduler: the scheduler cannot work with the model's pred"
    ):
        planned(folder, scheduler=[None, "pndm"])
    with pytest.raises(ModelError, match=r"(?s)ddim cannot work.*prediction_type\n.*'velocity'"):
        planned(model("DDIMScheduler", {**BETAS, "prediction_type": "velocity"}))
    folder = model("DDIMScheduler", {**BETAS, "use_karras_sigmas": True, "use_beta_sigmas": True})
    planned(folder, "ddim", "euler:karras")
    with pytest.raises(ModelError, match=r"(?s)euler cannot work.*use_beta_sigmas"):
        planned(folder, "euler")
    with pytest.raises(ModelError, match="num_train_timesteps"):
        planned(model("DDIMScheduler", {**BETAS, "num_train_timesteps": "1000"}), "euler")


def test_a_scheduler_that_cannot_work_with_the_model_is_offered_in_no_error(tmp_path: Path) -> None:
    """Stable Diffusion 3.5 with a shift by size: Heun by flow matching fails there, and with a fixed shift it works."""
    refused: list[tuple[type[InputError], Callable[[str], Prepared]]] = [
        (JobFileError, lambda folder: planned(folder, "ddim")),
        (ManifestError, lambda folder: planned(folder, scheduler=[None, "ddim"])),
    ]
    fixed, dynamic = (
        str(tiny_models.save(tiny_models.stable_diffusion_3(dynamic_shifting=shifting), tmp_path / str(shifting)))
        for shifting in (False, True)
    )
    for kind, plan_on in refused:
        with pytest.raises(kind, match="flow_match_euler, flow_match_heun"):
            plan_on(fixed)
        with pytest.raises(kind, match="flow_match_euler") as caught:
            plan_on(dynamic)
        assert "flow_match_heun" not in str(caught.value)
    with pytest.raises(ModelError, match="flow_match_heun cannot work with this setting"):
        planned(dynamic, "flow_match_heun")
    with pytest.raises(ManifestError, match="cannot work with the model's use_dynamic_shifting of True"):
        planned(dynamic, scheduler=[None, "flow_match_heun"])


def test_keys_that_no_scheduler_takes_are_warned_about(model: MakeModel) -> None:
    config = {**BETAS, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
    assert planned(model("EulerDiscreteScheduler", config)).warnings == ()
    (warning,) = planned(model("EulerDiscreteScheduler", {**config, "predict_epsilon": True})).warnings
    assert warning.endswith("scheduler_config.json: predict_epsilon")


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "StableDiffusionPipeline": (
        "PNDMScheduler",
        {
            **BETAS,
            "clip_sample": False,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
        },
    ),
    "StableDiffusionXLPipeline": (
        "EulerDiscreteScheduler",
        {
            **BETAS,
            "clip_sample": False,
            "interpolation_type": "linear",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "trained_betas": None,
            "use_karras_sigmas": False,
        },
    ),
    "StableDiffusion3Pipeline": ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0}),
    "FluxPipeline": (
        "FlowMatchEulerDiscreteScheduler",
        {
            "base_image_seq_len": 256,
            "base_shift": 0.5,
            "max_image_seq_len": 4096,
            "max_shift": 1.15,
            "num_train_timesteps": 1000,
            "shift": 3.0,
            "use_dynamic_shifting": True,
        },
    ),
    "PixArtSigmaPipeline": (
        "DPMSolverMultistepScheduler",
        {"beta_end": 0.02, "beta_start": 0.0001, "beta_schedule": "linear", "solver_order": 2, "steps_offset": 0},
    ),
}
"""The schedulers of well-known models."""


@pytest.mark.parametrize("pipeline_class", PUBLISHED)
def test_nothing_is_added_to_the_digest_of_well_known_models(tmp_path: Path, pipeline_class: str) -> None:
    class_name, config = PUBLISHED[pipeline_class]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": class_name, **config}))
    own = read_own_scheduler(tmp_path, {"_class_name": pipeline_class, "scheduler": ["diffusers", class_name]})
    assert own.name is not None
    assert (own.config, own.reading, own.warnings) == (config, {}, ())


def test_nothing_is_added_to_the_digest_of_the_built_in_model() -> None:
    facts = read_facts(BUILT_IN["shapes"])
    assert (facts.scheduler, facts.own_scheduler.reading, facts.own_scheduler.warnings) == ("ddim", {}, ())
    assert len(facts.scheduler_config) == 15


def test_a_run_begun_under_the_files_class_needs_its_scheduler_named(model: MakeModel) -> None:
    config = {**BETAS, "steps_offset": 1, "clip_sample": False}
    folder = model("DDIMScheduler", config, written_class="EulerDiscreteScheduler")
    begun = run_of(RunConstants(model_fingerprint="0" * 32, dtype="float32", scheduler_config=config))
    default, named = planned(folder), planned(folder, "euler")
    assert default.axes.schedulers == ("ddim",)
    assert "the index counts, as in diffusers" in default.warnings[0]
    for job, fits in ((default, False), (named, True), (planned(folder, "euler", scheduler=[None, "ddim"]), False)):
        if fits:
            check_run(begun, job, "out", "0" * 32)
            continue
        with pytest.raises(RunMismatchError, match=r"(?s)names: euler; now .*: ddim.*allowed: .*such as \[euler\]"):
            check_run(begun, job, "out", "0" * 32)
    new = run_of(named.constants("0" * 32, "float32"))
    assert new.constants.scheduler_config == {**config, "_class_name": "DDIMScheduler"}
    check_run(new, default, "out", "0" * 32)
    with pytest.raises(RunMismatchError, match="model_fingerprint"):
        check_run(begun, default, "out", "1" * 32)


def test_a_run_begun_without_the_pipelines_corrections_draws_with_others_only(model: MakeModel) -> None:
    folder = model("DDIMScheduler", BETAS)
    begun = run_of(RunConstants(model_fingerprint="0" * 32, dtype="float32", scheduler_config=BETAS))
    default = planned(folder)
    wanted = default.constants("0" * 32, "float32")
    assert wanted.scheduler_config == {**BETAS, "_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False}
    assert wanted.digest() != begun.constants.digest()
    with pytest.raises(
        RunMismatchError, match=r"(?s)steps_offset 1, clip_sample False; images would differ.*without ddim"
    ):
        check_run(begun, default, "out", "0" * 32)
    check_run(begun, planned(folder, "euler", "ddim:trailing"), "out", "0" * 32)
    check_run(run_of(wanted), planned(folder, "euler"), "out", "0" * 32)


def test_infinity_in_a_configuration_has_a_digest_and_is_read_back(model: MakeModel, tmp_path: Path) -> None:
    """Every DPM-Solver++ and SASolver that diffusers saves has one."""
    config = {**BETAS, "lambda_min_clipped": -float("inf"), "odd": [float("inf"), float("nan")]}
    folder = model("DPMSolverMultistepScheduler", config)
    assert "-Infinity" in (Path(folder) / "scheduler" / "scheduler_config.json").read_text()
    prepared = planned(folder)
    run = run_of(prepared.constants("0" * 32, "float32"))
    store = LocalStore(tmp_path / "out")
    write_run(store, run)

    def no_such_word(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    written = json.loads(store.get("_darkroom/run.json"), parse_constant=no_such_word)
    assert written["constants"]["scheduler_config"]["lambda_min_clipped"] == {"float": "-Infinity"}
    read = read_run(store)
    assert read is not None
    assert read.constants.scheduler_config["lambda_min_clipped"] == -float("inf")
    assert read.constants.digest() == run.constants.digest()
    check_run(read, prepared, "out", "0" * 32)
