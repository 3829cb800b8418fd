"""Fine-tuning: of a base with the published classes at the size of a test, of adapters alone, from kept latents."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.training import CHECKPOINTS, MODEL, train
from actors.training_data import Encoded
from pipeline.bases.lucy_edit import LUCY_EDIT
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.training.tuning import ADAPTED, add_lora, takes_part
from storage.checkpoints import Checkpoints
from tests.training import logged, render_scenes, setup, tiny_base, validated


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base") / "recammaster")


@pytest.fixture(scope="module")
def few_scenes(tmp_path_factory) -> str:
    """Small, since every window is encoded."""
    return render_scenes(tmp_path_factory.mktemp("few"), trained=2, frames=18)


@pytest.fixture
def fine(few_scenes, base, tmp_path):
    """A setup of a few steps on the base."""
    recipe = {"steps": 4, "targets": 1, "warmup": 1}
    return lambda out="out", also=(), **changed: setup(
        few_scenes, tmp_path / out, base, {**recipe, **dict(also)}, frames=9, **changed
    )


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/transformer/diffusion_pytorch_model.safetensors")


def state(asked):
    found = Checkpoints(Path(asked.out) / CHECKPOINTS).latest()
    assert found is not None
    return found[1]


def test_a_base_is_tuned_where_the_paper_tunes_it_and_nowhere_else(fine, base):
    recipe = {"camera_dropout": 0.3, "steps": 6}
    asked = fine(tune="paper", also=recipe, sheet_every=6, validation_batches=1, height=64, width=64)
    train(asked)
    before, after = weights(base), weights(f"{asked.out}/{MODEL}")
    tuned = takes_part("paper")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(tuned(f"transformer.{name}") for name in moved)
    for part in ("attn1.to_q", "attn1.to_out.0", "cam_encoder", "projector", "tokenizers.1x1x1", "compressor"):
        assert any(part in name for name in moved), part
    assert len(moved) > 0.9 * sum(tuned(f"transformer.{name}") for name in before)
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert Path(base, part).read_bytes() == Path(asked.out, MODEL, part).read_bytes()
    pipe = MemoryV2VPipeline.from_pretrained(f"{asked.out}/{MODEL}")
    assert pipe.config.trained_steps == 20_006  # those of the base, and ours
    assert tuple(pipe.config.learned) == ("camera", "text", "memory"), "all that it was shown"
    assert list(validated(asked.out)) == [0, 6] and list((Path(asked.out) / "sheets").iterdir())


def test_targets_share_an_encoding_beside_a_source_in_channels(fine, tmp_path):
    base = tiny_base(tmp_path / "lucy", LUCY_EDIT)
    for targets in (1, 2):
        asked = replace(fine(f"out{targets}", also={"targets": targets}), model=base, attention="cached")
        train(asked)
        assert Checkpoints(Path(asked.out) / CHECKPOINTS).steps()[-1] == 4


def test_adapters_are_trained_alone_resumed_and_loaded_as_diffusers_does(fine, base):
    recipe = {"decay": 0.0}  # else the rates would depend on where a training was to end
    whole, stopped = (fine(out, also=recipe, tune="lora", lora_rank=4) for out in ("whole", "stopped"))
    train(whole)
    train(replace(stopped, recipe=replace(stopped.recipe, steps=2)))
    train(stopped)
    names = list(state(whole)["parameters"])
    assert len(names) == 2 * len(ADAPTED) * 2 and all("lora_" in name for name in names)
    for part in (lambda s: s["parameters"].values(), lambda s: s["average"]["shadow_params"]):
        assert all(map(torch.equal, *map(list, map(part, (state(whole), state(stopped))))))
    [file] = (Path(whole.out) / MODEL).iterdir()
    assert file.name == "pytorch_lora_weights.safetensors"

    pipe = MemoryV2VPipeline.from_pretrained(base)
    plain = {name: value.clone() for name, value in pipe.transformer.named_parameters()}
    pipe.load_lora_weights(f"{whole.out}/{MODEL}", adapter_name="ours")
    loaded = {name.replace(".base_layer", ""): value for name, value in pipe.transformer.named_parameters()}
    for name, average in zip(names, state(whole)["average"]["shadow_params"], strict=True):
        assert torch.equal(loaded[name.removeprefix("transformer.").replace(".default.", ".ours.")], average), name
        assert average.any()
    assert all(torch.equal(loaded[name], value) for name, value in plain.items())
    modules = [each for each in pipe.transformer.modules() if hasattr(each, "scaling")]
    assert len(modules) == 8 and all(each.scaling == {"ours": 1.0} for each in modules)


def test_adapters_without_their_package_are_refused_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"peft, which is not installed: pip install -e '.\[lora\]'"):
        add_lora(None, 4)


def test_kept_latents_train_the_same_and_are_made_once(fine, monkeypatch):
    plain, kept = fine("plain", tune="paper"), fine("kept", tune="paper", latents=True)
    train(plain)
    encoded: list[object] = []
    encode = Encoded.__call__
    monkeypatch.setattr(Encoded, "__call__", lambda self, *call: encoded.append(call) or encode(self, *call))
    train(kept)
    files = list((Path(kept.out) / "latents").glob("*/*.npy"))
    assert len(files) == len(encoded) == logged(kept.out)[0]["encoded"] > 20
    assert all(map(torch.equal, *(state(each)["parameters"].values() for each in (plain, kept))))
    files[0].unlink()  # as if it had been stopped before that one
    train(replace(kept, recipe=replace(kept.recipe, steps=5)))
    assert len(encoded) == len(files) + 1 and files[0].exists()


@pytest.mark.parametrize("changed", [{"gradient_checkpointing": True}, {"precision": "bfloat16"}])
def test_less_memory_gives_nearly_the_same_losses(fine, tiny_scenes, tiny_model, tmp_path, changed, monkeypatch):
    monkeypatch.setattr("pipeline.training.log.EVERY", 1)
    plain, spare = (setup(tiny_scenes, tmp_path / name, tiny_model, {"steps": 2}) for name in ("plain", "spare"))
    spare = replace(spare, **changed)
    for each in (plain, spare):
        train(each)
    tolerance = {"rel": 0.02} if "precision" in changed else {"rel": 1e-4}
    for one, other in zip(logged(plain.out), logged(spare.out), strict=True):
        for name in {"loss", "gradient"} & set(one):
            assert other[name] == pytest.approx(one[name], **tolerance), name
