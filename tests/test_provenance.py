"""What image files say of their making, as independent programs read it: exiftool, an infotext parser, Pillow."""

import io
import json
import shutil
import subprocess
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sd_parsers import ParserManager

from pipeline.errors import RunMismatchError
from pipeline.output.encode import encode, pixel_sha256
from pipeline.output.layout import Format, Layout, Packing, Setting
from pipeline.output.part import PartWriter
from pipeline.output.pictures import read_image
from pipeline.output.provenance import SOURCE_TYPE, provenance_of, read_provenance, save_options
from pipeline.output.run import check_same_packing, read_run, write_run
from pipeline.recipe import RenderTask
from pipeline.rendering.results import Rendered
from pipeline.samplers import sampler_name, scheduler_named
from pipeline.schedulers import SCHEDULERS
from pipeline.storage.local import LocalStore
from tests.noise import noise
from tests.test_output import FACTS, RUN, START, commit, rendered, shard_of, task

FORMATS = get_args(Format)
MODEL = {"model_id": "/home/somebody/models/tiny, small", "model_fingerprint": "0123456789abcdef" * 2}
NASTY = {
    "lines": "a red star\non a white, wide\n\nbackground",
    "settings": "a star\nSteps: 3, Sampler: Euler, CFG scale: 1, Seed: 9, Size: 1x1\nand more",
    "quotes": "\"a 'red' star\", \\n \\ `$(rm)`",
    "emoji": "a star 🌟👩‍👩‍👧 at 夜",
    "rtl": "نجمة حمراء \u202eabc\u202c على خلفية بيضاء",
    "xml": "a <b> & ]]> <!-- star --> &amp; </rdf:li> 'x' \"y\"",
    "controls": "a\rstar\twith \x01\x0b\x7f\x85 \ufffe in it",
    "long": "star, " * 8_500,
}
READ: list[Image.Image] = []
"""Kept: the parser knows images it has seen by their address in memory."""
NEGATIVE = 'ugly: "very", <b>\nblurry'

exiftool = pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool (libimage-exiftool-perl) is not there")


def told(prompt: str, negative_prompt: str | None = NEGATIVE, scheduler: str = "euler_ancestral") -> RenderTask:
    recipe = replace(
        task(7).recipe, prompt=prompt, negative_prompt=negative_prompt, scheduler=scheduler, guidance_scale=7.0
    )
    return replace(task(7), recipe=recipe)


def packing_of(image_format: Format, setting: Setting = "full", layout: Layout = "files") -> Packing:
    quality = 90 if image_format == "jpeg" else None
    return Packing(layout=layout, format=image_format, jpeg_quality=quality, provenance=setting)


def made(prompt: str, image_format: Format, setting: Setting = "full", negative_prompt: str | None = NEGATIVE) -> bytes:
    text = provenance_of(told(prompt, negative_prompt), setting, **MODEL)
    return encode(noise(0), packing_of(image_format, setting), text).body


def by_exiftool(body: bytes, image_format: Format, folder: Path) -> dict[str, Any]:
    path = folder / f"image.{image_format}"
    path.write_bytes(body)
    command = ["exiftool", "-j", "-G1", "-api", "LimitLongValues=0", "-charset", "exif=UTF8", str(path)]
    done = subprocess.run(command, capture_output=True, check=True)
    (found,) = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def infotext_of(found: dict[str, Any]) -> Any:
    return found.get("PNG:Parameters", found.get("ExifIFD:UserComment"))


