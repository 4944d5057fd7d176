"""Parts of a job that have no effect, as sentences for people and as plain values."""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from pipeline.model.family import Family, Guidance
from pipeline.model.windows import Windows
from pipeline.planning.effects import Effects
from pipeline.planning.grids import OVERRIDE_COLUMNS, Axes

_AXES: Mapping[str, tuple[str, ...]] = {
    "seeds": ("seeds",),
    "guidance_scales": ("guidance_scale",),
    "num_inference_steps": ("num_inference_steps",),
    "schedulers": ("scheduler",),
    "sizes": ("width", "height"),
}
"""The columns that replace each axis of the sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoEffect:
    """Parts of a job that have no effect."""

    effects: Effects = field(default_factory=Effects)
    windows: Mapping[str, int] = field(default_factory=dict)
    """Tokens that fit, by tokenizer."""
    not_counted: str | None = None
    """The reason why cut prompts were not counted, or not in all rows."""
    takes_negative_prompts: bool = True
    same_guidance: tuple[float, ...] = ()
    """Guidance scales of the sweep that make the same images as another one of it."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Columns of the manifest, each with the reason."""
    axes: Mapping[str, str] = field(default_factory=dict)
    """Axes that the job gives, each with the reason."""
    repeated: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Axes that the job gives, each with the values that it names more than once."""

    @property
    def prompts_cut(self) -> int | None:
        """Prompt rows; None where nobody knows."""
        return self.effects.cut if self.effects.cut or not self.not_counted else None

    def facts(self) -> dict[str, Any]:
        """Return the counts as plain values; ``docs/job-file.md`` names the keys."""
        effects = self.effects
        return {
            "prompts_cut": self.prompts_cut,
            "prompts_cut_by_tokenizer": dict(effects.cut_by),
            "tokens_that_fit": dict(self.windows),
            "prompts_looked_at": effects.looked_at,
            "prompts_not_counted": self.not_counted,
            "negative_prompts_cut": effects.negatives_cut,
            "negative_prompts_unused": effects.negatives_unused,
            "negative_prompts_unused_in_part": effects.negatives_unused_in_part,
            "guidance_scales": list(self.same_guidance),
            "columns": list(self.columns),
            "axes": list(self.axes),
            "axes_with_repeated_values": list(self.repeated),
        }

    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for each thing that has no effect."""
        return (*self._of_texts(), *self._of_settings())

    def _of_texts(self) -> Iterator[str]:
        effects = self.effects
        if effects.cut:
            looked = f"; only the first {effects.looked_at:,} rows were looked at" if self.not_counted else ""
            yield (
                f"{_number(effects.cut, 'prompt')} longer than {self._window()}: "
                f"the text beyond it has no effect{looked}"
            )
        if effects.negatives_cut:
            yield f"{_number(effects.negatives_cut, 'negative prompt')} longer than {self._window()}"
        if effects.negatives_unused:
            why = (
                "no image of such a row has a guidance scale above 1"
                if self.takes_negative_prompts
                else "the model takes none"
            )
            yield f"{_number(effects.negatives_unused, 'negative prompt')} without effect: {why}"
        if effects.negatives_unused_in_part:
            yield (
                f"{_number(effects.negatives_unused_in_part, 'negative prompt')} without effect in part: images with a "
                "guidance scale of at most 1 use none"
            )

    def _of_settings(self) -> Iterator[str]:
        if self.same_guidance:
            yield (
                f"the guidance scales {', '.join(f'{scale:g}' for scale in self.same_guidance)} of the sweep make the "
                "same images: up to 1, there is no guidance"
            )
        for name, reason in self.columns.items():
            yield f"the column {name} of the manifest has no effect: {reason}"
        for name, reason in self.axes.items():
            yield f"{name} has no effect: {reason}"
        for name, values in self.repeated.items():
            named = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
            yield f"{name} names {named} more than once, which makes no further images"

    def _window(self) -> str:
        if len(set(self.windows.values())) == 1:
            return f"the model's window of {next(iter(self.windows.values()))} tokens"
        counts = self.effects.cut_by
        each = (f"{name} {tokens} tokens, {counts.get(name, 0):,} cut" for name, tokens in self.windows.items())
        return f"a window of the model's text encoders ({'; '.join(each)})"

    def summary(self) -> str:
        """Return all of it in a few words; empty where everything has an effect."""
        effects = self.effects
        tokens = sorted(set(self.windows.values()))
        window = f"at {tokens[0]} tokens" if len(tokens) == 1 else "at a window"
        texts = (
            (effects.cut, "prompt", f"cut {window}"),
            (effects.negatives_cut, "negative prompt", f"cut {window}"),
            (effects.negatives_unused, "negative prompt", "unused"),
            (effects.negatives_unused_in_part, "negative prompt", "unused in part"),
        )
        said = [f"{number:,} {what}{'s' * (number > 1)} {how}" for number, what, how in texts if number]
        said += ["guidance scales up to 1"] if self.same_guidance else []
        said += [f"column {name}" for name in self.columns]
        said += [f"repeated values of {name}" for name in self.repeated]
        return ", ".join([*said, *self.axes])


