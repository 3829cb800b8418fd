import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional as F

from pipeline.positions import grid_places
from pipeline.tokenizers import pad_to
from pipeline.transformer import ConditioningVideo, MemoryWanTransformer3DModel

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
}
NEW = ("tokenizers.", "camera_embedding.")


def stock(seed=0, **changes):
    torch.manual_seed(seed)
    return WanTransformer3DModel(**{**WAN, **changes}).eval()


def inputs(frames=3, height=8, width=12, channels=16, seed=1):
    random = torch.Generator().manual_seed(seed)
    latent = torch.randn(1, channels, frames, height, width, generator=random)
    return latent, torch.tensor([400.0]), torch.randn(1, 7, 32, generator=random)


def embedded(model, video):
    return model._tokens(video, None, model._where(video, None, 0)).states


def poses(frames, step=0.1):
    still = torch.eye(3, 4).expand(1, frames, 3, 4).clone()
    still[0, :, 0, 3] = step * torch.arange(frames)
    return still


def predict(model, *args, **conditioning):
    with torch.no_grad():
        return model(*args, return_dict=False, **conditioning)[0]


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 4, 2)])
def test_without_source_and_memory_it_is_the_stock_model_bit_for_bit(patch):
    base = stock(patch_size=patch)
    model = MemoryWanTransformer3DModel.from_base(base).eval()
    given = inputs(frames=4)
    assert torch.equal(predict(base, *given), predict(model, *given))


def test_our_own_path_is_the_stock_model_where_there_is_nothing_to_condition_on():
    # a target camera through the zero-initialised camera layer takes our path, embeddings and positions included
    base = stock()
    model = MemoryWanTransformer3DModel.from_base(base).eval()
    given = inputs()
    assert torch.equal(predict(base, *given), predict(model, *given, target_poses=poses(3)))


def test_a_source_at_the_targets_timestep_is_a_longer_stock_video():
    # With the source noised to the target's own timestep, sequence and positions are those of one video twice as long.
    base = stock()
    model = MemoryWanTransformer3DModel.from_base(base).eval()
    target, _, text = inputs(seed=1)
    source = inputs(seed=2)[0]
    clean = torch.tensor([0.0])
    long = predict(base, torch.cat([target, source], dim=2), clean, text)[:, :, :3]
    ours = predict(model, target, clean, text, source=ConditioningVideo(source), attention="joint")
    assert torch.allclose(long, ours, atol=1e-5)


def test_conditioning_is_modulated_as_a_clean_latent_at_any_timestep():
    model = MemoryWanTransformer3DModel.from_base(stock()).eval()
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append((args[2], args[4])))
    target, _, text = inputs()
    for t in (100.0, 900.0):
        predict(model, target, torch.tensor([t]), text, memories=[ConditioningVideo(target)], attention="joint")
    assert not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_the_parameters_of_a_base_keep_their_names():
    base, model = stock(), MemoryWanTransformer3DModel.from_base(stock())
    extra = set(model.state_dict()) - set(base.state_dict())
    assert set(base.state_dict()) <= set(model.state_dict())
    assert extra and all(name.startswith(NEW) for name in extra)


def test_a_base_with_other_parameters_is_refused_by_name():
    base = stock()
    base.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="extra.weight"):
        MemoryWanTransformer3DModel.from_base(base)


def test_a_tokenizer_starts_as_the_base_embedding_of_the_pooled_latent():
    model = MemoryWanTransformer3DModel.from_base(stock(), memory_kernels=((1, 2, 2), (2, 1, 2)))
    latent = inputs(frames=2, height=8, width=8)[0]
    for name, kernel in (("1x2x2", (1, 2, 2)), ("2x1x2", (2, 1, 2))):
        pooled = F.avg_pool3d(latent, kernel)
        assert torch.allclose(model.tokenizers[name](latent), model.patch_embedding(pooled), atol=1e-5)


