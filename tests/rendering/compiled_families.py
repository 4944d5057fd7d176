"""Every family compiled with inductor on a CPU: one graph each. ``python -m tests.rendering.compiled_families``

Exits with 1 for a family whose mixed run has more. Takes some minutes.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.rendering.test_compile import graphs_of
from tests.rendering.test_parity import KINDS


def main() -> None:
    wrong = 0
    print(f"{'model':14} graphs recompilations breaks")
    for name in KINDS:
        with TemporaryDirectory() as folder:
            graphs, recompilations, breaks = graphs_of(name, Path(folder), "inductor")
        print(f"{name:14} {graphs:6} {recompilations:14} {breaks:6}", flush=True)
        wrong += (graphs, recompilations, breaks) != (2, 0, 0)
    print(f"two graphs each, the denoiser's and the decoder's; otherwise: {wrong}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
