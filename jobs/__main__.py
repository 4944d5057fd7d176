"""``python -m jobs`` is ``darkroom``."""

from jobs.cli import main

main()
