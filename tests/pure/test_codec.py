import json
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import AutoencoderKLWan

from pipeline.codec import PixelCodec, WanCodec, codec_of
from pipeline.pixels import Pixels, load_codec


@pytest.fixture(scope="module")
def wan():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return WanCodec(vae.eval())


def every_grey_level():
    return torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3).contiguous()


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_pixels_come_back_exactly_from_the_store(stored):
    codec, frames = PixelCodec().pixels, every_grey_level()
    latent = codec.encode(frames)
    assert latent.shape == (3, 1, 16, 16) and latent.dtype == torch.float32
    assert torch.equal(codec.decode(latent.to(stored)), frames)


def test_pixels_are_normalised_as_the_recipe_says():
    latent = PixelCodec().pixels.encode(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    assert torch.allclose(latent, torch.tensor((1 - 0.45) / 0.27))


def test_what_lies_outside_the_range_of_pictures_is_clipped():
    decoded = PixelCodec().pixels.decode(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2).expand(3, 1, 1, 2))
    assert decoded[0, 0, :, 0].tolist() == [0, 255]


def test_a_pixel_codec_survives_saving_and_half_precision(tmp_path):
    PixelCodec(mean=0.4, std=0.3).save_pretrained(tmp_path)
    codec = PixelCodec.from_pretrained(tmp_path).to(torch.float16)
    assert (codec.config.mean, codec.config.std) == (0.4, 0.3)
    frames = every_grey_level()
    assert torch.equal(codec.pixels.decode(codec.pixels.encode(frames)), frames)


def test_wan_latents_are_four_frames_and_eight_pixels_a_step(wan):
    frames = torch.randint(0, 256, (9, 16, 24, 3), dtype=torch.uint8)
    latent = wan.encode(frames)
    assert latent.shape == (16, 3, 2, 3) and latent.dtype == torch.float32
    assert wan.decode(latent).shape == frames.shape
    assert (wan.channels, wan.temporal_compression, wan.spatial_compression) == (16, 4, 8)


def test_wan_coding_is_deterministic(wan):
    frames = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    first = wan.encode(frames)
    wan.encode(torch.zeros_like(frames))  # leaves nothing behind on the module
    assert torch.equal(first, wan.encode(frames))
    assert torch.equal(wan.decode(first), wan.decode(first))


def test_wan_latents_are_normalised_by_the_published_statistics(wan):
    frames = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    raw = wan.vae.encode(frames.permute(3, 0, 1, 2)[None] / 127.5 - 1).latent_dist.mode()
    mean, std = (torch.tensor(wan.vae.config[key]).view(1, 16, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    assert torch.allclose(wan.encode(frames)[None] * std + mean, raw, atol=1e-5)


@pytest.mark.parametrize("frames", [2, 4, 16])
def test_wan_refuses_frames_that_its_vae_would_drop(wan, frames):
    with pytest.raises(ValueError, match=rf"1 \+ 4n frames.*got {frames} frames"):
        wan.encode(torch.zeros(frames, 16, 16, 3, dtype=torch.uint8))


def test_the_component_decides_the_codec(wan):
    assert codec_of(PixelCodec(mean=0.4, std=0.3)) == Pixels(0.4, 0.3, torch.device("cpu"))
    assert isinstance(codec_of(wan.vae), WanCodec)


def test_pixel_latents_accept_numpy_frames_of_any_memory_layout():
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)[:, ::-1].copy()
    codec = Pixels(0.45, 0.27)
    assert np.array_equal(codec.decode(codec.encode(torch.from_numpy(frames))).numpy(), frames)


def test_an_offloaded_vae_gets_its_input_where_it_will_work(wan):
    def offloaded():
        codec = WanCodec(deepcopy(wan.vae))
        cpu_offload_with_hook(codec.vae, torch.device("meta"))  # stands for the GPU that the hook moves the weights to
        return codec

    assert offloaded().encode(torch.zeros(5, 16, 16, 3, dtype=torch.uint8)).is_meta
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # decoded there it stays there
        offloaded().decode(torch.zeros(16, 2, 2, 2))


def test_a_saved_pipelines_codec_is_the_one_that_it_has(tiny_model, tmp_path, wan):
    assert load_codec(tiny_model) == Pixels(0.45, 0.27)
    wan.vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", "AutoencoderKLWan"]}))
    latent = torch.zeros(16, 2, 2, 2)
    assert torch.equal(load_codec(str(tmp_path)).decode(latent), wan.decode(latent))


def test_who_only_decodes_pixels_does_not_wait_for_diffusers(tiny_model):
    script = f"import sys, actors.publisher as p; p.load_codec({tiny_model!r}); print('diffusers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said == "False\n"
