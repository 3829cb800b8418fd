"""The published bases: their names and shapes at full size, what is refused, and ReCamMaster's semantics."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

from pipeline.bases import BASES, Base, BaseError, find
from pipeline.bases.base import FORMAT
from pipeline.bases.convert import by_shape, convert, load, place, skeleton, stock_shapes
from pipeline.bases.locate import locate, recognise
from pipeline.bases.lucy_edit import LUCY_EDIT
from pipeline.bases.memory_v2v import MEMORY_V2V
from pipeline.bases.recammaster import RECAMMASTER
from pipeline.bases.weights import diffusers_names, read_weights
from pipeline.memory_pipeline import MemoryV2VPipeline
from pipeline.spec import ModelSpec
from pipeline.trajectory import default_intrinsics, preset
from pipeline.transformer import ConditioningVideo
from tests.recammaster import ReCamMaster, shaken

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "in_channels": 4,
    "out_channels": 4,
}


def small(base: Base, **network) -> Base:
    """The same base at the size of a test."""
    return dataclasses.replace(
        base, network={**base.network, **SMALL, **network}, frame=(SMALL["out_channels"], *base.frame[1:])
    )


def reading(seed: int = 0) -> ReCamMaster:
    return shaken(ReCamMaster(heads=2, head_dim=12, channels=4, text=16, freq=32, ffn=32, layers=2), seed)


def published_names() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        full = ReCamMaster(heads=12, head_dim=128, channels=16, text=4096, freq=256, ffn=8960, layers=30)
    return {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()}


def is_new(name: str) -> bool:
    return not any(part in name for part in (".cam_encoder.", ".projector."))


# Names and shapes at full size.


def test_every_name_of_recammaster_has_its_place_at_full_size():
    model, names = skeleton(RECAMMASTER), published_names()
    placement = place(RECAMMASTER, model, names)
    assert len(placement.names) == len(names) == 945 and not placement.unplaced
    assert set(placement.names.values()) | set(placement.initialised) == set(model.state_dict())
    # what is left to our own initialisation is what the stock model and ReCamMaster do not have
    assert all(name not in stock_shapes(RECAMMASTER) and is_new(name) for name in placement.initialised)
    assert sum(math.prod(shape) for shape in names.values()) == 1_490_420_800  # Wan's 1.42 B + 71 M for cameras


def test_names_are_translated_as_published():
    names = diffusers_names(published_names())
    assert names["blocks.7.self_attn.o.weight"] == "blocks.7.attn1.to_out.0.weight"
    assert names["blocks.7.norm3.weight"] == "blocks.7.norm2.weight"  # these two swap; the other has no weights
    assert names["blocks.7.modulation"] == "blocks.7.scale_shift_table"
    assert names["head.modulation"] == "scale_shift_table"
    assert names["time_projection.1.bias"] == "condition_embedder.time_proj.bias"
    for own in ("cam_encoder.weight", "projector.bias"):
        assert names[f"blocks.7.{own}"] == f"blocks.7.{own}"


def test_every_name_of_lucy_edit_has_its_place_at_full_size():
    with torch.device("meta"):
        stock = WanTransformer3DModel(
            num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=96, out_channels=48
        )
    names = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    placement = place(LUCY_EDIT, skeleton(LUCY_EDIT), names)
    assert set(placement.names) == set(names) and not placement.unplaced
    assert names["patch_embedding.weight"] == (3072, 96, 1, 2, 2)
    assert names["proj_out.weight"] == (48 * 4, 3072)
    assert all(placement.names[name] == name for name in names)


def test_memory_v2v_places_what_fits_in_one_way_only_and_lists_the_rest():
    unknown = {
        "cond_embedders.1x4x4.weight": (1536, 16, 1, 4, 4),
        "cond_embedders.1x4x4.bias": (1536,),
        "token_downsampler.conv.weight": (1536, 1536, 2, 2),
        "token_downsampler.conv.bias": (1536,),
        "downsampler.a.weight": (1536, 1536, 3, 3),
        "downsampler.b.weight": (1536, 1536, 3, 3),
    }
    placement = place(MEMORY_V2V, skeleton(MEMORY_V2V), published_names() | unknown)
    assert placement.names["cond_embedders.1x4x4.weight"] == "tokenizers.1x2x2.weight"
    assert placement.names["cond_embedders.1x4x4.bias"] == "tokenizers.1x2x2.bias"
    assert placement.names["token_downsampler.conv.weight"] == "compressor.conv.weight"
    assert dict(placement.unplaced) == {name: unknown[name] for name in unknown if name.startswith("downsampler")}
    assert "tokenizers.1x4x4.weight" in placement.initialised


def test_shapes_that_fit_twice_are_not_guessed():
    given = {"a.weight": (2, 3), "b.weight": (2, 3), "c.weight": (4, 4), "c.bias": (4,), "d.weight": (5, 5)}
    wanted = {"x.weight": (2, 3), "y.weight": (4, 4), "y.bias": (4,), "z.weight": (5, 5), "z.bias": (5,)}
    assert by_shape(given, wanted) == {"c.weight": "y.weight", "c.bias": "y.bias"}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_a_base_is_found_by_name_and_by_hub_id(base):
    assert find(base.name) is base and find(base.repository.upper()) is base
    assert find("no-such-base") is None


def test_what_is_converted_may_not_change_under_the_same_format():
    # Converted folders are kept under FORMAT: whoever changes parameters or configurations raises it, then this digest.
    content = [
        [
            base.name,
            sorted((name, list(tensor.shape)) for name, tensor in skeleton(base).state_dict().items()),
            dict(base.network),
            dict(base.condition),
            dict(base.defaults),
        ]
        for base in BASES
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    assert (FORMAT, digest) == (3, "af7defca13549951")


# Semantics.


def test_recammaster_on_our_transformer_is_the_published_computation():
    published = reading()
    model, placement = load(small(RECAMMASTER), published.state_dict())
    model = revived(small(RECAMMASTER), model)
    random = torch.Generator().manual_seed(1)
    target, source = torch.randn(2, 1, 4, 3, 6, 8, generator=random)
    text, poses = torch.randn(1, 7, 16, generator=random), torch.randn(1, 3, 3, 4, generator=random)
    # the source's own camera must not matter
    video = ConditioningVideo(source, torch.randn(1, 3, 3, 4, generator=random))
    # diffusers takes the sine of the timestep in single precision, which at 1000 alone is off by 1.7e-5
    for t, tolerance in ((0.0, 1e-5), (437.0, 1e-5), (800.0, 1e-5), (1000.0, 2e-5)):
        timestep = torch.tensor([t])
        with torch.no_grad():
            expected = published(target, source, timestep, text, poses)
            ours = model(target, timestep, text, source=video, target_poses=poses).sample
        assert expected.abs().mean() > 0.1
        assert (ours - expected).abs().max() < tolerance, t


def test_recammasters_projector_is_part_of_attention_without_cameras_too():
    base = small(RECAMMASTER)
    weights = reading().state_dict()
    without = {name: value * (0 if "cam_encoder" in name else 1) for name, value in weights.items()}
    random = torch.Generator().manual_seed(1)
    latent, text = torch.randn(1, 4, 3, 6, 8, generator=random), torch.randn(1, 7, 16, generator=random)
    t, still = torch.tensor([437.0]), torch.eye(3, 4).expand(1, 3, 3, 4)
    model, blind = (revived(base, load(base, each)[0]) for each in (weights, without))
    for source in (None, ConditioningVideo(latent)):
        seeing = None if source is None else ConditioningVideo(latent, still)
        with torch.no_grad():
            ours = model(latent, t, text, source=source).sample
            same = blind(latent, t, text, source=seeing, target_poses=still).sample
        assert torch.allclose(ours, same, atol=1e-5)


def test_lucy_edit_on_our_transformer_is_the_stock_model_on_both_latents():
    base = small(LUCY_EDIT, in_channels=8)
    torch.manual_seed(0)
    stock = WanTransformer3DModel(**base.network).eval()
    model = revived(base, load(base, stock.state_dict())[0])
    target, source = torch.randn(2, 1, 4, 3, 6, 8)
    text, t = torch.randn(1, 7, 16), 437.0
    tokens = 3 * 3 * 4
    with torch.no_grad():
        # as published: one timestep for every token, all equal
        expected = stock(torch.cat([target, source], dim=1), torch.full((1, tokens), t), text).sample
        ours = model(target, torch.tensor([t]), text, source=ConditioningVideo(source)).sample
    assert torch.allclose(ours, expected, atol=1e-5)


def revived(base: Base, loaded):
    """The loaded parameters in a model whose buffers are real too, as saving and loading gives it."""
    from pipeline.transformer import MemoryWanTransformer3DModel

    model = MemoryWanTransformer3DModel(**{**base.network, **base.condition})
    model.load_state_dict(loaded.state_dict())
    return model.eval()


def test_what_the_checkpoint_does_not_hold_starts_as_for_any_base():
    model, placement = load(small(RECAMMASTER), reading().state_dict())
    assert torch.equal(model.tokenizers["1x1x1"].weight, model.patch_embedding.weight)
    assert torch.equal(model.blocks[1].projector.weight, reading().blocks[1].projector.weight)
    assert torch.equal(model.blocks[1].cam_encoder.bias, reading().blocks[1].cam_encoder.bias)
    assert "tokenizers.1x4x4.weight" in placement.initialised


# Refusals.


@pytest.mark.parametrize("base", [RECAMMASTER, MEMORY_V2V], ids=lambda base: base.name)
def test_a_missing_parameter_is_an_error_that_names_it(base):
    weights = reading().state_dict()
    del weights["blocks.1.projector.bias"]
    with pytest.raises(BaseError, match="lacks 1 parameters: blocks.1.projector.bias"):
        load(small(base), weights)


def test_an_unknown_parameter_is_an_error_that_names_it():
    with pytest.raises(BaseError, match="1 unknown parameters: face_adapter"):
        load(small(RECAMMASTER), reading().state_dict() | {"face_adapter": torch.zeros(1)})


def test_other_widths_are_an_error_with_expected_and_got():
    with pytest.raises(BaseError, match=r"head.head.bias \[16\] where \[64\] is expected"):
        load(
            RECAMMASTER,
            {name: torch.empty(shape, device="meta") for name, shape in published_names().items()}
            | {"head.head.bias": torch.zeros(16)},
        )


def test_a_checkpoint_that_could_run_code_is_not_opened(tmp_path):
    torch.save({"patch_embedding.weight": torch.zeros(1), "hook": ByT5Tokenizer}, tmp_path / "step1.ckpt")
    with pytest.raises(BaseError, match="could run code"):
        read_weights(tmp_path / "step1.ckpt")


def test_a_broken_download_is_an_error_of_one_line(tmp_path):
    for name in ("model.safetensors", "step1.ckpt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not all of it")
        with pytest.raises(BaseError, match="is the download complete") as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_both_formats_and_a_trainers_wrapping_read_the_same(tmp_path, suffix):
    weights = reading().state_dict()
    wrapped = {f"pipe.dit.{name}": tensor.contiguous() for name, tensor in weights.items()}
    path = tmp_path / f"step1.{suffix}"
    torch.save({"state_dict": wrapped}, path) if suffix == "ckpt" else save_file(wrapped, path)
    read = read_weights(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


# Folders.


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    """vae, text_encoder and tokenizer of the bases' kind, small."""
    folder = tmp_path_factory.mktemp("components")
    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).save_pretrained(folder / "vae")
    text = UMT5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1)
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def folder_of(components, place, weights):
    for part in components.iterdir():
        (place / part.name).symlink_to(part)
    torch.save(weights, place / "step20000.ckpt")
    return place


