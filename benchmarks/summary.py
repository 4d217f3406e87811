"""Puts the tables of ``docs/results/benchmarks/*.json`` into ``docs/benchmarks.md``, each with its command and machine."""

import json

from common import OUT, ROOT

ORDER = ("startup", "memory", "decode", "rule", "parts", "scoring", "training-tofu-4m", "training-370m")


def question(command: str) -> str:
    """The first paragraph of the script's docstring."""
    text = (ROOT / command.removeprefix("python ").split()[0]).read_text().split('"""')[1]
    return text.strip().split("\n\n")[0].replace("\n", " ")


def main() -> None:
    lines = [
        "# Speed and memory",
        "",
        "Written by `make bench`; what names a GPU was run there with the same scripts. Ratios are of things measured in turn in one run: median ",
    ]
    lines[-1] += (
        "(least–greatest). These machines are shared, so the spread matters as much as the median. Where the rest of the time goes, and what was tried: [notes](speed.md)."
    )
    found = {path.stem: path for path in OUT.glob("*.json")}
    for name in [*(n for n in ORDER if n in found), *sorted(found.keys() - set(ORDER))]:
        about = json.loads(found[name].read_text())
        machine = about["machine"]
        lines += ["", f"## {name}", "", question(about["command"]), "", *about["table"], ""]
        lines += [
            f"`{about['command']}`, {machine['processor']}, {machine['threads']} threads, "
            f"torch {about['versions']['torch']}, load {about['load']:.1f}."
        ]
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
