"""Job files that cannot be used: one block in our own words, whatever is wrong with them."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.config import Job, load_job, parse_setting
from pipeline.errors import InputError, JobFileError

TODAY = date(2026, 1, 2)


def job_of(folder: Path, text: str) -> Job:
    (folder / "job.yaml").write_text(f"manifest: a\n{text}\n")
    return load_job(folder / "job.yaml", [], TODAY)


def set_to(*settings: str) -> Job:
    return load_job(None, [("manifest", "a"), *map(parse_setting, settings)], TODAY)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sweep.seeds: 0-3", "unknown key 'sweep.seeds'; it belongs under `sweep`: write `sweep: {seeds: …}`"),
        ("seeds: 0-3", "unknown key 'seeds'; it belongs under `sweep`"),
        ("foo.bar: 1", "unknown key 'foo.bar'"),
        (
            "foo: 1\nrender: {rowz: 1, rows: 1}",
            "unknown key 'rowz'; did you mean 'rows'? (wrong too: foo, render.rows)",
        ),
        ("model: {loras: [{id: a, wieght: 1}]}", "unknown key 'wieght'; did you mean 'weight'?"),
        ("1: 2", "unknown key '1'"),
        ("sweep: {1: 2}", "unknown key '1'"),
        ("sweep: {steps: 1, num_inference_steps: 1}", "steps is short for num_inference_steps"),
        ("output: {uri: ''}", "output.uri"),
        ("output: {uri: ' '}", "output.uri"),
        ("output: {license: CC BY 4.0}", "output.license"),
        ("output: {license: 4.0}", "output.license"),
        ("sweep: {seeds: 0x_}", "line 2, column 16"),
        ("sweep: {seeds: !!timestamp 2024-13-45}", "line 2, column 16"),
        ("sweep: {? {a: 1} : 2}", "unhashable key"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("model: {loras: [{weight: 1}]}", "no model.loras[0].id"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(JobFileError) as caught:
        job_of(tmp_path, text)
    assert says in str(caught.value)
    assert "job.yaml" in str(caught.value.where)
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("setting", "where", "allowed"),
    [
        ("foo.bar=1", "foo", "manifest, model"),
        ("output.uri=''", "output.uri", "a local path"),
        ("sweep.sizes=²x8", "sweep.sizes", "[width, height] in px"),
        ("sweep.sizes=[true, 128]", "sweep.sizes", "[width, height] in px"),
        ("sweep.seeds={random: true}", "sweep.seeds", "a whole number"),
        (f"sweep.seeds=0-{'9' * 400}", "sweep.seeds", "at most 18446744073709551615"),
        (f"sweep.seeds=0x{'f' * 5000}", "sweep.seeds", "a whole number"),
        ("sweep=3", "sweep", "a mapping with the keys seeds"),
        ("model.call={a: [1]}", "model.call", "a mapping of names"),
        ("model.loras=3", "model.loras", "a list of {id, weight, file, revision}"),
        ("model.loras=[{id: a, weight: true}]", "model.loras[0].weight", "a number"),
        ("manifest_columns={1: prompt}", "manifest_columns", "a mapping"),
        ("workers.gpus=true", "workers.gpus", "auto, or a number from 0"),
        ("workers.gpus=.nan", "workers.gpus", "auto, or a number from 0"),
        ("output.layout=tar", "output.layout", "files, webdataset or parquet"),
        ("output.format=jpg", "output.format", "png, webp or jpeg"),
        ("output.jpeg_quality=0", "output.jpeg_quality", "a whole number from 1 to 100"),
        ("output.jpeg_quality=101", "output.jpeg_quality", "a whole number from 1 to 100"),
        ("workers.count=0", "workers.count", "auto, a whole number from 1, or {min, max}"),
        ("workers.count={min: 4, max: 2}", "workers.count", "min up to max"),
        ("workers.count={min: 4}", "workers.count", "auto, a whole number from 1, or {min, max}"),
        ("workers.count={max: 0}", "workers.count", "auto, a whole number from 1, or {min, max}"),
        ("render.rows=1", "render.rows", "auto, or a whole number from 2 to 1024"),
        ("a..b=1", "--set", "key.sub=value"),
        ("sweep.seeds=0x_", "--set", "key.sub=value"),
        ("sweep.seeds=!!bool maybe", "--set", "key.sub=value"),
        (f"sweep.seeds={'9' * 5000}", "--set", "key.sub=value"),
        (f"sweep.seeds={'[' * 3000}", "--set", "key.sub=value"),
    ],
    ids=lambda text: text[:40],
)
def test_bad_settings(setting: str, where: str, allowed: str) -> None:
    with pytest.raises(JobFileError) as caught:
        set_to(setting)
    assert where in str(caught.value.where)
    assert allowed in str(caught.value.allowed)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [None, b"PAR1\xff\x00PAR1", b"caption,cfg\na star,3\n"])
def test_a_manifest_given_as_the_job_is_answered_with_its_option(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "prompts"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(JobFileError) as caught:
        load_job(path, [], TODAY)
    assert "give it with --manifest" in str(caught.value.allowed)


def test_dates_are_texts(tmp_path: Path) -> None:
    assert job_of(tmp_path, "output: {uri: 2024-13-45}").output.uri == "2024-13-45"
    assert set_to("output.uri=2024-99-01").output.uri == "2024-99-01"


def test_a_value_that_contains_itself() -> None:
    with pytest.raises(JobFileError, match=r"sweep\.seeds"):
        set_to("sweep.seeds=&a [*a]")


def test_a_setting_wins_over_the_other_name_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("manifest: a\nsweep: {num_inference_steps: 10}\n")
    assert load_job(tmp_path / "job.yaml", [("sweep.steps", 5)], TODAY).sweep.num_inference_steps == (5,)


def test_loras(tmp_path: Path) -> None:
    loras = job_of(tmp_path, "model: {loras: [{id: a}, {id: b, weight: 0.5}]}").model.loras
    assert [(lora.id, lora.weight) for lora in loras] == [("a", 1.0), ("b", 0.5)]


def test_the_whole_designed_job_file_is_taken_where_it_states_defaults(tmp_path: Path) -> None:
    text = """
