"""The house has four floors, and imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

FLOORS = ["pipeline", "storage", "actors", "jobs"]
FORBIDDEN = {
    "pipeline": {"lance", "ray", "av", "pyarrow", "fsspec", "omegaconf", "PIL", "yaml", "torchvision"},
    "storage": {"ray", "torchvision"},
    "actors": {"torchvision"},
    "jobs": {"torchvision"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_nothing_from_above_and_nothing_forbidden(floor: str) -> None:
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    files = sorted((ROOT / floor).glob("**/*.py"))
    assert files
    for path in files:
        wrong = imported(path) & (above | FORBIDDEN[floor])
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("module", ["actors.run", "pipeline.training.rendered"])
def test_who_runs_editors_or_renders_starts_without_the_libraries_of_a_model(module: str) -> None:
    code = f"import sys, {module}; print({{'diffusers', 'transformers'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_every_dependency_is_pinned_in_the_constraints_file() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {word.split("[")[0].split(">")[0].split("=")[0].strip().lower() for word in wanted}
    assert names <= pinned, f"not pinned: {sorted(names - pinned)}"


def test_the_cluster_file_is_valid_by_rays_own_schema() -> None:
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