def test_the_infotext_is_as_its_readers_know_it() -> None:
    shown = provenance_of(told("a red star, big", None), "full", model_id="org/tiny", model_fingerprint="abcdef0123456")
    assert shown is not None
    assert shown.infotext == (
        "a red star, big\n"
        "Steps: 5, Sampler: Euler a, CFG scale: 7, Seed: 7, Size: 8x8, Model hash: abcdef0123, Model: tiny, RNG: CPU"
    )
    full = provenance_of(told("a\nb"), "full", **MODEL)
    assert full is not None
    assert full.infotext.startswith(f"a\nb\nNegative prompt: {NEGATIVE}\nSteps: 5, ")
    assert full.infotext.endswith(', Model hash: 0123456789, Model: "tiny, small", RNG: CPU')
    assert "somebody" not in full.infotext + full.xmp.decode()
    unguided = provenance_of(replace(told("a"), recipe=replace(told("a").recipe, guidance_scale=None)), "full", **MODEL)
    assert unguided is not None
    assert "CFG" not in unguided.infotext


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [
        ("ddim", "DDIM"), ("ddim:trailing", "DDIM"), ("euler_ancestral", "Euler a"), ("pndm", "PLMS"),
        ("dpmsolver++", "DPM++ 2M"), ("dpmsolver++:karras", "DPM++ 2M Karras"),
        ("dpmsolver++_sde:exponential:trailing", "DPM++ 2M SDE Exponential"), ("kdpm2_ancestral", "DPM2 a"),
        ("lms:karras", "LMS Karras"), ("unipc", "UniPC"), ("lcm:timesteps=999/499", "LCM"),
    ],
)  # fmt: skip
def test_samplers_have_the_names_of_the_web_ui(scheduler: str, name: str) -> None:
    assert sampler_name(scheduler) == name


def test_every_scheduler_has_a_name() -> None:
    assert all(sampler_name(name) for name in SCHEDULERS)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("Euler a", "euler_ancestral"),
        ("dpm++ 2m  karras", "dpmsolver++:karras"),
        ("Euler", "euler"),
        ("DPM fast", None),
    ],
)
def test_names_of_the_web_ui_are_found_again(sampler: str, scheduler: str | None) -> None:
    assert scheduler_named(sampler) == scheduler


@exiftool
@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("prompt", NASTY.values(), ids=NASTY.keys())
def test_exiftool_reads_all_of_it(prompt: str, image_format: Format, tmp_path: Path) -> None:
    found = by_exiftool(made(prompt, image_format), image_format, tmp_path)
    assert found["XMP-iptcExt:DigitalSourceType"] == SOURCE_TYPE
    assert found["XMP-iptcExt:AISystemUsed"] == "Darkroom with tiny, small"
    assert found["XMP-dc:Identifier"] == told(prompt).task_id
    prompts = f"{prompt}\nNegative prompt: {NEGATIVE}"
    readable = prompts.replace("\x01", "\ufffd").replace("\x0b", "\ufffd").replace("\ufffe", "\ufffd")
    assert found["XMP-iptcExt:AIPromptInformation"] == readable
    text = provenance_of(told(prompt), "full", **MODEL)
    assert text is not None
    assert infotext_of(found) == text.infotext.replace("\ufffe", "???"), "its JSON has no such character"


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("name", [name for name in NASTY if name != "long"])
def test_an_infotext_parser_gives_the_recipe_back(name: str, image_format: Format) -> None:
    READ.append(Image.open(io.BytesIO(made(NASTY[name], image_format))))
    found = ParserManager().parse(READ[-1])
    assert found is not None
    (sampler,) = found.samplers
    assert sampler.prompts[0].value == NASTY[name].strip()
    assert sampler.negative_prompts[0].value == NEGATIVE
    assert sampler.name == "Euler a"
    values = {**sampler.parameters, **found.metadata}
    assert [values[key] for key in ("steps", "cfg_scale", "seed")] == ["5", "7", "7"]
    assert values["Size"] == "8x8"
    assert sampler.model is not None
    assert sampler.model.hash == "0123456789"


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("setting", ["full", "no_prompt", "off"])
def test_settings(image_format: Format, setting: Setting) -> None:
    body = made("a secret star", image_format, setting, negative_prompt="secret too")
    texts = [text.encode(coding) for text in ("secret", "Negative") for coding in ("ascii", "utf-16-be")]
    assert any(text in body for text in texts) is (setting == "full")
    assert (SOURCE_TYPE.encode() in body) is (setting != "off")
    identifier, infotext = read_provenance(body)
    if setting == "off":
        assert (identifier, infotext) == (None, None)
        assert body == encode(noise(0), packing_of(image_format, "off")).body
    else:
        assert identifier == task(7).task_id
        assert (infotext or "").startswith("a secret star\n" if setting == "full" else "Steps: 5, ")


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("prompt", NASTY.values(), ids=NASTY.keys())
def test_equal_tasks_make_equal_files_and_pixels_stay(prompt: str, image_format: Format) -> None:
    bodies = [made(prompt, image_format) for _ in range(2)]
    assert bodies[0] == bodies[1]
    plain = encode(noise(0), packing_of(image_format, "off")).body
    with Image.open(io.BytesIO(bodies[0])) as picture, Image.open(io.BytesIO(plain)) as bare:
        assert np.array_equal(np.asarray(picture), np.asarray(bare))
        assert (pixel_sha256(np.asarray(picture)) == pixel_sha256(noise(0))) is (image_format != "jpeg")
    text = provenance_of(told(prompt), "full", **MODEL)
    assert text is not None
    assert read_provenance(bodies[0]) == (task(7).task_id, text.infotext)


