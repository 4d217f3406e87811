"""Runs on the Hub: fetched where a run's place is asked for, and published without anything that is the user's.

A run that is published holds its weights, ``uld.json``, the configs, the tokenizer and the card. Neither settings nor
logs nor drawn rows go along, and no name of a file or folder of this machine.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uld.errors import ArtifactError, words
from uld.runs.card import CARD, card, check_of, is_own
from uld.runs.digests import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATE_WEIGHTS
from uld.runs.folder import CHAT_TEMPLATES, TOKENIZER_FILES
from uld.runs.manifest import ADAPTER, MANIFEST, Manifest, is_run, refuse_changed

PUBLISHED = (
    *(MANIFEST, CARD, "config.json", "generation_config.json", *sorted(TOKENIZER_FILES), f"{CHAT_TEMPLATES}/*.jinja"),
    *(f"{ADAPTER}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATE_WEIGHTS)),
    *(f"{ADAPTER}/*/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATE_WEIGHTS)),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
)
"""What of a run folder is part of the run, for whoever gets it; nothing else is published or fetched."""
_PLACES = ("target", "base_model_name_or_path", "_name_or_path")
_OF_A_NEW_REPO = {".gitattributes", CARD}
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")


def is_hub_id(place: str | Path) -> bool:
    """Whether a place that does not exist here may be ``org/name`` on the Hub."""
    text = str(place)
    return _ID.fullmatch(text) is not None and ".." not in text and not os.path.lexists(text)


def run_folder(place: str | Path, **hub: Any) -> Path | None:
    """The folder of a run, fetched from the Hub where the place is an id; None where it is no run.

    Args:
        place: Folder or Hub id.
        hub: ``token``, ``cache_dir`` and ``local_files_only`` of huggingface_hub.

    Raises:
        ArtifactError: it is a run on the Hub that cannot be fetched.
    """
    if is_run(place):
        return Path(place)
    if not is_hub_id(place):
        return None
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    given = {name: hub[name] for name in ("token", "cache_dir", "local_files_only") if hub.get(name) is not None}
    try:
        hf_hub_download(str(place), MANIFEST, **given)
    except (LocalEntryNotFoundError, EntryNotFoundError, OSError, HfHubHTTPError, ValueError):
        return None  # an ordinary model, or nothing that can be asked: whoever loads it says so
    try:
        return Path(snapshot_download(str(place), allow_patterns=list(PUBLISHED), **given))
    except (GatedRepoError, HfHubHTTPError, OSError, ValueError) as error:
        raise ArtifactError(f"the run {place} cannot be fetched from the Hub: {words(error)}") from error


def manifest_of(place: str | Path) -> Manifest | None:
    """The ``uld.json`` of a run, here or on the Hub; None where the place is no run.

    Raises:
        ArtifactError: it is damaged, or cannot be fetched.
    """
    folder = run_folder(place)
    return None if folder is None else Manifest.read(folder)


def files_to_publish(folder: Path) -> list[Path]:
    """The files of a run that `PUBLISHED` names, by their places in it; the card is always among them."""
    found = {path.relative_to(folder) for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    return sorted(found | {Path(CARD)})


@contextmanager
def publishable(folder: Path, repo: str) -> Iterator[Path]:
    """A copy of a run without what is not to leave the machine; weights are linked.

    Args:
        folder: A finished run.
        repo: Where it will be.

    Raises:
        ArtifactError: it is no finished run, its weights are not those that were trained, or the name is none.
    """
    if not _ID.fullmatch(repo):
        raise ArtifactError(f"{repo!r} is no name on the Hub: give it as org/name")
    manifest = Manifest.read(folder)
    refuse_changed(folder, manifest)
    target, small = _named(manifest.target), manifest.small and _named(manifest.small)
    # Names of files and folders say who asked, and what was to be forgotten.
    data = {
        side: [file.model_copy(update={"path": f"{side} {number}"}) for number, file in enumerate(files, 1)]
        for side, files in manifest.data.items()
    }
    public = manifest.model_copy(update={"target": target, "small": small, "data": data})
    with tempfile.TemporaryDirectory(prefix="uld-push-") as place:
        copy = Path(place)
        for name in files_to_publish(folder):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            if name.suffix == ".json" and name.name in ("config.json", ADAPTER_CONFIG):
                _without_places(folder / name, copy / name)
            elif name.name not in (MANIFEST, CARD) or (name.name == CARD and not is_own(folder)):
                (copy / name).symlink_to((folder / name).resolve())
        if is_own(folder):
            (copy / CARD).write_text(card(manifest, name=repo, check=check_of(folder)), encoding="utf-8")
        public.write(copy)
        yield copy


def _named(place: str) -> str:
    """A Hub id as it is; of a folder its name."""
    return Path(place).name if os.path.isabs(place) else place


def _without_places(path: Path, copy: Path) -> None:
    """Copy a config, with names in place of folders."""

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: _named(one) if key in _PLACES and isinstance(one, str) else named(one) for key, one in value.items()
        }

    config = named(json.loads(path.read_text(encoding="utf-8")))
    copy.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def publish(
    folder: Path, repo: str, *, private: bool = False, agreed: Callable[[Path], None] = lambda copy: None
) -> str:
    """Publish a run; one that was published there before is replaced.

    Args:
        folder: A finished run.
        repo: ``org/name``; made if it is not there.
        private: For its owners alone: a repository that everybody can read is refused.
        agreed: Gets the folder as it will be published, before the Hub hears of it; raises where it is not to be.

    Returns:
        Its address.

    Raises:
        ArtifactError: no such run, something else is there, everybody can read it, no network, no right to write there.
    """
    with publishable(folder, repo) as copy:
        agreed(copy)
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi()
        try:
            url = api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise ArtifactError(
                    f"{repo} is there already, and everybody can read it: make it private on the Hub, choose another "
                    "name, or leave out --private"
                )
            held = set(api.list_repo_files(repo)) - _OF_A_NEW_REPO
            if held and MANIFEST not in held:
                raise ArtifactError(f"{repo} holds something else than a run of uld: choose another name")
            # What an earlier run had there and this one has not would make it another run.
            api.upload_folder(
                repo_id=repo, folder_path=copy, commit_message="Publish a run of uld", delete_patterns=list(PUBLISHED)
            )
        except ArtifactError:
            raise
        except HfHubHTTPError as error:
            refused = error.response is not None and error.response.status_code in (401, 403)
            mend = (
                "log in with hf auth login, or set HF_TOKEN to a token that may write there" if refused else "try again"
            )
            raise ArtifactError(f"{repo} cannot be written on the Hub: {words(error)} ({mend})") from error
        except Exception as error:  # the HTTP library's own, for an unreachable Hub; offline mode; a missing token
            raise ArtifactError(
                f"{repo} cannot be published: the Hub does not answer, or may not be asked ({words(error)}); "
                "nothing is lost: run the same command again"
            ) from error
    return str(url)