def _number(count: int, what: str) -> str:
    return f"{count:,} {what} is" if count == 1 else f"{count:,} {what}s are"


def no_effect(
    effects: Effects,
    axes: Axes,
    family: Family,
    given: Set[str],
    theirs: Mapping[str, str],
    windows: Windows | None = None,
) -> NoEffect:
    """Judge counted effects.

    ``given``: the axes that the job names itself. ``theirs``: the manifest's columns, by our names of them.
    """
    tokens, not_counted = ({}, None) if windows is None else (windows.tokens, windows.not_counted)
    if not effects.rows:
        return NoEffect(effects=effects, windows=tokens, not_counted=not_counted)
    theirs = {"seeds" if ours == "seed" else ours: name for ours, name in theirs.items()}
    none = family.guidance is Guidance.NONE
    repeating = {name for name in OVERRIDE_COLUMNS if effects.valued.get(name) == effects.repeating.get(name, 0)}
    columns = dict(_columns(effects, theirs, repeating, takes_guidance=not none))
    return NoEffect(
        effects=effects,
        windows=tokens,
        not_counted=not_counted,
        takes_negative_prompts=family.negative_prompts and (family.single or family.rows(2.0) == 2),
        same_guidance=() if none or "guidance_scales" not in given else _same_guidance(axes, family),
        columns=columns,
        repeated=_repeated(axes, given),
        axes=dict(_axes(effects, axes, given, theirs, set(columns), takes_guidance=not none)),
    )


def _repeated(axes: Axes, given: Set[str]) -> Mapping[str, tuple[Any, ...]]:
    found = {}
    for axis in _AXES:
        values = Counter(getattr(axes, axis))
        repeated = tuple(
            f"{value[0]}x{value[1]}" if axis == "sizes" else value for value, times in values.items() if times > 1
        )
        if axis in given and repeated:
            found[f"sweep.{axis}"] = repeated
    return found


def _same_guidance(axes: Axes, family: Family) -> tuple[float, ...]:
    """The scales that count as no guidance, where there are several."""
    different = dict.fromkeys(axes.guidance_scales)
    unguided = tuple(scale for scale in different if family.effective_guidance(scale) == family.guided_above)
    return unguided if len(unguided) > 1 and len({family.effective_guidance(scale) for scale in unguided}) == 1 else ()


def _columns(
    effects: Effects, theirs: Mapping[str, str], repeating: Set[str], *, takes_guidance: bool
) -> Iterator[tuple[str, str]]:
    if "negative_prompt" in theirs and not effects.negatives:
        yield theirs["negative_prompt"], "it holds no text"
    for columns in _AXES.values():
        for ours in columns:
            if ours not in theirs:
                continue
            if not effects.valued.get(ours):
                yield theirs[ours], "it holds no value"
            elif ours == "guidance_scale" and not takes_guidance:
                yield theirs[ours], "the model takes no guidance scale"
            elif repeating >= set(columns):
                yield theirs[ours], "it holds nothing but the sweep's own value"


def _axes(
    effects: Effects,
    axes: Axes,
    given: Set[str],
    theirs: Mapping[str, str],
    without: Set[str],
    *,
    takes_guidance: bool,
) -> Iterator[tuple[str, str]]:
    """``without``: columns that have no effect themselves."""
    for axis, columns in _AXES.items():
        if axis not in given:
            continue
        if axis == "guidance_scales" and not takes_guidance:
            number = len(dict.fromkeys(axes.guidance_scales))
            yield (
                "sweep.guidance_scales",
                f"the model takes no guidance scale{f'; {number} values make one image' if number > 1 else ''}",
            )
        elif effects.valued.get(columns[0]) == effects.rows and theirs.get(columns[0]) not in without:
            named = " and ".join(theirs.get(ours, ours) for ours in columns)
            yield f"sweep.{axis}", f"{named} of the manifest {'replace' if columns[1:] else 'replaces'} it in every row"