def test_a_converted_base_is_a_model_as_any_other(components, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    folder_of(components, source, reading().state_dict())
    base = small(RECAMMASTER)
    converted = tmp_path / "converted"
    convert(base, locate(base, source), converted)
    spec = ModelSpec.read(converted)
    assert (spec.compression, spec.segment_frames, spec.steps, spec.trained) == ((4, 8), 81, 50, True)
    assert not spec.caches and spec.merges
    assert json.loads((converted / "conversion.json").read_text())["unplaced"] == {}

    pipe = MemoryV2VPipeline.from_pretrained(converted)
    pipe.set_progress_bar_config(disable=True)
    intrinsics = default_intrinsics(64 / 48)
    frames = torch.randint(0, 255, (9, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    edit = pipe(
        frames, target_trajectory=preset("pan_right", 9, intrinsics), prompt="a street", num_inference_steps=2,
        generator=torch.Generator().manual_seed(0), output_type="np",
    )  # fmt: skip
    assert edit.latents.shape == (4, 3, 6, 8) and edit.latents.isfinite().all()
    assert edit.frames.shape == (9, 48, 64, 3)

    parts = {name: part for name, part in pipe.components.items() if name != "transformer"}
    published = WanPipeline(**parts)._get_t5_prompt_embeds("a <b>street</b>, 4 pm", max_sequence_length=512)
    assert torch.allclose(pipe.encode_prompt("a <b>street</b>, 4 pm"), published, atol=1e-5)
    assert published[0, 21].any()


def test_a_converted_folder_is_not_taken_for_a_base(components, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    folder_of(components, source, reading().state_dict())
    convert(small(RECAMMASTER), locate(RECAMMASTER, source), tmp_path / "converted")
    torch.save(reading().state_dict(), tmp_path / "converted" / "step20000.ckpt")
    assert recognise(tmp_path / "converted") is None


def test_converting_twice_gives_the_same_bytes(components, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    folder_of(components, source, reading().state_dict())
    base = small(RECAMMASTER)
    contents = []
    for name in ("one", "two"):
        convert(base, locate(base, source), tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_lucy_edit_converts_from_diffusers_folder(components, tmp_path):
    base = small(LUCY_EDIT, in_channels=8)
    stock = WanTransformer3DModel(**base.network)
    for part in components.iterdir():
        (tmp_path / part.name).symlink_to(part)
    stock.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LucyEditPipeline"}))
    assert recognise(tmp_path) is LUCY_EDIT
    # this small vae halves three times; the published one also folds 2x2 pixels
    base = dataclasses.replace(base, frame=(4, 4, 8))
    convert(base, locate(base, tmp_path), tmp_path / "converted")
    pipe = MemoryV2VPipeline.from_pretrained(tmp_path / "converted")
    for name, value in stock.state_dict().items():
        assert torch.equal(pipe.transformer.state_dict()[name], value), name
    pipe.set_progress_bar_config(disable=True)
    frames = torch.randint(0, 255, (5, 48, 64, 3), dtype=torch.uint8)
    edits = [pipe(frames, prompt=prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).latents
             for prompt in ("a red jacket", "a blue jacket")]  # fmt: skip
    assert edits[0].shape == (4, 2, 6, 8) and not torch.equal(*edits)


def test_a_folder_is_recognised_by_what_its_checkpoint_holds(tmp_path):
    weights = reading().state_dict()
    torch.save(weights, tmp_path / "a.ckpt")
    assert recognise(tmp_path) is RECAMMASTER
    # laid into the folder of Wan's own pipeline, whose components it needs
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    assert recognise(tmp_path) is RECAMMASTER
    torch.save(weights | {"embedders.0.weight": torch.zeros(1)}, tmp_path / "a.ckpt")
    assert recognise(tmp_path) is MEMORY_V2V
    torch.save({name: value for name, value in weights.items() if is_new(name)}, tmp_path / "a.ckpt")
    assert recognise(tmp_path) is None
    torch.save(weights, tmp_path / "b.pt")
    with pytest.raises(BaseError, match="several checkpoints .a.ckpt, b.pt."):
        recognise(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(BaseError, match="holds adapters alone: load them .*fuse_lora"):
        recognise(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").touch()
    with pytest.raises(BaseError, match="holds a training, .* name .*model$"):
        recognise(tmp_path)


def test_a_vae_of_another_model_is_refused(components, tmp_path):
    folder_of(components, tmp_path, reading().state_dict())
    with pytest.raises(BaseError, match=r"gives \(4, 4, 8\).*recammaster needs \(16, 4, 8\)"):
        convert(RECAMMASTER, locate(RECAMMASTER, tmp_path), tmp_path / "converted")


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_without_the_hub_the_error_says_what_to_put_where(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BaseError, match="cannot be fetched from the hub") as error:
        locate(base)
    message = str(error.value)
    assert base.repository in message and base.components in message and "\n" not in message


def test_a_folder_without_weights_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(BaseError, match="no weights of recammaster: expected step20000.ckpt of KwaiVGI"):
        locate(RECAMMASTER, tmp_path)
