"""Adaptive merging, in cached and in joint attention, against the paper read plainly, one frame after another."""

from collections import namedtuple

import pytest
import torch
from torch.nn import functional as F

from pipeline.memory_cache import MemoryCache
from pipeline.tokenizers import unpatchify
from pipeline.transformer import NEW, ConditioningVideo
from tests.pure.test_cached import call, model_of, predict, random, video

SHARE = 0.54  # of the frames of six memories, on the line from .3 of three to .7 of eight
POINTS = (2, 4)  # a third and two thirds of six blocks

# states, places, cameras (1, tokens, .), and the table (1, 6, D) that modulates them. The whole target is one of these.
Frame = namedtuple("Frame", "states places cameras grid merges table")


def frames_of(tokens, merges, table, count=None):
    cameras = torch.zeros(1, len(tokens), 12) if tokens.cameras is None else tokens.cameras
    parts = (each.chunk(count or tokens.groups[0].frames, dim=1) for each in (tokens.states, tokens.places, cameras))
    return [Frame(*each, tokens.groups[0][1:3], merges, table) for each in zip(*parts, strict=True)]


def compressed(conv, frame):
    def fewer(layer, values):
        grid = values.unflatten(1, frame.grid).movedim(-1, 1)
        bottom, right = (-size % step for size, step in zip(frame.grid, conv.kernel_size, strict=True))
        return layer(F.pad(grid, (0, right, 0, bottom), mode="replicate"))

    mean = torch.nn.AvgPool2d(conv.kernel_size)
    grids = fewer(conv, frame.states), fewer(mean, frame.places), fewer(mean, frame.cameras)
    return Frame(*(each.flatten(2).mT for each in grids), grids[0].shape[2:], frame.merges, frame.table)


def heads(values):
    return values.unflatten(2, (2, 12))


def attend(q, k, v):
    return F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v))).transpose(1, 2).flatten(2)


def modulated(states, shift, scale):
    return F.layer_norm(states, states.shape[-1:], eps=1e-6) * (1 + scale) + shift


def projected(model, block, frame):
    """Queries, keys and values."""
    shift, scale, *_ = (block.scale_shift_table + frame.table).unbind(1)
    own, y = block.attn1, modulated(frame.states, shift, scale)
    y = y if block.cam_encoder is None else y + block.cam_encoder(frame.cameras)
    cos, sin = model._rotary(frame.places)
    turn = torch.complex(cos[..., ::2], sin[..., 1::2])
    pairs = (heads(each).unflatten(-1, (-1, 2)) for each in (own.norm_q(own.to_q(y)), own.norm_k(own.to_k(y))))
    q, k = (torch.view_as_real(torch.view_as_complex(each) * turn).flatten(-2) for each in pairs)
    return q, k, heads(own.to_v(y))


def after(block, frame, q, k, v, text):
    _, _, gate, shift, scale, ffn_gate = (block.scale_shift_table + frame.table).unbind(1)
    seen = block.attn1.to_out[0](attend(q, torch.cat(k, dim=1), torch.cat(v, dim=1)))
    x = frame.states + gate * (seen if block.projector is None else block.projector(seen))
    if text is not None:
        cross = block.attn2
        k, v = heads(cross.norm_k(cross.to_k(text))), heads(cross.to_v(text))
        x = x + cross.to_out[0](attend(heads(cross.norm_q(cross.to_q(block.norm2(x)))), k, v))
    return frame._replace(states=x + ffn_gate * block.ffn(modulated(x, shift, scale)))


def least_responsive(model, block, target, frames):
    """Numbers of the frames that merge: a share of those of one size, and none that is a single token already."""
    able = [number for number, frame in enumerate(frames) if frame.merges]
    means = [projected(model, block, frames[number])[1].mean(1) for number in able]  # (1, heads, d) each
    logits = projected(model, block, target)[0].transpose(1, 2) @ torch.stack(means, dim=-1) / 12**0.5
    response = dict(zip(able, logits.softmax(-1).mean(1).amax(1)[0].tolist(), strict=True))
    low = set()
    for grid in {frames[number].grid for number in able} - {(1, 1)}:
        alike = sorted((number for number in able if frames[number].grid == grid), key=response.get)
        low.update(alike[: round(SHARE * len(alike))])
    return low