def test_the_rank_of_a_memory_decides_its_kernel_and_the_last_entry_repeats():
    model = MemoryWanTransformer3DModel(**WAN)
    assert [model.kernel_of(rank) for rank in range(6)] == [(1, 2, 2)] * 3 + [(1, 4, 4)] * 3


def test_tokens_count_as_the_kernel_table_says():
    model = MemoryWanTransformer3DModel(**WAN).eval()
    lengths = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: lengths.append((args[0].shape[1], args[5])))
    given = inputs(frames=3, height=16, width=16)
    memories = [ConditioningVideo(given[0])] * 4
    predict(model, *given, source=ConditioningVideo(given[0]), memories=memories, attention="joint")
    assert lengths == [(3 * (64 + 64 + 3 * 16 + 4), 3 * 64)]


def test_a_latent_that_the_kernel_does_not_divide_repeats_its_border():
    latent = torch.arange(6.0).view(1, 1, 1, 2, 3)
    padded = pad_to(latent, (2, 2, 2))
    assert padded.shape == (1, 1, 2, 2, 4)
    assert torch.equal(padded[0, 0, 1], padded[0, 0, 0])
    assert padded[0, 0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5]]
    model = MemoryWanTransformer3DModel(**WAN).eval()
    given = inputs(height=10, width=14)
    assert predict(model, *given, memories=[ConditioningVideo(given[0])] * 4).shape == given[0].shape


def test_rotary_positions_equal_the_stock_table_on_integers():
    model = MemoryWanTransformer3DModel(**WAN)
    stock_cos, stock_sin = model.rope(torch.zeros(1, 16, 5, 8, 12))
    cos, sin = model._rotary(grid_places((5, 4, 6), (1, 1, 1), 0))
    assert torch.equal(cos, stock_cos) and torch.equal(sin, stock_sin)


def test_a_coarse_token_sits_at_the_centre_of_what_it_covers():
    # centre of patches 0 and 1 is .5: half the angle of position 1, in rows and columns; time is shifted as a whole
    model = MemoryWanTransformer3DModel(**WAN)
    coarse = torch.atan2(*reversed(model._rotary(grid_places((1, 1, 1), (1, 2, 2), 3)))).flatten()
    cos, sin = (table[0, :, 0].view(4, 2, 2, -1) for table in model._rotary(grid_places((4, 2, 2), (1, 1, 1), 0)))
    fine = torch.atan2(sin[3, 1, 1], cos[3, 1, 1])
    t_dim = model.rope.t_dim
    assert torch.allclose(coarse[:t_dim], fine[:t_dim])
    assert torch.allclose(coarse[t_dim:], fine[t_dim:] / 2)


def test_temporal_ranges_are_those_of_the_paper():
    model = MemoryWanTransformer3DModel(**WAN)
    videos = [ConditioningVideo(torch.zeros(1)) for _ in range(3)]
    places = list(model._places(videos[0], videos[1:], span=21))
    assert [offset for _, _, offset in places] == [21, 42, 42]
    assert [kernel for _, kernel, _ in places] == [(1, 1, 1), (1, 2, 2), (1, 2, 2)]


def test_every_video_gets_its_own_camera():
    model = MemoryWanTransformer3DModel.from_base(stock()).eval()
    torch.nn.init.normal_(model.camera_embedding.weight)
    given = inputs()

    def edit(target=0.1, source=0.1, memory=0.1):
        return predict(
            model,
            *given,
            target_poses=poses(3, target),
            source=ConditioningVideo(given[0], poses(3, source)),
            memories=[ConditioningVideo(given[0], poses(3, memory))],
        )

    reference = edit()
    assert torch.equal(reference, edit())
    for changed in (edit(target=0.5), edit(source=0.5), edit(memory=0.5)):
        assert not torch.allclose(reference, changed, atol=1e-4)


