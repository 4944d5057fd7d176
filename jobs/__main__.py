"""``python -m jobs`` is ``darkroom``, which begins here: Ctrl-C while the verbs are loaded ends as it does later."""


def main() -> None:
    """See ``jobs.cli.main``."""
    try:
        from jobs.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
