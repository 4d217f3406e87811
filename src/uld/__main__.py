"""``python -m uld`` is the ``uld`` command."""

from uld.cli.main import main

if __name__ == "__main__":
    main()
