import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.callbacks import PipelineCallback, SDCFGCutoffCallback
from transformers import ByT5Tokenizer

from pipeline.memory_pipeline import MemoryV2VPipeline, MemoryVideo
from pipeline.mini import build_mini
from pipeline.trajectory import Trajectory, default_intrinsics, preset
from pipeline.transformer import MemoryTransformerOutput, MemoryWanTransformer3DModel
from tests.tiny import TINY_PIPELINE, TINY_TEXT, TINY_TRANSFORMER, build_tiny

LENS = default_intrinsics(1.0)
STILL, PAN, ARC = Trajectory.static(16, LENS), preset("pan_right", 16, LENS), preset("arc_left", 16, LENS)


@pytest.fixture(scope="module")
def pipe():
    return quiet(build_tiny())


@pytest.fixture(scope="module")
def wan():
    """The published layout at its smallest: Wan's VAE, no text encoder, velocity prediction."""
    torch.manual_seed(0)
    transformer = MemoryWanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2
    )
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return quiet(MemoryV2VPipeline(transformer.eval(), vae.eval(), scheduler, num_inference_steps=2, text_length=8))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames(seed=0, count=16, size=32):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def edit(pipe, **changes):
    memory = MemoryVideo(pipe.encode(frames(1)), PAN, start=-16)
    call = {"source": frames(), "source_trajectory": STILL, "target_trajectory": ARC, "prompt": "a red jacket"}
    return pipe(**{**call, "memories": [memory], "generator": noise(), **changes}).latents


def test_an_edit_is_a_function_of_its_inputs_and_its_generator(pipe):
    first = edit(pipe)
    assert first.shape == (3, 16, 32, 32) and first.dtype == torch.float32 and first.isfinite().all()
    assert torch.equal(first, edit(pipe))
    assert not torch.equal(first, edit(pipe, generator=noise(1)))


