"""``python -m jobs`` is ``darkroom``, which begins here: Ctrl-C while the verbs are loaded ends as it does later."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location


def main() -> None:
    """See ``jobs.cli.main``."""
    try:
        _leave_working_directory()
        from jobs.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


def _leave_working_directory() -> None:
    """Import nothing from the working directory from now on; `pipeline` is the one beside this package.

    The module that does it is read by its path, since `pipeline` itself may still be found in the working directory.
    """
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = spec_from_file_location("import_path", os.path.join(own, "pipeline", "import_path.py"))
    assert spec is not None
    assert spec.loader is not None
    import_path = module_from_spec(spec)
    spec.loader.exec_module(import_path)
    import_path.leave_working_directory(by_ray=import_path.in_ray_job())
    sys.path.insert(0, own)
    import pipeline  # noqa: F401

    sys.path.remove(own)


if __name__ == "__main__":
    main()