@torch.no_grad()
def plainly(model, given, entries=None):
    """The prediction, and the frames at the entry of every block as later steps see them: their `entries`."""
    source, latent, patch = given["source"], given["hidden_states"], model.config.patch_size
    joint, merge, embedder = given["attention"] == "joint", given["merge"], model.condition_embedder
    temb, at_t, text, _ = embedder(given["timestep"], given["encoder_hidden_states"])
    _, at_0, _, _ = embedder(torch.zeros(1), given["encoder_hidden_states"])
    at_t, at_0 = at_t.unflatten(1, (6, -1)), at_0.unflatten(1, (6, -1))
    own = ConditioningVideo(latent, *(given[f"target_{name}"] for name in ("poses", "intrinsics", "times")))
    [target] = frames_of(model._tokens(own, None, model._where(own, None, 0)), False, at_t, count=1)
    frames, left = [], []
    for each, kernel, offset in model._places(source, given["memories"], latent.shape[2] // patch[0]):
        tokens = model._tokens(each, kernel, model._where(each, kernel, offset), each is not source)
        noisy = each is source and model.config.source_modulation == "target"
        frames += frames_of(tokens, each is not source, at_t if noisy else at_0)

    def merged(frames, low):
        numbered = [each for each in enumerate(frames) if each[0] not in low or merge != "discard"]
        return [compressed(model.compressor.conv, frame) if number in low else frame for number, frame in numbered]

    for index, block in enumerate(model.blocks):
        if entries is not None:
            frames = entries[index]
        elif index in POINTS and merge != "off":
            low = least_responsive(model, block, target, frames)
            frames = merged(frames, low)
            if index == POINTS[0]:  # what matters is known now: later steps see less in the blocks before, too
                left = [merged(entry, low) for entry in left]
        left.append(frames)
        everything = [target, *frames]
        q, k, v = zip(*(projected(model, block, frame) for frame in everything), strict=True)
        apart = [0] + [0 if joint else 1] * len(frames)  # cached conditioning sees neither the target nor the text
        target, *frames = (
            after(block, frame, queries, k[start:], v[start:], None if start else text)
            for frame, queries, start in zip(everything, q, apart, strict=True)
        )
    shift, scale = (model.scale_shift_table + temb[:, None]).unbind(1)
    return unpatchify(model.proj_out(modulated(target.states, shift, scale)), patch, latent.shape[2:]), left


def merging_model(**changes):
    """None of its new parameters is without effect, as some are at first."""
    model = model_of(merge="merge", **changes)
    for name, parameter in model.named_parameters():
        if any(new in name for new in NEW):
            parameter.data += random(*parameter.shape) / 10
    return model


CONFIGURATIONS = [
    {},
    {"cameras": "plucker", "positions": "frustum"},
    {"cameras": "per_block", "merge_kernel": (3, 2)},
    {"patch_size": (2, 2, 2), "ranges": "reversed", "memory_kernels": ((1, 1, 1), (1, 2, 2))},
]
NOISY_SOURCE = {"cameras": "per_block", "source_modulation": "target", "attention": "joint"}
LATER = {"hidden_states": random(1, 16, 4, 16, 16, seed=20), "timestep": torch.tensor([900.0])}
LATER["encoder_hidden_states"] = random(1, 9, 32, seed=21)


@pytest.mark.parametrize("merge", ["off", "merge", "discard"])
@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=str)
def test_frames_in_the_cache_merge_as_a_plain_reading_of_the_paper_says(changes, merge):
    model, given, cache = merging_model(**changes), call(memories=6, merge=merge, attention="cached"), MemoryCache()
    expected, left = plainly(model, given)
    assert torch.allclose(predict(model, **given, cache=cache), expected, atol=1e-5)
    expected, _ = plainly(model, given | LATER, left)
    assert torch.allclose(predict(model, **given | LATER, cache=cache), expected, atol=1e-5)


@pytest.mark.parametrize("merge", ["off", "merge", "discard"])
@pytest.mark.parametrize("changes", [*CONFIGURATIONS, NOISY_SOURCE], ids=str)
def test_frames_in_joint_attention_merge_as_a_plain_reading_of_the_paper_says(changes, merge):
    model, given = merging_model(**changes), call(memories=6, merge=merge, attention="joint")
    assert torch.allclose(predict(model, **given), plainly(model, given)[0], atol=1e-5)


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_the_least_responsive_frames_discarded_at_once_are_as_if_never_given(attention):
    model = model_of(merge="merge", merge_at=[0], cameras="plucker", positions="frustum")
    memories, cache = [video(3 + rank, frames=1, times=torch.tensor([[-rank / 2]])) for rank in range(6)], MemoryCache()
    given = call(memories=memories, memory_kernels=[(1, 2, 2)])
    predict(model, **given, merge="discard", cache=cache)
    discarded = predict(model, **given, merge="discard", attention=attention)
    best = cache.responsiveness[0][0].argsort()[3:].sort().values
    given["memories"] = [memories[rank] for rank in best]
    assert torch.allclose(discarded, predict(model, **given, merge="off", attention=attention), atol=1e-5)


def test_frames_merged_for_later_steps_are_not_touched_by_noise_timestep_and_text():
    model, caches = merging_model(), [MemoryCache(), MemoryCache()]
    for cache, changes in zip(caches, ({}, LATER), strict=True):
        predict(model, **call(merge_share=1.0, **changes), cache=cache)  # all merge, whatever the target asks for
    for block in range(6):
        assert all(map(torch.equal, *(cache.load(block, torch.zeros(1)) for cache in caches)))


def test_of_the_conditioning_only_a_noisy_source_is_modulated_by_the_timestep():
    model, inputs = model_of(**NOISY_SOURCE), []
    model.blocks[0].attn1.to_k.register_forward_hook(lambda *call: inputs.append(call[1][0]))
    for timestep in (400.0, 10.0):
        predict(model, **call(timestep=torch.tensor([timestep])))
    changed = (inputs[0] != inputs[1]).any(-1)[0]
    assert changed[: 2 * 4 * 64].all() and not changed[2 * 4 * 64 :].any()  # target and source, four frames each