def test_a_memory_without_a_trajectory_has_the_lens_of_the_camera_that_is_known(pipe):
    wide = Trajectory.static(16, [0.5, 0.5, 0.5, 0.5])
    latent = pipe.encode(frames(1))
    same = {"source_trajectory": wide, "target_trajectory": None}
    told = edit(pipe, memories=[MemoryVideo(latent, wide)], **same)
    assert torch.equal(edit(pipe, memories=[MemoryVideo(latent)], **same), told)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": frames(2)},
        {"source": None, "source_trajectory": None, "num_frames": 16, "height": 32, "width": 32},
        {"source_trajectory": PAN},
        {"target_trajectory": PAN},
        {"prompt": "a blue jacket"},
        {"prompt": ""},
        {"memories": []},
        {"memories": [MemoryVideo(torch.zeros(3, 16, 32, 32), PAN)]},
        {"guidance_scale": 3.0},
        {"num_inference_steps": 3},
        {"shift": 5.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_everything_that_is_given_matters_even_to_random_weights(pipe, changes):
    assert (edit(pipe) - edit(pipe, **changes)).abs().max() > 1e-4


def test_the_camera_of_a_memory_matters(pipe):
    latent = pipe.encode(frames(1))
    first = edit(pipe, memories=[MemoryVideo(latent, PAN)])
    assert (first - edit(pipe, memories=[MemoryVideo(latent, ARC)])).abs().max() > 1e-4


def test_the_order_of_memories_matters_once_their_tokenizers_differ(pipe):
    memories = [MemoryVideo(pipe.encode(frames(seed)), PAN) for seed in range(5)]
    swapped = [memories[4], *memories[1:4], memories[0]]
    assert (edit(pipe, memories=memories) - edit(pipe, memories=swapped)).abs().max() > 1e-5


def test_a_source_is_taken_as_frames_or_as_their_latent(pipe):
    assert torch.equal(edit(pipe), edit(pipe, source=pipe.encode(frames())))


def test_a_source_without_camera_stands_still_where_it_is(pipe):
    assert torch.equal(edit(pipe), edit(pipe, source_trajectory=None))


def test_the_place_of_a_latent_in_memory_does_not_change_the_bits(pipe):
    def shifted(latent):  # as read from a store: not aligned to anything
        raw = torch.zeros(latent.numel() + 1)
        raw[1:] = latent.flatten()
        return raw[1:].view(latent.shape)

    source, memory = pipe.encode(frames()), pipe.encode(frames(1))
    assert shifted(source).data_ptr() % 64
    there = edit(pipe, source=shifted(source), memories=[MemoryVideo(shifted(memory), PAN)])
    assert torch.equal(edit(pipe, source=source, memories=[MemoryVideo(memory, PAN)]), there)


def test_memories_may_be_longer_or_shorter_than_the_segment(pipe):
    for count in (1, 6, 32):
        memory = MemoryVideo(pipe.encode(frames(1, count)), Trajectory.static(count, LENS))
        assert edit(pipe, memories=[memory]).isfinite().all()


def test_pictures_come_on_request(pipe):
    result = pipe(source=frames(), generator=noise(), output_type="np")
    assert result.frames.shape == (16, 32, 32, 3) and result.frames.dtype == np.uint8
    assert np.array_equal(result.frames, pipe.decode(result.latents))
    assert pipe(source=frames(), generator=noise()).frames is None


def test_guidance_goes_from_what_is_said_without_the_words_past_what_is_said_with_them():
    plain = {**TINY_TRANSFORMER, "copied_videos": 0}
    pipe = quiet(build_mini(transformer=plain, text=TINY_TEXT, prediction="sample", **TINY_PIPELINE))
    said, given = {"red": 0.3, "green": -0.1}, []
    words = {text: pipe.encode_prompt(text) for text in said}

    class Oracle(torch.nn.Module):
        config, dtype, device = pipe.transformer.config, torch.float32, torch.device("cpu")

        def forward(self, hidden_states, timestep, words_given, *, raw=False, toward=None, **conditioning):
            [text] = [text for text, known in words.items() if torch.equal(known, words_given)]
            given.append((text, raw, None if toward is None else toward[1]))
            output = MemoryTransformerOutput(sample=torch.full_like(hidden_states, said[text]))
            return output if toward is None else output.toward(*toward)

    pipe.transformer = Oracle()
    asked = {"prompt": "red", "negative_prompt": "green", "guidance_scale": 2.5, "num_inference_steps": 3}
    result = pipe(source=frames(), generator=noise(), **asked)
    assert torch.allclose(result.latents, torch.tensor(-0.1 + 2.5 * 0.4), atol=1e-5)
    assert given == 3 * [("red", True, None), ("green", False, 2.5)]


def test_the_second_pass_is_made_only_where_it_can_differ(pipe):
    calls = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))

    def passes(**changes):
        calls.clear()
        edit(pipe, num_inference_steps=2, **changes)
        return len(calls)

    try:
        assert passes(guidance_scale=3.0) == 4
        assert passes(guidance_scale=1.0) == 2
        assert passes(guidance_scale=3.0, prompt="") == 2
        assert passes(guidance_scale=3.0, prompt=" red ", negative_prompt="red") == 2
        assert passes(guidance_scale=3.0, target_trajectory=None) == 4
    finally:
        hook.remove()


def test_memories_may_come_one_by_one_and_arrays_as_numpy_has_them(pipe):
    memories = [MemoryVideo(pipe.encode(frames(seed)), PAN) for seed in (1, 2)]
    assert torch.equal(edit(pipe, memories=(each for each in memories)), edit(pipe, memories=memories))
    assert torch.equal(edit(pipe, memories=None), edit(pipe, memories=()))
    backwards, fixed = frames()[::-1], frames()
    fixed.setflags(write=False)
    assert torch.equal(edit(pipe, source=backwards), edit(pipe, source=backwards.copy()))
    assert torch.equal(edit(pipe, source=fixed), edit(pipe))


def test_without_a_target_camera_a_model_with_a_grid_looks_at_no_camera(wan):
    memory = MemoryVideo(wan.encode(frames(2, 9)), ARC[:9])
    blind = wan(source=frames(0, 9), memories=[replace(memory, trajectory=None)], generator=noise()).latents
    seeing = wan(source=frames(0, 9), source_trajectory=PAN[:9], memories=[memory], generator=noise()).latents
    assert torch.equal(blind, seeing)


