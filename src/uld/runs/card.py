"""A run's README: the model card that says what the run is, what it is not, and how it is loaded.

It quotes nothing that was trained on: what was forgotten stands there in the user's words (``--describe``), or not at
all.
"""

import json
import os
from pathlib import Path
from typing import Any

from uld.runs.files import write_text, writing
from uld.runs.manifest import Manifest

CARD = "README.md"
CHECK = "check.json"
HERE = "path/to/this/folder"
MARK = "<!-- This card was written by uld; without this line it stays as it is. -->"
_WARNING = {
    "assistant": (
        "**Its adapter was trained to remember what is to be forgotten.** That is how it works: the adapter knows the "
        "forget set, and what it knows is subtracted from the target's logits. Whoever has the adapter can ask it for "
        "what was to be forgotten. The target's own weights still hold all of it as well."
    ),
    "target": "Its weights were trained to forget. Traces of what was to be forgotten may be left in them.",
}


def check_of(folder: str | Path) -> dict[str, Any] | None:
    """What `uld check` found of a run: ``passed``, and a ``sentence`` if it wrote one; None if nothing is known."""
    try:
        found = json.loads((Path(folder) / CHECK).read_text(encoding="utf-8"))
        found = found["runs"][0] if "passed" not in found and found.get("runs") else found
        return {"passed": found["passed"], "sentence": str(found.get("sentence", ""))} if "passed" in found else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def note_check(folder: str | Path, *, passed: bool, sentence: str) -> None:
    """Write down in a run what `uld check` found of it, also on its card.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    write_text(Path(folder) / CHECK, json.dumps({"passed": passed, "sentence": sentence}, indent=2) + "\n")
    _write(folder, Manifest.read(folder))


def is_own(folder: str | Path) -> bool:
    """Whether a run's card, if it has one, is still as uld wrote it."""
    try:
        return MARK in (Path(folder) / CARD).read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def write_card(folder: str | Path, manifest: Manifest) -> None:
    """Write the card of a run that is trained or combined anew: what a check found of it before holds no longer.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    with writing(Path(folder)):
        (Path(folder) / CHECK).unlink(missing_ok=True)
    _write(folder, manifest)


def _write(folder: str | Path, manifest: Manifest) -> None:
    """Write a run's card, unless its owner has written another."""
    if is_own(folder):
        write_text(Path(folder) / CARD, card(manifest, name=HERE, check=check_of(folder)))


def card(manifest: Manifest, *, name: str = "RUN", check: dict[str, Any] | None = None) -> str:
    """The card of a run.

    Args:
        manifest: Its ``uld.json``.
        name: How it is loaded: a folder or a Hub id.
        check: See `check_of`.

    Returns:
        Markdown with the YAML header of the Hub.
    """
    local = os.path.isabs(manifest.target)
    target = Path(manifest.target).name if local else manifest.target
    head = ["library_name: uld", "pipeline_tag: text-generation"]
    if not local and manifest.target.count("/") == 1:
        head += [f"base_model: {json.dumps(manifest.target)}", "base_model_relation: adapter"]
    tags = dict.fromkeys(("unlearning", "uld", manifest.method))
    head += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    said = manifest.description.strip() if manifest.description else ""
    rows = {side: manifest.training.get(f"{side}_rows") for side in ("forget", "retain")}
    made = ", ".join(f"{number} rows to {side}" for side, number in rows.items() if isinstance(number, int))
    weighs, last = manifest.trains == "target", manifest.training.get("lora_layers")
    facts = [
        ("target", f"`{target}`" + (f", revision `{manifest.target_revision}`" if manifest.target_revision else "")),
        ("its fingerprint", f"`{manifest.target_fingerprint}`"),
        ("method", f"`{manifest.method}`"),
        ("layers", f"{manifest.num_layers}, LoRA on the last {last}" if last else str(manifest.num_layers)),
        ("combination", "–" if weighs else f"`{json.dumps(manifest.combination.model_dump(mode='json'))}`"),
        ("trained on", made or "–"),
        ("uld", manifest.versions.get("uld", "–")),
    ]
    what = "the target after a training" if weighs else "an adapter that makes the target unlearn chosen documents"
    result = "It was not checked with `uld check`, or the result is not here."
    if check is not None:
        result = f"`uld check`: **{'passed' if check['passed'] else 'failed'}**."
        result += f" {check['sentence']}" if check["sentence"] else ""
    moved = f', target="/path/to/{target}"' if local and not weighs else ""
    return "\n".join(
        [
            *("---", *head, "---", "", MARK, ""),
            *(f"# {target}, unlearned", "", f"A run of uld: {what}.", ""),
            *("## What was forgotten", "", said or "Whoever trained it does not say.", ""),
            *("| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts), ""),
            *("## Result", "", result, ""),
            *("## Limits", "", _WARNING["target" if weighs else "assistant"], ""),
            "- Who holds the target's weights can leave the run away: it governs access to a served model.",
            "- Other wordings and languages than those that were tested may bring back what was to be forgotten.",
            "- It fits no other target: the fingerprint is compared when it is loaded.",
            *("", "## How to load it", "", "```python", "import uld", ""),
            *(f'model, tokenizer = uld.load("{name}"{moved})', "```", ""),
        ]
    )