model: {id: shapes, revision: null, dtype: auto, loras: [], scheduler: default, call: {}}
manifest_columns: {}
output: {uri: out, provenance: full, layout: files, format: png}
render: {rows: auto, compile: auto, allowed_failures: 0, stop_after: null}
workers: {count: auto, gpus: auto, cpus: 1}
"""
    assert job_of(tmp_path, text) == job_of(tmp_path, "output: {uri: out}")


def leaves(kind: type[BaseModel], above: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{above}{name}.")
        else:
            yield above + name, field.description


def test_every_key_says_what_it_takes() -> None:
    """Those of the sweep are read by our own functions, which do."""
    assert [key for key, allowed in leaves(Job) if not allowed and not key.startswith("sweep.")] == []


@pytest.mark.parametrize(("text", "seconds"), [("6h", 21600.0), ("1h30m", 5400.0), ("90 s", 90.0), ("null", None)])
def test_times(text: str, seconds: float | None) -> None:
    assert set_to(f"render.stop_after={text}").render.stop_after == seconds


@pytest.mark.parametrize("text", ["6", "0s", "-1h", "h", "1d", "true", "1.5h", "[1h]"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(JobFileError, match=r"render\.stop_after") as caught:
        set_to(f"render.stop_after={text}")
    assert "1h30m" in str(caught.value)


YAML_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([key for key, _ in leaves(Job)] + ["sweep", "model", "sweep.steps", "nothing", "sweep.foo.bar"])


def refusal(key: str, value: Any) -> InputError | None:
    try:
        load_job(None, [("manifest", "a"), (key, value)], TODAY)
    except InputError as error:
        return error
    return None


@given(KEYS, YAML_VALUES)
def test_any_value_is_taken_or_refused_in_one_block(key: str, value: Any) -> None:
    error = refusal(key, value)
    if error is not None:
        assert error.allowed
        for leak in ("Input should", "valid dictionary", "valid integer", "literal", "instance of"):
            assert leak not in error.allowed


def test_the_day_in_an_output_is_todays_or_the_chosen_one() -> None:
    given = [("manifest", "a"), ("output.uri", "out/{date}/x")]
    daily = load_job(None, given, TODAY)
    assert (daily.output.uri, daily.day) == ("out/2026-01-02/x", TODAY)
    chosen = load_job(None, given, TODAY, chosen_date=date(2025, 12, 31))
    assert (chosen.output.uri, chosen.day) == ("out/2025-12-31/x", None)
    assert load_job(None, given[:1], TODAY).day is None
    with pytest.raises(JobFileError, match="the date has no effect"):
        load_job(None, given[:1], TODAY, chosen_date=TODAY)