def test_a_pipeline_of_its_components_reads_words_as_before(pipe):
    again = quiet(MemoryV2VPipeline.from_pipe(pipe))
    assert torch.equal(edit(again), edit(pipe))


def test_the_schedule_is_shifted_exactly_once(pipe):
    edit(pipe, num_inference_steps=4, shift=3.0)
    even = np.linspace(1, 0, 5)
    assert np.allclose(pipe.scheduler.sigmas, 3 * even / (1 + 2 * even))
    edit(pipe, num_inference_steps=4, shift=1.0)  # an earlier call leaves nothing behind
    assert np.allclose(pipe.scheduler.sigmas, even)


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_a_perfect_prediction_arrives_at_the_sample(prediction):
    plain = {**TINY_TRANSFORMER, "copied_videos": 0}  # what copies predicts samples only
    pipe = quiet(build_mini(transformer=plain, text=TINY_TEXT, prediction=prediction, **TINY_PIPELINE))
    sample = pipe.encode(frames(3))[None]

    class Oracle(torch.nn.Module):
        config, dtype, device = pipe.transformer.config, torch.float32, torch.device("cpu")

        def forward(self, hidden_states, timestep, *args, **conditioning):
            sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
            perfect = sample if prediction == "sample" else (hidden_states - sample) / sigma
            return MemoryTransformerOutput(sample=perfect)

    pipe.transformer = Oracle()
    result = pipe(source=frames(), num_inference_steps=5, generator=noise(), output_type="np")
    assert torch.allclose(result.latents, sample[0], atol=1e-4)
    assert np.array_equal(result.frames, frames(3))


