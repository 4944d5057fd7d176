"""DiffusionDB's form: folders of 1,000 images with a JSON of their recipes, and one table of all.

Wang et al., arXiv:2210.14896; https://github.com/poloclub/diffusiondb, "Dataset Structure" and "Metadata Schema".
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.export.committed import Committed, Row
from pipeline.export.writing import Progress, TableFile, put_images, put_json
from pipeline.schedulers import scheduler_of
from pipeline.storage.base import ObjectStore

PART_IMAGES = 1000
MAX_PARTS = 2**16 - 1
"""``part_id`` has two bytes."""
MAX_SEED = 2**32 - 1
SCHEMA = pa.schema(
    [
        ("image_name", pa.string()),
        ("prompt", pa.string()),
        ("part_id", pa.uint16()),
        ("seed", pa.uint32()),
        ("step", pa.uint16()),
        ("cfg", pa.float32()),
        ("sampler", pa.uint8()),
        ("width", pa.uint16()),
        ("height", pa.uint16()),
        ("user_name", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("image_nsfw", pa.float32()),
        ("prompt_nsfw", pa.float32()),
    ]
)
SAMPLERS = ("ddim", "plms", "k_euler", "k_euler_ancestral", "k_heun", "k_dpm_2", "k_dpm_2_ancestral", "k_lms", "others")
"""Numbered from 1."""
_THEIRS = {
    "ddim": "ddim",
    "pndm": "plms",
    "euler": "k_euler",
    "euler_ancestral": "k_euler_ancestral",
    "heun": "k_heun",
    "kdpm2": "k_dpm_2",
    "kdpm2_ancestral": "k_dpm_2_ancestral",
    "lms": "k_lms",
}
_FLAGGED = 2.0
"""A score that says that the model's own safety checker spoke up."""


def export_diffusiondb(
    committed: Committed, destination: ObjectStore, on_progress: Progress, part_images: int = PART_IMAGES
) -> None:
    """``images/part-000001/<task_id>.png`` with ``part-000001.json``, and ``metadata.parquet``.

    Raises ``InputError`` for more images than its numbers of parts reach, and for seeds beyond 32 bits.
    """
    _check_seeds(committed)
    if committed.number > MAX_PARTS * part_images:
        raise InputError(
            "this output has more images than DiffusionDB's part_id can number",
            where="--to",
            value=committed.number,
            allowed=f"up to {MAX_PARTS * part_images:,}",
        )
    recipes: dict[str, dict[str, object]] = {}
    placed = _placed(committed.rows(), committed.extension, part_images)
    with TableFile(SCHEMA) as table:
        for number, row in enumerate(put_images(committed, destination, placed, on_progress)):
            part, name = number // part_images + 1, f"{row['task_id']}.{committed.extension}"
            table.add(_described(row, name, part))
            recipes[name] = _recipe(row)
            if len(recipes) == part_images or number + 1 == committed.number:
                put_json(destination, f"{_folder(part)}/part-{part:06}.json", recipes)
                recipes = {}
        table.put(destination, "metadata.parquet")


def _check_seeds(committed: Committed) -> None:
    most = pa.scalar(MAX_SEED, pa.uint64())
    large = sum(pc.sum(pc.greater(seeds, most)).as_py() or 0 for seeds in committed.column("seed"))
    if large:
        raise InputError(
            f"DiffusionDB's seeds have 32 bits, and {large:,} of {committed.number:,} images have a larger one",
            where="--to",
            value="diffusiondb",
            allowed=f"a run whose seeds are at most {MAX_SEED}, or another form",
        )


def sampler_of(scheduler: str) -> str:
    """Their name of a scheduler; its options have none."""
    return _THEIRS.get(scheduler_of(scheduler).name, "others")


def _placed(rows: Iterator[Row], extension: str, part_images: int) -> Iterator[tuple[Row, str]]:
    for number, row in enumerate(rows):
        yield row, f"{_folder(number // part_images + 1)}/{row['task_id']}.{extension}"


def _folder(part: int) -> str:
    return f"images/part-{part:06}"


def _described(row: Row, name: str, part: int) -> dict[str, object]:
    """There is no user, and nobody has scored image or prompt."""
    return {
        "image_name": name,
        "prompt": row["prompt"],
        "part_id": part,
        "seed": row["seed"],
        "step": row["num_inference_steps"],
        "cfg": row["guidance_scale"],
        "sampler": SAMPLERS.index(sampler_of(row["scheduler"])) + 1,
        "width": row["width"],
        "height": row["height"],
        "timestamp": row["created_at"],
        "image_nsfw": _FLAGGED if row["verdict"] == "flagged" else None,
    }


def _recipe(row: Row) -> dict[str, object]:
    return {
        "p": row["prompt"],
        "se": row["seed"],
        "c": row["guidance_scale"],
        "st": row["num_inference_steps"],
        "sa": sampler_of(row["scheduler"]),
    }
