"""Identity: the published vectors, and that ids follow from content and nothing else."""

import json
import math
import re
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import strict_json
from pipeline.identity import IdSet, RunConstants, ids_from_bytes, pack_point, part_id, task_id

CONSTANTS = RunConstants(
    model_fingerprint="00112233445566778899aabbccddeeff", dtype="float32", scheduler_config={"beta_start": 0.00085}
)
POINT = {
    "seed": 7,
    "guidance_scale": 7.5,
    "num_inference_steps": 25,
    "scheduler": "ddim",
    "width": 128,
    "height": 96,
}

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.lists(st.binary(min_size=16, max_size=16), max_size=30)


def made_vectors() -> dict[str, str]:
    digest, point = CONSTANTS.digest(), pack_point(**POINT)  # type: ignore[arg-type]  # a dict of mixed values
    unguided = pack_point(**{**POINT, "guidance_scale": None})  # type: ignore[arg-type]  # the same
    first = task_id(digest, "a red circle", None, point)
    second = task_id(digest, "ein grüner Stern", "blurry", point)
    return {
        "run digest": digest.hex(),
        "packed point": point.hex(),
        "packed point without guidance": unguided.hex(),
        "task id": first,
        "task id with negative prompt": second,
        "part id of both": part_id([bytes.fromhex(first), bytes.fromhex(second)]),
    }


def test_published_vectors() -> None:
    """Changing any of these makes every existing run render everything again."""
    text = (Path(__file__).parent.parent / "docs" / "identity.md").read_text()
    vectors, unlimited, float8 = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S))
    assert vectors == made_vectors()
    config = {"lambda_min_clipped": -math.inf, "trained_betas": [math.inf, math.nan]}
    digest = replace(CONSTANTS, scheduler_config=config).digest().hex()
    assert unlimited == {"run digest": digest}
    assert float8 == {"run digest": replace(CONSTANTS, dtype="bfloat16", precision="fp8").digest().hex()}


def test_numbers_that_are_not_finite_by_hand() -> None:
    """Their form in a digest, written out without the code under test."""
    text = (
        '{"dtype":"float32","model_fingerprint":"00112233445566778899aabbccddeeff","recipe_version":1,'
        '"scheduler_config":{"lambda_min_clipped":{"float":"-Infinity"}}}'
    )
    constants = replace(CONSTANTS, scheduler_config={"lambda_min_clipped": -math.inf})
    assert constants.digest() == blake2b(text.encode(), digest_size=16, person=b"darkroom.run.1").digest()


numbers = st.floats() | st.integers() | st.text(max_size=3) | st.none() | st.booleans()


@settings(max_examples=30)
@given(st.recursive(numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)))
def test_any_number_is_written_as_strict_json_and_read_back(value: object) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = strict_json.dumps({"value": value})
    json.loads(text, parse_constant=refuse)
    assert repr(strict_json.loads(text)) == repr({"value": value})


def test_vector_by_hand() -> None:
    """The layout written out once more, without the code under test."""
    text = json.dumps(
        {
            "dtype": "float32",
            "model_fingerprint": CONSTANTS.model_fingerprint,
            "recipe_version": 1,
            "scheduler_config": {"beta_start": 0.00085},
        },
        separators=(",", ":"),
    )
    run = blake2b(text.encode(), digest_size=16, person=b"darkroom.run.1").digest()
    prompt = b"a red circle"
    body = len(prompt).to_bytes(4, "little") + prompt + bytes(4)
    body += (7).to_bytes(8, "little") + np.float64(7.5).tobytes()
    body += b"".join(n.to_bytes(4, "little") for n in (25, 128, 96)) + (4).to_bytes(2, "little") + b"ddim"
    expected = blake2b(run + body, digest_size=16, person=b"darkroom.task.1").hexdigest()
    assert made_vectors()["task id"] == expected


@given(texts, texts, texts, texts)
def test_prompt_and_negative_prompt_do_not_run_into_each_other(a: str, b: str, c: str, d: str) -> None:
    point = pack_point(**POINT)  # type: ignore[arg-type]  # a dict of mixed values
    same = task_id(b"\0" * 16, a, b, point) == task_id(b"\0" * 16, c, d, point)
    assert same == ((a, b) == (c, d))


def test_every_field_of_a_point_counts() -> None:
    other = {
        "seed": 8,
        "guidance_scale": 7.0,
        "num_inference_steps": 26,
        "scheduler": "euler",
        "width": 96,
        "height": 128,
    }
    packed = {pack_point(**{**POINT, key: value}) for key, value in other.items()}  # type: ignore[arg-type]  # mixed
    assert len(packed | {pack_point(**POINT)}) == len(other) + 1  # type: ignore[arg-type]  # mixed


@given(ids, ids)
def test_parts_are_named_by_exactly_what_they_hold(a: list[bytes], b: list[bytes]) -> None:
    assert (part_id(a) == part_id(b)) == (a == b)


@given(ids, ids)
def test_id_set_is_a_set(inside: list[bytes], asked: list[bytes]) -> None:
    found = IdSet(ids_from_bytes(b"".join(inside))).contains(ids_from_bytes(b"".join([*asked, *inside])))
    assert found.tolist() == [item in set(inside) for item in [*asked, *inside]]
    assert len(IdSet(ids_from_bytes(b"".join(inside + inside)))) == len(set(inside))


def test_ids_that_share_a_half_are_told_apart() -> None:
    inside = [bytes(8) + n.to_bytes(8, "big") for n in range(0, 40, 2)]
    asked = [bytes(8) + n.to_bytes(8, "big") for n in range(40)]
    found = IdSet(ids_from_bytes(b"".join(inside))).contains(ids_from_bytes(b"".join(asked)))
    assert found.tolist() == [n % 2 == 0 for n in range(40)]
