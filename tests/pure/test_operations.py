"""The counted operations of the benchmark against torch's own counter."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operations import WAN_1_3B, WAN_LATENT, Operations, Scheme, tokens
from pipeline.memory_cache import MemoryCache
from pipeline.transformer import ConditioningVideo, MemoryWanTransformer3DModel

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 3,
    "merge": "merge",
}


def video(frames=3, height=12, width=20):
    return ConditioningVideo(
        torch.randn(1, 16, frames, height, width),
        torch.eye(3, 4).expand(1, frames, 3, 4),
        torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(1, frames, 4),
        torch.arange(frames)[None] / 6,
    )


def an_edit(attention, merge, memories):
    """What all passes of an edit are given, but the words."""
    target = video()
    return {
        "hidden_states": target.latent,
        "timestep": torch.tensor([500.0]),
        "target_poses": target.poses + 0.01,
        "target_intrinsics": target.intrinsics,
        "target_times": target.times,
        "source": video(),
        "memories": [video() for _ in range(memories)],
        "attention": attention,
        "merge": merge,
        "cache": MemoryCache(),
    }


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"cameras": "plucker", "positions": "frustum", "patch_size": (3, 2, 2), "merge_kernel": (4, 4)},
        {"cameras": "plucker", "positions": "frustum", "patch_size": (1, 2, 4), "copied_videos": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("attention", ["cached", "joint"])
@pytest.mark.parametrize("merge", ["merge", "discard", "off"])
@pytest.mark.parametrize("memories", [0, 1, 6])
def test_counted_operations_are_those_that_torch_counts(config, attention, merge, memories):
    model = MemoryWanTransformer3DModel(**{**SMALL, **config}).eval()
    call = an_edit(attention, merge, memories)
    words = torch.randn(1, 7, 32)
    counted = Operations(model.config, (3, 12, 20), text=7)
    for filling in (True, False):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**call, encoder_hidden_states=words)
        assert counted.one(Scheme(attention, merge), memories, filling) == counter.get_total_flops()


@pytest.mark.parametrize("attention", ["cached", "joint"])
@pytest.mark.parametrize("memories", [0, 6])
def test_counted_operations_of_an_edit_with_guidance_are_those_that_torch_counts(attention, memories):
    config = {"cameras": "plucker", "positions": "frustum", "patch_size": (1, 2, 4), "copied_videos": 3}
    model = MemoryWanTransformer3DModel(**{**SMALL, **config}).eval()
    call, words, none = an_edit(attention, "merge", memories), torch.randn(1, 7, 32), torch.zeros(1, 7, 32)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for _ in range(3):
            said = model(**call, encoder_hidden_states=words, raw=True)
            model(**call, encoder_hidden_states=none, toward=(said, 3.0))
    counted = Operations(model.config, (3, 12, 20), text=7, unguided=1)
    assert counted.edit(Scheme(attention, "merge"), memories, steps=3) == counter.get_total_flops()


def test_full_size_tokens_are_the_papers():
    with torch.device("meta"):
        config = MemoryWanTransformer3DModel(**{**WAN_1_3B, "num_layers": 1}).config
    counted = Operations(config, WAN_LATENT, text=512)
    groups = counted.groups(Scheme("joint", "off"), 4)
    assert tokens(groups[:1]) == 32_760
    assert [group.tokens for group in groups[1:]] == [3 * 8_190, 2_184]


def test_a_whole_edit_is_its_steps():
    config = SimpleNamespace(**MemoryWanTransformer3DModel(**SMALL).config)
    counted, ours = Operations(config, (3, 12, 20), text=7), Scheme("cached", "merge")
    first, later = (counted.one(ours, 4, filling) for filling in (True, False))
    assert first > later
    assert counted.edit(ours, 4, steps=5) == first + 9 * later + counted._text(7)  # of the other pass's words
    assert counted.edit(ours, 4, steps=5, passes=1) == first + 4 * later
