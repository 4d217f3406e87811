"""Seconds until ``uld --help`` and ``import uld`` are there."""

import subprocess
import sys

from common import in_turn, report

BARE = [sys.executable, "-c", "pass"]
HELP = [sys.executable, "-m", "uld", "--help"]
IMPORT = [sys.executable, "-c", "import uld"]


def main() -> None:
    def run(command):
        return lambda: subprocess.run(command, check=True, capture_output=True)

    commands = {"python alone": run(BARE), "uld --help": run(HELP), "import uld": run(IMPORT)}
    seconds = in_turn(commands, repeats=7)
    rows = [[name, f"{min(times):.3f}", f"{sorted(times)[len(times) // 2]:.3f}"] for name, times in seconds.items()]
    report("startup", ["command", "least s", "median s"], rows, {"seconds": seconds})


if __name__ == "__main__":
    main()