def test_a_token_over_several_latent_frames_has_their_mean_camera():
    model = MemoryWanTransformer3DModel(**{**WAN, "patch_size": (2, 2, 2)})
    torch.nn.init.normal_(model.camera_embedding.weight)
    latent, path = torch.zeros(1, 16, 4, 2, 2), torch.randn(1, 4, 3, 4)
    plain, posed = (embedded(model, ConditioningVideo(latent, each)) for each in (None, path))
    expected = model.camera_embedding(torch.stack([path[0, :2].mean(0), path[0, 2:].mean(0)]).flatten(1))
    assert torch.allclose((posed - plain)[0], expected, atol=1e-5)


def test_a_padded_frame_repeats_the_last_camera():
    model = MemoryWanTransformer3DModel(**{**WAN, "patch_size": (2, 2, 2)})
    torch.nn.init.normal_(model.camera_embedding.weight)
    latent, path = torch.zeros(1, 16, 3, 2, 2), torch.randn(1, 3, 3, 4)
    plain, posed = (embedded(model, ConditioningVideo(latent, each)) for each in (None, path))
    assert torch.allclose((posed - plain)[0, 1], model.camera_embedding(path[0, 2].flatten()), atol=1e-5)


def test_gradients_reach_every_new_parameter_with_and_without_checkpointing():
    given = inputs(height=8, width=8)
    gradients = []
    for checkpointing in (False, True):
        model = MemoryWanTransformer3DModel.from_base(stock())
        if checkpointing:
            model.enable_gradient_checkpointing()
        video = ConditioningVideo(given[0], poses(3))
        output = model(*given, source=video, memories=[video] * 4, target_poses=poses(3)).sample
        output.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if name.startswith(NEW)})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_it_survives_saving_and_loading(tmp_path):
    model = MemoryWanTransformer3DModel.from_base(stock(), memory_kernels=((1, 3, 3),))
    model.save_pretrained(tmp_path)
    again = MemoryWanTransformer3DModel.from_pretrained(tmp_path)
    assert again.kernel_of(5) == (1, 3, 3)
    assert set(again.tokenizers) == {"1x1x1", "1x3x3"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_published_shapes_build_on_the_meta_device():
    with torch.device("meta"):
        model = MemoryWanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    assert model.tokenizers["1x4x4"].weight.shape == (1536, 16, 1, 8, 8)
    assert model.camera_embedding.weight.shape == (1536, 12)


def test_a_base_in_half_precision_stays_as_it_is():
    base = stock().to(torch.bfloat16)
    base.condition_embedder.time_embedder.float()
    model = MemoryWanTransformer3DModel.from_base(base).eval()
    kinds = {name: value.dtype for name, value in model.state_dict().items()}
    assert {name: value.dtype for name, value in base.state_dict().items()}.items() <= kinds.items()
    assert {dtype for name, dtype in kinds.items() if name.startswith(NEW)} == {torch.bfloat16}
    latent, t, text = inputs()
    half = latent.bfloat16()
    memory = ConditioningVideo(half, poses(3))
    output = predict(model, half, t, text.bfloat16(), memories=[memory], target_poses=poses(3))
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


def test_a_source_in_channels_leaves_no_tokens_and_its_base_unchanged():
    base = stock(in_channels=32)
    model = MemoryWanTransformer3DModel.from_base(base, source="channels").eval()
    (target, t, text), source = inputs(), inputs(seed=2)[0]
    edited = predict(model, target, t, text, source=ConditioningVideo(source))
    assert torch.equal(edited, predict(base, torch.cat([target, source], dim=1), t, text))
    alone = predict(model, target, t, text)
    assert torch.equal(alone, predict(base, torch.cat([target, torch.zeros_like(target)], dim=1), t, text))
    lengths = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: lengths.append(args[0].shape[1]))
    memories = [ConditioningVideo(source)]
    predict(model, target, t, text, source=ConditioningVideo(source), memories=memories, attention="joint")
    assert lengths == [3 * (4 * 6 + 2 * 3)]
    assert model.tokenizers["1x2x2"].in_channels == 16
