import time

import numpy as np
import torch

from pipeline.mini import build_mini, build_tiny


def test_mini_is_the_model_of_the_recipe():
    sizes = {"cpu": (192, 6, 48 * 48), "gpu": (384, 12, 96 * 96)}
    for size, (dim, layers, area) in sizes.items():
        pipe = build_mini(size=size)
        config, spec = pipe.transformer.config, pipe.spec
        assert (config.num_attention_heads * config.attention_head_dim, config.num_layers) == (dim, layers)
        assert (spec.segment_frames, spec.area, spec.size_multiple) == (16, area, 8)
    assert [spec.frames_for(n) for n in (1, 4, 15, 16, 17)] == [4, 4, 16, 16, 20]
    assert pipe.config.prediction == "sample" and not pipe.spec.trained


def test_mini_fits_the_repository():
    pipe = build_mini()
    parameters = [*pipe.transformer.parameters(), *pipe.text_encoder.parameters()]
    assert sum(4 * each.numel() for each in parameters) < 64 * 2**20


def test_the_seed_decides_the_weights_and_leaves_torch_alone():
    before = torch.random.get_rng_state()
    first, same, other = build_tiny(3), build_tiny(3), build_tiny(4)
    assert torch.equal(before, torch.random.get_rng_state())
    for part in ("transformer", "text_encoder"):
        a, b, c = (dict(getattr(pipe, part).named_parameters()) for pipe in (first, same, other))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert any(not torch.equal(a[name], c[name]) for name in a)


def test_cameras_start_at_zero_on_request():
    assert not build_mini(transformer={"num_layers": 1}, camera_std=0.0).transformer.camera_embedding.weight.any()


def test_prompts_need_no_files_and_tell_apart():
    pipe = build_tiny()
    texts = [pipe.encode_prompt(text) for text in ("make the jacket red", "make the jacket blue", "", "schön")]
    assert all(text.shape == (1, 64, 32) for text in texts)
    assert not any(torch.equal(texts[0], other) for other in texts[1:])
    assert not texts[2][:, 1:].any(), "behind the text there are zeros, as in Wan's pipelines"


def test_a_tiny_edit_takes_a_fraction_of_a_second():
    pipe = build_tiny()
    pipe.set_progress_bar_config(disable=True)
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    pipe(source=frames)
    start = time.perf_counter()
    pipe(source=frames)
    assert time.perf_counter() - start < 1.0  # about 30 ms on an idle core


def test_a_prompt_that_is_too_long_is_read_in_part_and_says_so(caplog):
    pipe = build_tiny()
    assert torch.equal(pipe.encode_prompt("a" * 70)[:, :60], pipe.encode_prompt("a" * 80)[:, :60])
    assert "71 tokens, only the first 64 are read" in caplog.text


def test_the_text_encoder_sees_words_beside_a_word_and_not_the_whole_text():
    encoder = build_mini().text_encoder
    tokens = torch.arange(60)[None] % 9 + 3
    changed = tokens.clone()
    changed[0, 30] = 100
    moved = (encoder(tokens).last_hidden_state != encoder(changed).last_hidden_state).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(16, 45)), "14 bytes to both sides"


def test_without_source_and_memories_it_makes_a_video_up():
    pipe = build_tiny()
    pipe.set_progress_bar_config(disable=True)
    made = pipe(num_frames=16, height=32, width=32, generator=torch.Generator().manual_seed(0))
    assert made.latents.shape == (3, 16, 32, 32) and torch.isfinite(made.latents).all()
