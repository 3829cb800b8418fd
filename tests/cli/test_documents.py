"""What the documents say can be typed, can be typed."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from jobs import demo
from jobs.main import main
from tests import ROOT
from tests.docs import DOCUMENTS, commands, targets
from tests.training import render_scenes

COMMANDS = [(document.name, command) for document in DOCUMENTS for command in commands(document)]


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory):
    """A folder that looks as after `make demo`: the sample clip is there, a small one."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "demo").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "HEIGHT", 96)
        patch.setattr(demo, "WIDTH", 128)
        demo.render(folder / "demo" / "room.mp4")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture(scope="module")
def synthesized(tmp_path_factory: pytest.TempPathFactory):
    """A folder that looks as after the README's `synthesize`: there are scenes to train on, and to extend."""
    folder = tmp_path_factory.mktemp("synthesized")
    (folder / "demo").mkdir()
    render_scenes(folder / "demo" / "scenes", depth=True)
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_every_command_of_the_documents_dry_runs(
    document, command, demonstrated, synthesized, monkeypatch, capfd
) -> None:
    program, *words = shlex.split(command)
    monkeypatch.chdir(synthesized if words[:1] == ["train"] or "--extend" in words else demonstrated)
    if program == "make":
        assert {word for word in words if "=" not in word} <= targets(), f"{document}: {command}"
    else:
        assert program == "memory-v2v", f"{document}: {command} is neither make nor memory-v2v"
        assert main([*words, "--dry-run"]) == 0, capfd.readouterr().err


def test_the_readmes_python_runs(demonstrated, monkeypatch) -> None:
    monkeypatch.chdir(demonstrated)
    made: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL):
        exec(block, made)
    assert made["pictures"].shape == (16, 48, 64, 3)


def test_every_file_that_the_documents_link_to_is_there() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}, which is not there"
