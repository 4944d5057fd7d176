"""Signs of other programs' prompt syntax, and words for an absent value, which Darkroom draws as text."""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

_SIGNS = (
    r"\([^()]*:\s*\d+(?:\.\d+)?\s*\)",  # (ring:1.3)
    r"\(\([^()]+\)\)",  # ((ring))
    r"<(?:lora|lyco|hypernet|embedding|ti):[^<>]+>",
    r"\b__[\w*/-]+__",  # a wildcard file
    r"\{[^{}]*\|[^{}]*\}",  # {red|blue}
    r"\[[^\[\]]*(?:\||:\s*[\d.]+\s*\])",  # [red|blue], [red:blue:0.5]
    r"(?:^|\s)--[a-z]\w*",  # --seed 7, --ar 16:9
    r"[^A-Z\s]\s+(?:BREAK|AND)(?:\s|$)",  # but not in a prompt all in capitals
    r"^BREAK\s+[^A-Z\s]",
    r"^/imagine\s",
    r"\bembedding:\w",
    r"\{prompt\}",  # a style
    r"(?:^|\n)(?:Negative prompt: |Steps: \d+, )",  # parameters that the web UI writes into its images
)
_ANY = "|".join(_SIGNS)
_FOUND = re.compile(_ANY, re.ASCII)
_ABSENT = r"^\s*(?i:nan|null|none|nil|undefined|n/a|#n/a|na|<na>|\\n)\s*$"
_SHOWN = 60


class Signs:
    """Counts the prompts that hold such signs, table by table."""

    def __init__(self) -> None:
        self._number = self._absent = 0
        self._first = self._first_absent = ""

    def see(self, table: pa.Table) -> None:
        """Look through the columns ``prompt`` and ``negative_prompt``, where there are such."""
        for name in ("prompt", "negative_prompt"):
            if name in table.column_names:
                self._see(table[name])
                self._see_absent(table[name])

    def _see(self, prompts: pa.ChunkedArray) -> None:
        marked = pc.match_substring_regex(prompts, _ANY)
        number = pc.sum(marked).as_py() or 0
        if number and not self._first:
            found = _FOUND.search(prompts[pc.index(marked, True).as_py()].as_py())
            self._first = found[0].strip()[:_SHOWN] if found else ""
        self._number += number

    def _see_absent(self, prompts: pa.ChunkedArray) -> None:
        found = prompts.filter(pc.match_substring_regex(prompts, _ABSENT))
        self._absent += len(found)
        if len(found) and not self._first_absent:
            self._first_absent = found[0].as_py()

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each kind that there is."""
        if self._number:
            subject = "1 prompt holds" if self._number == 1 else f"{self._number:,} prompts hold"
            yield (
                f"{subject} signs of another program's prompt syntax (weights, LoRAs, wildcards, choices, BREAK, AND, "
                f"options, parameters), such as {self._first!r}; they are drawn as text"
            )
        if self._absent:
            yield (
                f"prompts and negative prompts that are a word for an absent value, such as {self._first_absent!r}: "
                f"{self._absent:,}; they are drawn as text"
            )
