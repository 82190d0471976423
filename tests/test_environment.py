"""The files that describe the environment agree with each other and with the code."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import medstudy

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
#: Modules whose distribution has another name.
DISTRIBUTION = {"sklearn": "scikit-learn", "yaml": "pyyaml"}


def names(requirements: list[str]) -> set[str]:
    return {normal(Requirement(r).name) for r in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> dict[str, str]:
    lines = (REPOSITORY / "requirements.lock.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {normal(r.name): str(r.specifier).removeprefix("==") for r in pinned}


def test_environment_yml_installs_the_project() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-e .[dev]"]
    assert "dev" in PROJECT["optional-dependencies"]


def test_every_library_that_the_package_imports_is_declared() -> None:
    imported = {
        name.split(".")[0]
        for path in (REPOSITORY / "medstudy").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imports(node)
    }
    theirs = imported - set(sys.stdlib_module_names) - {"medstudy"}
    missing = {normal(DISTRIBUTION.get(name, name)) for name in theirs} - names(PROJECT["dependencies"])
    assert not missing


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


@pytest.mark.parametrize("requirement", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_lock_and_installed_version_are_in_range(requirement: str) -> None:
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(lock()[normal(wanted.name)])
    assert wanted.specifier.contains(importlib.metadata.version(wanted.name))


def test_lock_says_nothing_about_this_machine() -> None:
    text = (REPOSITORY / "requirements.lock.txt").read_text()
    assert not re.search(r"://|file:|@|^-|\+", text, re.MULTILINE)


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == medstudy.__version__ == importlib.metadata.version("medstudy")
    assert citation["license"] == PROJECT["license"]
