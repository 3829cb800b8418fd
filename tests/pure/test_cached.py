"""The memory branch: conditioning encoded once, against one masked computation over everything."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.memory_cache import MemoryCache
from pipeline.merging import rank_correlation
from pipeline.tokenizers import unpatchify
from pipeline.transformer import NEW, ConditioningVideo, MemoryWanTransformer3DModel

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 6,
}


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    model = MemoryWanTransformer3DModel(**{**TINY, **changes}).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("tokenizers", "camera_embedding")):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def poses(frames, step=0.1):
    still = torch.eye(3, 4).expand(1, frames, 3, 4).clone()
    still[0, :, 0, 3] = step * torch.arange(frames)
    return still


def video(seed, frames=4, size=16, **changes):
    lens = torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(1, frames, 4)
    known = {"poses": poses(frames, seed / 10), "intrinsics": lens, "times": torch.arange(frames)[None] / 6 - seed}
    return ConditioningVideo(random(1, 16, frames, size, size, seed=seed), **{**known, **changes})


def call(memories=4, batch=1, **changes):
    own = video(1)
    return {
        "hidden_states": random(batch, 16, 4, 16, 16, seed=7),
        "timestep": torch.full((batch,), 400.0),
        "encoder_hidden_states": random(batch, 5, 32, seed=8),
        "source": video(2),
        "memories": [video(3 + rank) for rank in range(memories)] if isinstance(memories, int) else memories,
        "target_poses": own.poses.expand(batch, -1, -1, -1),
        "target_intrinsics": own.intrinsics.expand(batch, -1, -1),
        "target_times": own.times.expand(batch, -1),
        **changes,
    }


@torch.no_grad()
def predict(model, **given):
    return model(**given, return_dict=False)[0]


@torch.no_grad()
def masked(model, given):
    """Cached attention without any cache: one sequence, a mask, and a table of modulations per token."""
    target_view = [given[f"target_{name}"] for name in ("poses", "intrinsics", "times")]
    video = ConditioningVideo(given["hidden_states"], *target_view)
    target = model._tokens(video, None, model._where(video, None, 0))
    others = model._conditioning(given["source"], given["memories"], given["hidden_states"].shape[2])
    x = torch.cat([target.states, others.states], dim=1)
    count, total = target.states.shape[1], x.shape[1]
    noisy = torch.arange(total) < count
    sees = noisy[:, None] | ~noisy[None, :]  # the target sees everything, the others only one another
    cos, sin = (
        torch.cat(pair, dim=1) for pair in zip(model._rotary(target.places), model._rotary(others.places), strict=True)
    )
    embedder = model.condition_embedder
    temb, at_t, text, _ = embedder(given["timestep"], given["encoder_hidden_states"])
    _, at_0, _, _ = embedder(torch.zeros(1), given["encoder_hidden_states"])
    tables = torch.where(noisy[:, None], at_t, at_0).unflatten(1, (6, -1))  # (tokens, 6, D)

    def heads(values):
        return values.unflatten(2, (2, 12))

    def turned(values):
        pairs = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos[..., ::2], sin[..., 1::2])).flatten(-2)

    def attend(q, k, v, mask=None):
        return F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), mask).transpose(1, 2)

    for block in model.blocks:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table + tables).unbind(1)
        own, cross = block.attn1, block.attn2
        y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        q, k = turned(heads(own.norm_q(own.to_q(y)))), turned(heads(own.norm_k(own.to_k(y))))
        x = x + gate * own.to_out[0](attend(q, k, heads(own.to_v(y)), sees).flatten(2))
        y = block.norm2(x)
        k, v = heads(cross.norm_k(cross.to_k(text))), heads(cross.to_v(text))
        read = cross.to_out[0](attend(heads(cross.norm_q(cross.to_q(y))), k, v).flatten(2))
        x = x + read * noisy[:, None]
        x = x + ffn_gate * block.ffn(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + ffn_scale) + ffn_shift)
    shift, scale = (model.scale_shift_table + temb[:, None]).chunk(2, dim=1)
    x = F.layer_norm(x[:, :count], x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return unpatchify(model.proj_out(x), model.config.patch_size, given["hidden_states"].shape[2:])


VARIANTS = [{}, {"cameras": "plucker", "positions": "frustum"}, {"cameras": "plucker"}, {"patch_size": (2, 2, 2)}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_cached_equals_the_same_computation_without_the_cache(changes):
    model, given, cache = model_of(**changes), call(), MemoryCache()
    filling = predict(model, **given, cache=cache)
    assert torch.allclose(filling, masked(model, given), atol=1e-5)
    given |= {"hidden_states": random(1, 16, 4, 16, 16, seed=20), "timestep": torch.tensor([900.0])}
    given |= {"encoder_hidden_states": random(1, 9, 32, seed=21)}
    read = predict(model, **{**given, "source": None, "memories": ()}, cache=cache)
    assert torch.allclose(read, masked(model, given), atol=1e-5)
    assert torch.equal(read, predict(model, **given)), "and without a cache it is computed anew to the same bits"


@torch.no_grad()
def test_a_text_of_tokens_that_are_all_alike_is_kept_as_one_token():
    model, caches = model_of(), []
    for tokens in (random(1, 1, 32).expand(-1, 5, -1), random(1, 5, 32)):
        given = call(encoder_hidden_states=tokens)
        caches.append(MemoryCache())
        first, again = (model(**given, cache=caches[-1]).sample for _ in range(2))
        assert torch.allclose(first, model(**given).sample, atol=1e-5) and torch.equal(first, again)
    alike, others = (cache.bytes for cache in caches)
    assert others - alike == 6 * 2 * 4 * 24 * 4  # four tokens less, in six blocks, keys and values of 24 numbers


def test_conditioning_is_not_touched_by_noise_timestep_and_text():
    model, caches = model_of(), [MemoryCache(), MemoryCache()]
    predict(model, **call(), cache=caches[0])
    other = {"hidden_states": random(1, 16, 4, 16, 16), "encoder_hidden_states": random(1, 5, 32)}
    predict(model, **call(timestep=torch.tensor([10.0]), **other), cache=caches[1])
    like = torch.zeros(1)
    for block in range(6):
        assert all(map(torch.equal, caches[0].load(block, like), caches[1].load(block, like)))


def test_several_noisy_targets_share_one_encoding():
    model = model_of(merge="merge")
    for merge in ("off", "merge"):
        given = call(batch=3, merge=merge)
        together = predict(model, **given)
        for row in range(3 if merge == "off" else 0):  # merging decides for all of them at once
            names = ("hidden_states", "timestep", "encoder_hidden_states", *(n for n in given if "target_" in n))
            alone = predict(model, **{**given, **{name: given[name][row : row + 1] for name in names}})
            assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def test_the_cache_says_what_it_takes_and_takes_less_in_fp8():
    model, given = model_of(), call()
    tokens, dim = model._conditioning(given["source"], given["memories"], 4).states.shape[1:]
    caches = {dtype: MemoryCache(dtype=dtype) for dtype in (None, torch.bfloat16, torch.float8_e4m3fn)}
    results = {dtype: predict(model, **given, cache=cache) for dtype, cache in caches.items()}
    tokens += given["encoder_hidden_states"].shape[1]  # the words' are kept as well
    scales = 2 * 6 * 2 * 2 * 4  # one float per block, key or value, and head, of either
    sizes = [cache.bytes - scales * (dtype is not None and dtype.itemsize == 1) for dtype, cache in caches.items()]
    assert sizes == [6 * 2 * tokens * dim * size for size in (4, 2, 1)]
    spread = results[None].std()
    assert (results[None] - results[torch.bfloat16]).abs().max() < 0.02 * spread
    assert (results[None] - results[torch.float8_e4m3fn]).abs().max() < 0.2 * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_head_of_zeros_stays_zero_in_fp8(dtype):
    cache, zeros = MemoryCache(dtype=torch.float8_e4m3fn), torch.zeros(1, 3, 2, 4, dtype=dtype)
    cache.store(0, (zeros, zeros))
    assert all(torch.equal(each, zeros) for each in cache.load(0, zeros))


def test_a_cache_on_another_device_comes_back_for_every_block():
    model, given, cache = model_of(), call(), MemoryCache(device="cpu", dtype=torch.float64)
    assert torch.allclose(predict(model, **given, cache=cache), predict(model, **given), atol=1e-6)
    assert cache.load(0, torch.zeros(1, device="meta"))[0].is_meta


# Merging.


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_merging_off_equals_no_merging_bit_for_bit(attention):
    with_merging, without = model_of(merge="merge"), model_of()
    without.load_state_dict(with_merging.state_dict(), strict=False)
    expected = predict(without, **call(attention=attention))
    assert torch.equal(predict(with_merging, **call(attention=attention, merge="off")), expected)
    for merge in ("merge", "discard"):
        assert not torch.allclose(predict(with_merging, **call(attention=attention, merge=merge)), expected, atol=1e-4)


def two_rows(one, other):
    fields = ("latent", "poses", "intrinsics", "times")
    return ConditioningVideo(*(torch.cat([getattr(one, name), getattr(other, name)]) for name in fields))


@pytest.mark.parametrize("attention", ["cached", "joint"])
@pytest.mark.parametrize("merge", ["merge", "discard"])
def test_rows_of_a_batch_merge_each_for_itself(attention, merge):
    model, given = model_of(merge="merge"), call(memories=0, attention=attention, merge=merge)
    videos = [[video(seed + number) for number in range(5)] for seed in (2, 20)]  # a source and four memories each
    alone = [predict(model, **given | {"source": each[0], "memories": each[1:]}) for each in videos]
    source, *memories = [two_rows(*each) for each in zip(*videos, strict=True)]
    given |= {name: torch.cat([each, each]) for name, each in given.items() if isinstance(each, torch.Tensor)}
    both = predict(model, **given | {"source": source, "memories": memories})
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)


def test_dropping_never_leaves_nothing():
    model = model_of(merge="merge")
    given = call(memories=[video(3 + rank, frames=1) for rank in range(6)], source=None, merge="discard")
    assert predict(model, **given).isfinite().all()


@pytest.mark.parametrize("merge", ["merge", "discard"])
def test_the_merged_cache_is_smaller_and_serves_the_later_steps(merge):
    model, sizes = model_of(merge="merge"), []
    for each in ("off", merge):
        cache = MemoryCache()
        predict(model, **call(merge=each, memories=6), cache=cache)
        sizes.append(cache.bytes)
        counts = [len(cache.load(block, torch.zeros(1))[0][0]) for block in range(6)]
        if each != "off":  # blocks before the first merge point keep no more than those behind it
            assert counts[0] == counts[1] == counts[2] == counts[3] > counts[4] == counts[5]
    assert sizes[1] < 0.8 * sizes[0]
    given = call(merge=merge, memories=6, timestep=torch.tensor([50.0]))
    assert predict(model, **given, cache=cache).isfinite().all()


@pytest.mark.parametrize("attention", ["cached", "joint"])
@pytest.mark.parametrize("merge", ["merge", "discard"])
def test_merging_at_every_block_goes_on_when_no_frame_is_left_to_merge(attention, merge):
    model = model_of(merge="merge", merge_at=[block / 6 for block in range(6)])
    assert predict(model, **call(memories=8, attention=attention, merge=merge)).isfinite().all()


def test_the_first_pass_in_lockstep_is_the_one_without_a_cache():
    model, given = model_of(merge="merge"), call(memories=6)
    assert torch.equal(predict(model, **given, cache=MemoryCache()), predict(model, **given))


def test_responsiveness_of_later_steps_is_compared_with_the_first():
    model, cache = model_of(merge="merge"), MemoryCache(track=True)
    for t in (900.0, 900.0, 100.0):
        predict(model, **call(memories=6, timestep=torch.tensor([t])), cache=cache)
    assert sorted(cache.responsiveness) == [2, 4]
    assert cache.responsiveness[2].shape == (1, 6 * 4)
    correlations = cache.rank_correlations()
    assert len(correlations[2]) == 2
    # The same timestep asks almost the same questions: only the merged blocks before differ.
    assert correlations[2][0] > 0.8


def test_rank_correlation_is_spearmans():
    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([10.0, 20, 30])) == pytest.approx(1)
    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 4, 3])) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cameras": "plucker", "positions": "frustum"}, {"cameras": "per_block"}],
    ids=str,
)
@pytest.mark.parametrize("attention", ["cached", "joint"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_new_parameter_in_every_arrangement(changes, attention, checkpointing):
    torch.manual_seed(0)
    model = MemoryWanTransformer3DModel(**{**TINY, "merge": "merge", **changes})
    if checkpointing:
        model.enable_gradient_checkpointing()
    model(**call(memories=4, attention=attention)).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        if any(new in name for new in NEW):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({}, {"memories": [video(1, size=8), ConditioningVideo(torch.zeros(1, 4, 3, 16, 16))]}, "memory 1 .*B, 16, T"),
        ({}, {"source": ConditioningVideo(torch.zeros(16, 3, 16, 16))}, r"the source must be .*got \(16, 3, 16, 16\)"),
        ({}, {"source": ConditioningVideo(torch.zeros(1, 16, 3, 16, 16).half())}, "float32, got .* torch.float16"),
        ({}, {"source": ConditioningVideo(torch.zeros(2, 16, 3, 16, 16))}, "the source has 2 rows .* target's 1"),
        ({"positions": "frustum"}, {"memories": [video(1, times=None)]}, "memory 0 has no times"),
        ({"cameras": "plucker"}, {"source": video(1, intrinsics=None)}, "the source has no intrinsics"),
        ({"cameras": "per_block"}, {"memories": [video(1, poses=None)]}, "memory 0 and the target must both have"),
        ({"rope_max_seq_len": 8}, {}, "reaches temporal position 12, expected at most 8"),
        ({}, {"merge": "merge"}, "needs a compressor"),
        ({}, {"attention": "sparse"}, "attention must be one of cached, joint, got 'sparse'"),
        ({"source_modulation": "target"}, {}, "expected attention='joint', got 'cached'"),
        ({}, {"source": video(2, times=torch.arange(5)[None])}, r"source has times .* \(1, 5\), expected \(1, 4\)"),
        ({}, {"target_poses": torch.eye(4).expand(1, 4, 4, 4)}, r"target has poses .* expected \(1, 4, 3, 4\)"),
        ({}, {"memories": [video(1, intrinsics=torch.ones(1, 1, 4))]}, r"memory 0 has intrinsics of shape \(1, 1, 4\)"),
        ({}, {"hidden_states": random(1, 16, 4, 15, 16)}, "of which 15 is no multiple of its part of the patch"),
        ({"cameras": "extrinsics"}, {"hidden_states": random(4, 16, 4, 16, 16), "source": None, "target_poses": None,
          "target_times": None, "target_intrinsics": None, "memories": [ConditioningVideo(random(rows, 16, 4, 16, 16))
          for rows in (2, 4)]}, r"have \[2, 4\] rows in their batches, expected the same of all"),
        ({"in_channels": 32, "source": "channels"}, {"source": video(1, 2)}, r"expected \(1, 16, 4, 16, 16\), got"),
        ({}, {"memories": [video(3, size=8)]}, r"memory 0 has \(H, W\) \(8, 8\), expected the target's \(16, 16\)"),
        ({}, {"memories": [video(3, frames=0)]}, r"memory 0 must be a latent .* got \(1, 16, 0, 16, 16\)"),
        ({}, {"memory_kernels": [(1, 3, 3)]}, "no tokenizer 1x3x3, this model has 1x1x1, 1x2x2, 1x4x4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_expected_and_got(model, changes, message):
    with pytest.raises(ValueError, match=message):
        predict(model_of(**model), **call(**changes))


def test_an_unknown_choice_is_refused_when_the_model_is_built():
    with pytest.raises(ValueError, match="positions must be one of grid, frustum, got 'sphere'"):
        MemoryWanTransformer3DModel(**TINY, positions="sphere")
    with pytest.raises(ValueError, match="merge_at has 1.5, expected shares of the depth"):
        MemoryWanTransformer3DModel(**TINY, merge_at=(0.5, 1.5))
    with pytest.raises(ValueError, match="memory_kernels is empty"):
        MemoryWanTransformer3DModel(**TINY, memory_kernels=())
    with pytest.raises(ValueError, match="detail_steps must be at least 2, got 1"):
        MemoryWanTransformer3DModel(**TINY, detail_steps=1)


def test_what_does_not_change_between_steps_is_computed_once_and_a_text_that_does_is_seen():
    model, given = model_of(seed=4), call(memories=2)
    cache, embedded = MemoryCache(), []
    model.condition_embedder.text_embedder.register_forward_hook(lambda *_: embedded.append(_[1][0].shape[1]))
    first = predict(model, **given, cache=cache)
    assert torch.equal(predict(model, **given, cache=cache), predict(model, **given, cache=cache))
    assert [count for count in embedded if count] == [5], "the same words were embedded again"
    other = given | {"encoder_hidden_states": -given["encoder_hidden_states"]}
    changed = predict(model, **other, cache=cache)
    assert torch.allclose(changed, predict(model, **other), atol=1e-5) and not torch.allclose(changed, first, atol=1e-3)
    given["encoder_hidden_states"].neg_()
    assert torch.allclose(predict(model, **given, cache=cache), changed, atol=1e-6)


def test_a_source_in_channels_is_kept_with_the_rest_and_shared_by_several_targets():
    model, cache = model_of(in_channels=32, source="channels"), MemoryCache()
    given = call(memories=2, batch=2)
    together = predict(model, **given, cache=cache)
    assert torch.allclose(predict(model, **given | {"source": None, "memories": ()}, cache=cache), together, atol=1e-6)
    for row in range(2):
        own = {name: value[row : row + 1] for name, value in given.items() if isinstance(value, torch.Tensor)}
        assert torch.allclose(predict(model, **given | own)[0], together[row], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_poses": poses(4, 0.3)}, "beside a target of other poses: clear"),
        ({"source": video(9)}, "with another source or other memories: clear"),
        ({"source": video(2, surface=torch.ones(1, 4, 16, 16))}, "with another source or other memories: clear"),
        ({"source": video(2, poses=poses(4, 0.3))}, "with another source or other memories: clear"),
        ({"memories": [video(3)]}, "with another source or other memories: clear"),
        (
            {"hidden_states": random(1, 16, 4, 8, 16)},
            r"beside a target \(B, C, T, H, W\) of \(1, 16, 4, 16, 16\), got \(1, 16, 4, 8, 16\)",
        ),
    ],
)
def test_a_cache_serves_one_target_s_size_and_cameras_and_what_it_was_shown(changes, message):
    model, cache = model_of(cameras="plucker", positions="frustum"), MemoryCache()
    given = call(memories=2)
    predict(model, **given, cache=cache)
    equal = {"target_poses": given["target_poses"].clone()}
    assert predict(model, **given | equal, cache=cache).isfinite().all()
    with pytest.raises(ValueError, match=message):
        predict(model, **given | changes, cache=cache)
    cache.clear()
    assert torch.equal(predict(model, **given | changes, cache=cache), predict(model, **given | changes))


def test_a_cache_of_joint_attention_changes_nothing_and_wants_source_and_memories_again():
    model, given = model_of(cameras="plucker", positions="frustum", merge="merge"), call(memories=6, attention="joint")
    cache, seen = MemoryCache(), []
    model.tokenizers.of((1, 2, 2)).register_forward_hook(lambda *_: seen.append(1))
    for step in range(3):
        given |= {
            "hidden_states": random(1, 16, 4, 16, 16, seed=20 + step),
            "timestep": torch.tensor([900.0 - 300 * step]),
        }
        given |= {"encoder_hidden_states": random(1, 9, 32, seed=30 + step)}
        with_cache, embedded = predict(model, **given, cache=cache), len(seen)
        assert torch.allclose(with_cache, predict(model, **given), atol=1e-5)
        assert embedded == 3 + 3 * step, "three memories are of this tokenizer; a cache has them embedded once"
    with pytest.raises(ValueError, match="source and memories must be given in every call"):
        predict(model, **given | {"source": None, "memories": ()}, cache=cache)
    with pytest.raises(ValueError, match="filled with attention='joint', got 'cached': clear"):
        predict(model, **given | {"attention": "cached"}, cache=cache)


def test_texts_that_change_at_every_step_do_not_pile_up():
    model, cache, sizes = model_of(), MemoryCache(), []
    given = call(memories=1)
    for step in range(8):
        words = {"encoder_hidden_states": random(1, 5, 32, seed=step)}
        made = predict(model, **given | words, cache=cache)
        sizes.append(cache.bytes)
        assert torch.allclose(made, predict(model, **given | words), atol=1e-5)
    assert sizes[3] == sizes[7]


def test_what_a_video_is_goes_by_its_place_and_not_by_which_object_it_is():
    model = model_of(roles=True)
    torch.nn.init.normal_(model.role_embedding)
    one, given = video(2), call()
    same = predict(model, **given | {"source": one, "memories": [one] * 4})
    assert torch.equal(same, predict(model, **given | {"source": one, "memories": [video(2) for _ in range(4)]}))


def test_a_cache_keeps_floating_point_numbers_only():
    for dtype in (torch.int8, "fp8"):
        with pytest.raises(ValueError, match="floating-point numbers"):
            MemoryCache(dtype)
