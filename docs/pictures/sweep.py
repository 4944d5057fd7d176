"""Make the README's picture from the demonstration's output: ``python docs/pictures/sweep.py`` after ``make demo``."""

from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).parent
DEMO = HERE.parent.parent / "renders" / "demo"
PROMPTS = ("a blue star on a yellow background", "a small purple ring on a black background")


def main() -> None:
    """Rows are guidance scales, columns step counts; two prompts side by side, seed 0."""
    rows = [row for row in pq.read_table(DEMO / "metadata.parquet").to_pylist() if row["seed"] == 0]
    scales = sorted({row["guidance_scale"] for row in rows})
    steps = sorted({row["num_inference_steps"] for row in rows})
    side, gap = rows[0]["width"], 4
    picture = Image.new(
        "RGB", (len(PROMPTS) * len(steps) * (side + gap) + gap, len(scales) * (side + gap) + gap), "white"
    )
    for row in rows:
        if row["prompt"] not in PROMPTS:
            continue
        column = PROMPTS.index(row["prompt"]) * len(steps) + steps.index(row["num_inference_steps"])
        place = (gap + column * (side + gap), gap + scales.index(row["guidance_scale"]) * (side + gap))
        picture.paste(Image.open(DEMO / row["file_name"]), place)
    picture.save(HERE / "sweep.png", optimize=True)


if __name__ == "__main__":
    main()
