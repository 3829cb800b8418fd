from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spec import ModelSpec, compression_of
from tests.tiny import build_tiny


def spec(compression: tuple[int, int], patch: tuple[int, int, int]) -> ModelSpec:
    return ModelSpec(
        compression,
        patch,
        segment_frames=16,
        area=96 * 96,
        steps=8,
        trained=False,
        learned=(),
        caches=True,
        merges=True,
    )


@given(st.integers(1, 200))
def test_frames_for_is_the_smallest_number_that_codec_and_patch_take(frames: int) -> None:
    mini, wan = spec((1, 1), (4, 8, 8)).frames_for(frames), spec((4, 8), (1, 2, 2)).frames_for(frames)
    assert mini % 4 == 0 and 0 <= mini - frames < 4
    assert wan % 4 == 1 and 0 <= wan - frames < 4


def test_sizes_are_multiples_of_the_patch_in_pixels() -> None:
    assert spec((1, 1), (4, 8, 8)).size_multiple == 8
    assert spec((4, 8), (1, 2, 2)).size_multiple == 16


def test_a_segment_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        spec((1, 1), (4, 8, 8)).frames_for(0)


def test_what_is_read_from_a_folder_is_what_the_loaded_model_says(tmp_path) -> None:
    pipe = build_tiny(trained_steps=5)
    pipe.save_pretrained(tmp_path)
    assert ModelSpec.read(tmp_path) == pipe.spec
    assert pipe.spec.trained


def test_a_wan_vae_compresses_time_by_four_and_space_by_eight() -> None:
    assert compression_of({"temperal_downsample": [False, True, True], "dim_mult": [1, 2, 4, 4]}) == (4, 8)


def test_a_folder_that_is_no_model_is_an_error_and_not_a_guess(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        ModelSpec.read(tmp_path)