def test_what_a_jpeg_cannot_hold_is_left_out_whole() -> None:
    text = provenance_of(told("🌟" * 40_000), "full", **MODEL)
    assert text is not None
    options = save_options(text, "jpeg")
    assert options["xmp"] == text.without_prompts().xmp
    assert read_provenance(made("🌟" * 40_000, "jpeg")) == (task(7).task_id, text.settings)
    assert read_provenance(made("🌟" * 40_000, "webp")) == (task(7).task_id, text.infotext)


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("image_format", FORMATS)
def test_images_of_every_layout_say_it(layout: Layout, image_format: Format, tmp_path: Path) -> None:
    facts = replace(FACTS, packing=packing_of(image_format, layout=layout))
    store = LocalStore(tmp_path)
    (row,) = commit(store, replace(rendered(1), pixels=noise(1)[:8, :8]), facts=facts).to_pylist()
    body = read_image(store, row["file_name"])
    identifier, infotext = read_provenance(body)
    assert (identifier, sha256(body).hexdigest()) == (row["task_id"], row["file_sha256"])
    assert (infotext or "").startswith("p1\nSteps: 5, Sampler: DDIM, CFG scale: 2, Seed: 1, Size: 8x8, ")
    if image_format != "jpeg":
        with Image.open(io.BytesIO(body)) as picture:
            assert pixel_sha256(np.asarray(picture)) == row["pixel_sha256"]


def test_nothing_of_the_launch_is_in_a_file(tmp_path: Path) -> None:
    facts = replace(FACTS, packing=packing_of("png"))
    elsewhere = replace(rendered(1), device="another", rows=2, render_s=9.0)
    names = {
        commit(LocalStore(tmp_path / name), outcome, at=at, facts=its)["file_name"][0].as_py()
        for name, outcome, at, its in [
            ("a", rendered(1), START, facts),
            ("b", elsewhere, START + timedelta(days=1), replace(facts, attempt=3, darkroom_version="later")),
        ]
    }
    assert len(names) == 1, "the name has the digest of the bytes"


def test_later_launches_keep_the_setting_and_old_runs_go_on(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_run(store, replace(RUN, packing=packing_of("png", "no_prompt")))
    run = read_run(store)
    assert run is not None
    check_same_packing(run, packing_of("png", "no_prompt"), "here")
    with pytest.raises(RunMismatchError, match=r"output\.provenance: the run has 'no_prompt', this job 'full'"):
        check_same_packing(run, packing_of("png", "full"), "here")
    noted = json.loads(store.get("_darkroom/run.json"))
    del noted["packing"]["provenance"]
    store.put("_darkroom/run.json", json.dumps(noted).encode())
    old = read_run(store)
    assert old is not None
    assert old.packing.provenance is None
    check_same_packing(old, packing_of("png", "full"), "here")
    check_same_packing(old, packing_of("png", "off"), "here")


def test_extra_columns_stay_out(tmp_path: Path) -> None:
    shard = shard_of(1).append_column("secret", pa.array(["hidden"]))
    writer = PartWriter(LocalStore(tmp_path), shard, replace(FACTS, packing=packing_of("png")))
    one: Rendered = rendered(1)
    writer.put(one, START)
    (name,) = writer.commit()["file_name"].to_pylist()
    assert b"hidden" not in (tmp_path / name).read_bytes()


def test_a_comment_of_another_program_says_nothing() -> None:
    """Some write UserComment as a text, which Pillow then gives as one."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = "holiday"
    body = io.BytesIO()
    Image.new("RGB", (8, 8)).save(body, "jpeg", exif=exif)
    assert read_provenance(body.getvalue()) == (None, None)


@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_says_nothing(body: bytes) -> None:
    assert read_provenance(body) == (None, None)