def test_callbacks_see_every_step_and_may_replace_the_latents(pipe):
    seen = []

    def look(same, step, timestep, tensors):
        assert same is pipe
        seen.append((step, float(timestep), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not edit(pipe, callback_on_step_end=look).any()
    assert [step for step, _, _ in seen] == [0, 1] and seen[0][1] == 1000


def test_callbacks_may_replace_the_words_name_what_they_want_and_end_an_edit(pipe):
    class Wordless(PipelineCallback):
        tensor_inputs = ["prompt_embeds", "negative_prompt_embeds"]

        def callback_fn(self, pipeline, step, timestep, given):
            seen.append(sorted(given))
            return {name: given[name] * 0 for name in self.which}

    seen: list[list[str]] = []
    usual, changed = edit(pipe, guidance_scale=2.0), []
    for which in (["prompt_embeds"], ["negative_prompt_embeds"]):
        silent = Wordless(cutoff_step_ratio=None, cutoff_step_index=0)
        silent.which = which
        changed.append(edit(pipe, guidance_scale=2.0, negative_prompt="blue", callback_on_step_end=silent))
    assert seen[0] == ["negative_prompt_embeds", "prompt_embeds"]
    other = edit(pipe, guidance_scale=2.0, negative_prompt="blue")
    assert len({each.numpy().tobytes() for each in (usual, other, *changed)}) == 4
    steps = []

    def stop(pipe, step, timestep, given):
        steps.append(step)
        assert pipe.num_timesteps == 5, "diffusers' own callbacks ask"
        pipe._interrupt = step == 1
        return {}

    edit(pipe, num_inference_steps=5, callback_on_step_end=stop)
    assert steps == [0, 1]


@pytest.mark.parametrize("attention", ["cached", "joint"])
def test_diffusers_callback_that_ends_guidance_ends_it_for_the_steps_that_follow(pipe, attention):
    passes: list[bool] = []

    def count(transformer, args, given):
        passes.append(given.get("toward") is not None)

    def made(**changes):
        return edit(pipe, num_inference_steps=4, attention=attention, **changes)

    cut = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    with pipe.transformer.register_forward_pre_hook(count, with_kwargs=True):
        half = made(guidance_scale=3.0, callback_on_step_end=cut)
    assert passes == [False, True, False, True, False, False]
    whole = made(guidance_scale=3.0)
    assert torch.equal(whole, made(guidance_scale=3.0)), "the next edit is guided as ever"
    assert not torch.equal(half, whole) and not torch.equal(half, made(guidance_scale=1.0))


def test_a_memory_is_where_it_was_in_time_and_the_one_before_is_nearer(pipe, wan):
    seen = {}

    def see(transformer, args, given):
        seen.update(given)

    handle = pipe.transformer.register_forward_pre_hook(see, with_kwargs=True)
    edit(pipe, frame_rate=8.0)
    handle.remove()
    assert seen["memories"][0].times[0].tolist() == [(number - 16) / 8 for number in range(16)]
    latent = wan.encode(frames(1, 9))
    usual, preceding = (
        wan(source=None, num_frames=9, height=32, width=32, memories=[MemoryVideo(latent, preceding=near)],
            generator=noise()).latents
        for near in (False, True)
    )  # fmt: skip
    assert not torch.equal(usual, preceding)


def test_a_prompt_that_is_too_long_keeps_the_mark_of_its_end(wan, monkeypatch):
    class Words(torch.nn.Module):
        device, dtype, config = torch.device("cpu"), torch.float32, SimpleNamespace()

        def forward(self, ids, attention_mask):
            return SimpleNamespace(last_hidden_state=ids[..., None].float().expand(-1, -1, 32))

    monkeypatch.setitem(wan.__dict__, "text_encoder", Words())
    monkeypatch.setitem(wan.__dict__, "tokenizer", ByT5Tokenizer())
    states = wan.encode_prompt("a longer prompt than eight")
    assert states.shape == (1, 8, 32) and states[0, -1, 0] == 1 and states[0, 0, 0] != 1


def test_saving_and_loading_changes_no_bit_and_warns_of_nothing(pipe, tmp_path, monkeypatch, caplog):
    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    again = quiet(MemoryV2VPipeline.from_pretrained(tmp_path))
    assert not caplog.records
    assert torch.equal(edit(pipe), edit(again))
    assert {key: again.config[key] for key in ("prediction", "shift", "area")} == {
        "prediction": "sample",
        "shift": 2.0,
        "area": 1024,
    }
    assert not again.spec.trained


def test_a_model_in_half_precision_still_samples_in_float32(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    half = quiet(MemoryV2VPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16))
    assert half.transformer.dtype == torch.bfloat16
    # On a GPU a norm takes only what has the dtype of its weights.
    assert {each.dtype for each in half.transformer.depths.parameters()} == {torch.bfloat16}
    latents = edit(half)
    assert latents.dtype == torch.float32 and (latents - edit(pipe)).abs().mean() < 0.05
    assert np.array_equal(half.decode(half.encode(frames())), frames())


def test_a_model_says_whether_it_was_trained(tmp_path):
    build_tiny(trained_steps=1000).save_pretrained(tmp_path)
    assert MemoryV2VPipeline.from_pretrained(tmp_path).spec.trained
    assert not build_tiny().spec.trained


def test_the_published_layout_runs_on_the_same_classes(wan, tmp_path):
    assert (wan.spec.size_multiple, wan.spec.segment_frames, wan.spec.area) == (16, 81, 480 * 832)
    latent = wan.encode(frames(0, 9))
    assert latent.shape == (16, 3, 4, 4)
    cameras = {"source_trajectory": STILL[:9], "target_trajectory": PAN[:9]}
    memory = MemoryVideo(latent, ARC[:9])
    result = wan(source=latent, memories=[memory], generator=noise(), output_type="np", **cameras)
    assert result.frames.shape == (9, 32, 32, 3)
    wan.save_pretrained(tmp_path)
    again = quiet(MemoryV2VPipeline.from_pretrained(tmp_path))
    assert torch.equal(result.latents, again(source=latent, memories=[memory], generator=noise(), **cameras).latents)


def test_a_wan_latent_frame_gets_the_camera_of_every_fourth_frame(wan):
    poses = wan._view(PAN[:9], 0, 24.0, "cpu")["poses"]
    assert torch.allclose(poses[0], torch.tensor(PAN.c2w[[0, 4, 8]], dtype=torch.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": frames(0, 15)}, "takes 16 frames, got a source of 15"),
        ({"source": frames() / 255.0}, r"floating-point latent \(3, T', H', W'\).*got \(16, 32, 32, 3\)"),
        ({"source": frames()[0]}, r"frames must be \(T, H, W, 3\) uint8, got \(32, 32, 3\)"),
        ({"source": frames(size=36)}, "multiples of 8, got 36x36"),
        ({"source": None, "source_trajectory": None}, "without a source num_frames, height and width are needed"),
        ({"source": None}, "without a source"),
        ({"height": 64}, r"must be the source's \(16, 32, 32\) or None, got \(None, 64, None\)"),
        ({"target_trajectory": ARC[:15]}, "target_trajectory needs one camera per frame, 16, got 15"),
        ({"source_trajectory": STILL[:1]}, "source_trajectory needs one camera per frame, 16, got 1"),
        ({"memories": [MemoryVideo(torch.zeros(3, 16, 32, 32))]}, "memory 0 has no trajectory"),
        ({"memories": [MemoryVideo(torch.zeros(3, 16, 32, 32), PAN[:8])]}, "memory 0 needs one camera .*16, got 8"),
        ({"memories": [MemoryVideo(torch.zeros(3, 16, 64, 32), PAN)]}, r"latent size \(32, 32\), got \(64, 32\)"),
        ({"memories": [MemoryVideo(torch.zeros(4, 16, 32, 32), PAN)]}, r"memory 0 must be a floating-point latent"),
        ({"memories": [MemoryVideo(torch.zeros(3, 16, 32, 32).int(), PAN)]}, "got .* torch.int32"),
        ({"num_inference_steps": 0}, "at least 1, a whole number, got 0"),
        ({"num_inference_steps": 2.0}, "at least 1, a whole number, got 2.0"),
        ({"shift": 0.0}, "positive, got 0.0"),
        ({"frame_rate": math.nan}, "frame_rate must be positive, got nan"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a number, got nan"),
        ({"guidance_scale": "5"}, "guidance_scale must be a number, got '5'"),
        ({"source": [frames()[0]]}, "source must be an array or a tensor.*got list"),
        ({"target_trajectory": "pan_right"}, r"target_trajectory must be a Trajectory, got str: .*preset\("),
        ({"memories": [(torch.zeros(3, 16, 32, 32), PAN)]}, "memory 0 must be a MemoryVideo, got tuple"),
        ({"memories": [MemoryVideo(torch.zeros(3, 16, 32, 32), PAN.c2w)]}, "of memory 0 must be a Trajectory, got nda"),
        ({"memories": [MemoryVideo(torch.zeros(3, 16, 32, 32), PAN, math.nan)]}, "memory 0 starts at nan, expected fr"),
        ({"generator": 42}, "generator must be a torch.Generator, got int"),
        ({"memories": [MemoryVideo(torch.full((3, 16, 32, 32), math.nan), PAN)]}, "memory 0 has values that are no"),
        ({"memories": MemoryVideo(torch.zeros(3, 16, 32, 32), PAN)}, "a list of MemoryVideo, got one of them"),
        ({"memories": [MemoryVideo(np.zeros((3, 16, 32, 32)), PAN)]}, "memory 0 must be a tensor, got ndarray"),
        ({"prompt": ["red"]}, "one string, got list"),
        ({"output_type": "pil"}, "'latent' or 'np', got 'pil'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"got \['noise'\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_expected_and_got(pipe, changes, message):
    with pytest.raises(ValueError, match=message):
        edit(pipe, **changes)


def test_another_kind_of_scheduler_is_refused_by_name(wan, monkeypatch):
    monkeypatch.setattr(wan, "scheduler", UniPCMultistepScheduler())
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler, got UniPCMultistepScheduler"):
        wan(source=frames(0, 9))


def test_a_prompt_without_a_text_encoder_is_refused(wan):
    with pytest.raises(ValueError, match="no text encoder.*got 'red'"):
        wan(source=frames(0, 9), prompt="red")


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'velocity' or 'sample', got 'epsilon'"):
        build_tiny(prediction="epsilon")
