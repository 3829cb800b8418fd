import re
import sys

import av
import numpy as np
import pytest
import torch

from pipeline import descriptor
from pipeline.descriptor import DIMENSION, DescriptorError, describe
from pipeline.scenes import render_clip


@pytest.fixture(scope="module")
def rendered():
    return {seed: render_clip(frames=4, height=72, width=96, seed=seed) for seed in (0, 1)}


def test_a_descriptor_is_a_unit_vector_and_repeats(rendered):
    vector = describe(rendered[0])
    assert vector.shape == (DIMENSION,) and vector.dtype == np.float32
    assert np.isclose(np.linalg.norm(vector), 1, atol=1e-5)
    assert np.array_equal(vector, describe(torch.from_numpy(rendered[0])))


def test_the_same_scene_is_nearer_than_another(rendered):
    first, later = describe(rendered[0][:2]), describe(rendered[0][2:])
    assert first @ later > 0.97 > 0.93 > first @ describe(rendered[1])


def test_a_single_frame_has_a_descriptor(rendered):
    assert describe(rendered[0][:1]).shape == (DIMENSION,)


def test_real_clips_are_told_apart(clips):
    halves = {}
    for name in ("bedroom", "bigbuckbunny", "bikes"):
        with av.open(str(clips / f"{name}.mp4")) as container:
            frames = [f.to_ndarray(format="rgb24") for _, f in zip(range(24), container.decode(video=0), strict=False)]
        halves[name] = describe(np.stack(frames[:12]), samples=2), describe(np.stack(frames[12:]), samples=2)
    for name, (early, late) in halves.items():
        others = [early @ other for same, pair in halves.items() if same != name for other in pair]
        assert early @ late > 0.8 > 0.6 > max(others), name


@pytest.mark.parametrize(("shape", "dtype"), [((0, 8, 8, 3), "uint8"), ((8, 8, 3), "uint8"), ((2, 8, 8, 3), "float32")])
def test_what_is_not_a_clip_is_refused_with_what_it_is(shape, dtype):
    with pytest.raises(ValueError, match=rf"{re.escape(str(shape))} torch.{dtype}"):
        describe(np.zeros(shape, dtype))


def test_a_missing_network_says_what_to_install(monkeypatch, rendered):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    descriptor._network.cache_clear()
    with pytest.raises(DescriptorError, match="pip install efficientnet-lite-pytorch"):
        describe(rendered[0])
