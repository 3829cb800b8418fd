"""What diffusers' users expect of a pipeline, on the smallest model: arrangements, caches, LoRA, compile, offload."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig, get_peft_model_state_dict

from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo
from pipeline.trajectory import PRESETS, Trajectory, default_intrinsics, preset
from tests.tiny import build_tiny

LENS = default_intrinsics(1.0)
STILL, ARC = Trajectory.static(16, LENS), preset("arc_left", 16, LENS)


def build(seed=0):
    pipe = build_tiny(seed)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return build()


def latent(seed):
    return torch.randn(3, 16, 32, 32, generator=torch.Generator().manual_seed(seed))


def edit(pipe, memories=6, start=0, **changes):
    paths = [preset(PRESETS[rank], 16, LENS) for rank in range(memories)]
    call = {
        "source": latent(100),
        "source_trajectory": STILL,
        "target_trajectory": ARC,
        "prompt": "a red jacket",
        "memories": [MemoryVideo(latent(rank), path, start - 16 * rank) for rank, path in enumerate(paths)],
        "generator": torch.Generator().manual_seed(0),
        "guidance_scale": 2.0,
    }
    return pipe(**{**call, **changes})


def test_mini_is_cached_with_rays_frustum_positions_and_merging(pipe):
    config = pipe.transformer.config
    assert (config.attention, config.cameras, config.positions, config.merge) == (
        "cached", "plucker", "frustum", "merge",
    )  # fmt: skip


def test_a_call_may_choose_another_arrangement(pipe):
    results = [
        edit(pipe, **changes).latents
        for changes in ({}, {"attention": "joint"}, {"merge": "off"}, {"merge": "discard"}, {"attention": "cached"})
    ]
    assert torch.equal(results[0], results[4])
    for other in results[1:4]:
        assert other.isfinite().all() and (results[0] - other).abs().max() > 1e-5


def test_conditioning_is_encoded_once_for_all_steps_and_both_passes(pipe):
    calls = []
    tokenizer = pipe.transformer.tokenizers["1x1x1"]
    hook = tokenizer.register_forward_hook(lambda *_: calls.append(1))
    try:
        edit(pipe, num_inference_steps=3)
        assert len(calls) == 1  # of the source
        edit(pipe, num_inference_steps=3, attention="joint")
        assert len(calls) == 1 + 1
    finally:
        hook.remove()


def test_the_cache_reports_its_bytes_and_may_live_elsewhere(pipe):
    plain, host, small = (
        edit(pipe, **changes) for changes in ({}, {"cache_device": "cpu"}, {"cache_dtype": torch.float8_e4m3fn})
    )
    assert torch.equal(plain.latents, host.latents) and plain.cache_bytes == host.cache_bytes
    assert plain.cache_bytes / 4 < small.cache_bytes < plain.cache_bytes / 3.9
    assert (plain.latents - small.latents).abs().mean() < 0.02
    words = edit(pipe, attention="joint").cache_bytes
    assert 0 < words < plain.cache_bytes / 4


def test_the_cache_grows_with_what_is_kept(pipe):
    sizes = [edit(pipe, memories=count, merge="off").cache_bytes for count in (0, 1, 4)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert edit(pipe, memories=4).cache_bytes < sizes[2]


def test_rank_correlations_come_on_request(pipe):
    assert edit(pipe).rank_correlations is None
    found = edit(pipe, track_responsiveness=True, num_inference_steps=3).rank_correlations
    assert sorted(found) == pipe.transformer.merge_points
    for values in found.values():
        assert len(values) == 5  # the other pass of the first step, and two of each later one
        assert all(-1 <= value <= 1 for value in values)


def test_time_in_seconds_matters_where_positions_know_it(pipe):
    first = edit(pipe, memories=1).latents
    assert (first - edit(pipe, memories=1, frame_rate=8.0).latents).abs().max() > 1e-6
    assert (first - edit(pipe, memories=1, start=-64).latents).abs().max() > 1e-6


def test_without_any_camera_all_videos_share_one_that_stands_still(pipe):
    text = {"source_trajectory": None, "target_trajectory": None}
    plain = edit(pipe, **text, memories=0)
    assert torch.equal(plain.latents, edit(pipe, source_trajectory=STILL, target_trajectory=STILL, memories=0).latents)


def test_a_lora_is_loaded_scaled_and_taken_out_again(tmp_path):
    pipe = build()
    plain = edit(pipe).latents
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    )
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    MemoryV2VPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    adapted = edit(pipe).latents
    assert (plain - adapted).abs().max() > 1e-3
    pipe = build()
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    assert torch.allclose(edit(pipe).latents, adapted, atol=1e-6)
    assert torch.allclose(edit(pipe, attention_kwargs={"scale": 0.0}).latents, plain, atol=1e-5)
    pipe.unload_lora_weights()
    assert torch.equal(edit(pipe).latents, plain)


def test_repeated_blocks_compile_without_graph_breaks():
    pipe = build()
    plain, joint = edit(pipe).latents, edit(pipe, attention="joint").latents
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert torch.allclose(edit(pipe).latents, plain, atol=1e-5)
    # Another kind of call: there are more than the 8 that torch compiles unasked.
    assert torch.allclose(edit(pipe, attention="joint").latents, joint, atol=1e-5)


def test_inference_mode_changes_nothing():
    pipe = build()
    plain = edit(pipe).latents
    with torch.inference_mode():
        assert torch.equal(edit(pipe).latents, plain)


def test_blocks_may_be_offloaded_in_groups():
    pipe = build()
    plain = edit(pipe).latents
    here = torch.device("cpu")
    pipe.transformer.enable_group_offload(here, here, offload_type="block_level", num_blocks_per_group=1)
    assert torch.equal(edit(pipe).latents, plain)


def test_an_attention_backend_is_chosen_through_diffusers_dispatcher():
    pipe = build()
    plain = edit(pipe).latents
    with attention_backend("native"):  # puts back what diffusers makes everybody's backend beside this model's
        pipe.transformer.set_attention_backend("_native_math")
        assert pipe.transformer.blocks[0].attn1.processor._attention_backend == "_native_math"
        assert torch.allclose(edit(pipe).latents, plain, atol=1e-4)


def test_projections_may_be_fused():
    pipe = build()
    plain = edit(pipe).latents
    pipe.transformer.fuse_qkv_projections()
    assert torch.allclose(edit(pipe).latents, plain, atol=1e-4)


def test_a_frame_rate_of_nothing_is_refused(pipe):
    with pytest.raises(ValueError, match="frame_rate must be positive, got 0"):
        edit(pipe, frame_rate=0)


def test_an_edit_in_frames_equals_the_edit_of_their_latent(pipe):
    frames = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    assert torch.equal(edit(pipe, source=frames).latents, edit(pipe, source=pipe.encode(frames)).latents)


@pytest.mark.parametrize("layer", ["patch_embedding", "compressor.conv", "tokenizers.1x1x1", "copying.proj"])
def test_an_adapter_may_sit_on_every_layer_that_has_weights(layer):
    pytest.importorskip("peft")
    from peft import LoraConfig

    adapted = build()
    before = edit(adapted, memories=6)
    adapted.transformer.add_adapter(LoraConfig(r=2, target_modules=[layer], init_lora_weights=False))
    assert not torch.equal(edit(adapted, memories=6).latents, before.latents)
    adapted.transformer.disable_adapters()
    assert torch.equal(edit(adapted, memories=6).latents, before.latents)


def test_every_module_is_called_where_it_was_offloaded():
    accelerate = pytest.importorskip("accelerate")
    usual, away = build(), build()
    accelerate.cpu_offload(away.transformer, execution_device="cpu")
    assert torch.equal(edit(usual).latents, edit(away).latents)
