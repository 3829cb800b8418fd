"""How a model's name becomes a folder: mini, bases that are converted once, our own folders, and errors."""

from __future__ import annotations

import pytest
import torch

import jobs.model
from jobs.model import ModelError, resolve
from pipeline.bases import BASES
from pipeline.bases.recammaster import RECAMMASTER
from tests.pure.test_bases import components, folder_of, reading, small  # noqa: F401  (a fixture among them)


@pytest.fixture
def checkout(components, tmp_path, monkeypatch):  # noqa: F811
    """A local folder with all files of ReCamMaster, at the size of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jobs.model, "recognise", lambda folder: small(RECAMMASTER))
    (tmp_path / "recammaster").mkdir()
    return folder_of(components, tmp_path / "recammaster", reading().state_dict())


def test_a_folder_of_a_base_is_converted_once(checkout, tmp_path, capsys):
    model = resolve(str(checkout))
    assert model.spec.trained and model.folder.startswith(str(tmp_path / "cache"))
    assert "converting ReCamMaster" in capsys.readouterr().err
    assert resolve(str(checkout)) == model
    assert "converting" not in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cache/memory-v2v/models").iterdir()] == [model.folder.split("/")[-1]]


def test_other_weights_are_another_model(checkout):
    before = resolve(str(checkout))
    torch.save(reading(seed=1).state_dict(), checkout / "step20000.ckpt")
    after = resolve(str(checkout))
    assert before.folder != after.folder and before.digest != after.digest


def test_a_conversion_that_fails_leaves_nothing_and_says_why(checkout, tmp_path):
    torch.save({"patch_embedding.weight": torch.zeros(1)}, checkout / "step20000.ckpt")
    with pytest.raises(ModelError, match="recammaster: the checkpoint lacks"):
        resolve(str(checkout))
    assert not list((tmp_path / "cache/memory-v2v/models").iterdir())


def test_an_unknown_name_is_an_error_that_lists_what_there_is():
    with pytest.raises(ModelError, match="no-such-model.*mini, recammaster, lucy-edit, memory-v2v"):
        resolve("no-such-model")


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_without_the_hub_a_base_is_an_error_of_one_line(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=f"model '{base.name}': .* put .* into one folder and name that folder"
    ) as error:
        resolve(base.name)
    assert "\n" not in str(error.value)
