"""TokenVerse moves single text tokens of a FLUX in its modulation, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_flux import T5_WIDTH, flux
from torch import Tensor

from tokenizers_visual.inversion.tokenverse import (
    TokenVerse,
    TokenVerseConfig,
    draw_times,
    flow,
    flux_blocks,
    modulated,
    token_places,
)

CAPTION = "a doll wearing a jacket"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return flux()


def given(pipeline: Any, caption: str = CAPTION, count: int = 1) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    """Latents, text, times and noise."""
    text = pipeline.encode_prompt(caption, caption, num_images_per_prompt=count, max_sequence_length=16)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))[:, :count]
    return latents, text, torch.tensor([0.9, 0.3])[:count], noise


def offsets(pipeline: Any, count: int, scale: float = 1.0, *, each: bool = True) -> Tensor:
    blocks, width = len(flux_blocks(pipeline.transformer)), pipeline.transformer.inner_dim
    drawn = scale * torch.randn(blocks, count, width, generator=torch.Generator().manual_seed(2))
    return drawn if each else drawn[0]


def predicted(pipeline: Any, moved: Tensor | None = None, places: list[int] | None = None, count: int = 1) -> Tensor:
    latents, text, times, noise = given(pipeline, count=count)
    if moved is None:
        return flow(pipeline.transformer, latents, text, times, noise)[0]
    with modulated(pipeline.transformer, moved, places or []):
        return flow(pipeline.transformer, latents, text, times, noise)[0]


@pytest.mark.parametrize("count", [1, 2])
def test_offsets_of_zero_leave_the_transformer_as_it_was(pipeline: Any, count: int) -> None:
    plain = predicted(pipeline, count=count)
    torch.testing.assert_close(predicted(pipeline, offsets(pipeline, 2, 0.0), [1, 4], count), plain)
    torch.testing.assert_close(predicted(pipeline, offsets(pipeline, 2, 0.0, each=False), [1, 4], count), plain)
    moved = predicted(pipeline, offsets(pipeline, 2), [1, 4], count)
    assert not torch.allclose(moved, plain, atol=1e-3)
    assert torch.equal(predicted(pipeline, count=count), plain)  # nothing is left behind
    if count == 2:  # each item by itself
        torch.testing.assert_close(moved[:1], predicted(pipeline, offsets(pipeline, 2), [1, 4]))


def test_one_offset_for_all_tokens_is_another_modulation_of_the_whole_text(pipeline: Any) -> None:
    """What the transformer itself does when its modulation vector is moved, but for the image tokens."""
    transformer = pipeline.transformer
    block = transformer.transformer_blocks[0]
    generator = torch.Generator().manual_seed(3)
    image, text = torch.randn(1, 4, 16, generator=generator), torch.randn(1, 3, 16, generator=generator)
    vector, offset = torch.randn(2, 16, generator=generator)
    turns = transformer.pos_embed(torch.zeros(7, 3))
    inner = transformer.transformer_blocks[:1]
    whole = torch.nn.ModuleDict({"transformer_blocks": inner, "single_transformer_blocks": torch.nn.ModuleList()})

    def run(image_vector: Tensor, text_vector: Tensor) -> tuple[Tensor, Tensor]:
        handle = block.norm1_context.register_forward_pre_hook(
            lambda _m, args, options: (args, {**options, "emb": text_vector[None]}), with_kwargs=True
        )
        try:
            return block(image, text, image_vector[None], turns)
        finally:
            handle.remove()

    expected = run(vector, vector + offset)
    view = type("Flux", (), {name: whole[name] for name in whole})
    with modulated(view, offset.expand(3, -1), [0, 1, 2]):
        got = run(vector, vector)
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other)


def test_the_offset_of_a_later_token_moves_that_one_in_the_first_block(pipeline: Any) -> None:
    states: list[Tensor] = []
    norm = pipeline.transformer.single_transformer_blocks[0].norm
    with modulated(pipeline.transformer, offsets(pipeline, 1)[:, :1] * 0, [3]):
        handle = norm.register_forward_hook(lambda _m, _i, output: states.append(output[0]))
        predicted(pipeline)
        handle.remove()
    only = offsets(pipeline, 1)
    only[:2], only[3:] = 0, 0  # the third block is the first of one stream
    with modulated(pipeline.transformer, only, [3]):
        handle = norm.register_forward_hook(lambda _m, _i, output: states.append(output[0]))
        predicted(pipeline)
        handle.remove()
    changed = (states[1] - states[0]).abs().sum((0, 2)) > 1e-4
    assert changed.nonzero()[:, 0].tolist() == [3]


def test_gradients_reach_the_offsets_alone_and_the_loss_falls(pipeline: Any) -> None:
    transformer = pipeline.transformer
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    config = TokenVerseConfig("tiny", T5_WIDTH, transformer.inner_dim, hidden_dim=16, blocks=4)
    model, places = TokenVerse(config), token_places(pipeline.tokenizer_2, CAPTION)
    latents, text, times, noise = given(pipeline)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 0.01), []
    for _ in range(12):
        with modulated(transformer, model(text[0][0, places], stage=2), places):
            one, other = flow(transformer, latents, text, times, noise)
        loss = (one - other).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())


def test_a_pipeline_runs_with_moved_tokens(pipeline: Any) -> None:
    places = token_places(pipeline.tokenizer_2, CAPTION, "doll")

    def image() -> Tensor:
        made = pipeline(
            CAPTION, height=16, width=16, num_inference_steps=2, generator=torch.Generator().manual_seed(0),
            output_type="latent", max_sequence_length=16,
        )  # fmt: skip
        return made.images

    plain = image()
    with modulated(pipeline.transformer, offsets(pipeline, len(places)), places):
        assert not torch.allclose(image(), plain, atol=1e-3)
    assert torch.equal(image(), plain)


def test_a_flow_is_that_of_the_pipelines_own_packing(pipeline: Any) -> None:
    latents, text, times, noise = given(pipeline)
    one, target = flow(pipeline.transformer, latents, text, times, noise)
    noisy = 0.9 * noise + 0.1 * latents
    packed = pipeline._pack_latents(noisy, 1, 4, 8, 8)
    ids = pipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
    theirs = pipeline.transformer(
        packed, text[0], text[1], times, ids, text[2], guidance=torch.ones(1)
    ).sample  # fmt: skip
    torch.testing.assert_close(one.flatten(1, 2), theirs)
    torch.testing.assert_close(target.flatten(1, 2), pipeline._pack_latents(noise - latents, 1, 4, 8, 8))


def test_words_are_found_among_tokens(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer_2
    assert token_places(tokenizer, CAPTION) == [0, 1, 2, 3, 4]  # without the end
    assert token_places(tokenizer, CAPTION, "doll") == [1]
    assert token_places(tokenizer, CAPTION, "a jacket") == [3, 4]
    assert token_places(tokenizer, "a doll in jackets", "jackets") == [3, 4]  # of two tokens
    with pytest.raises(ValueError, match="expected a part of 'a doll', got 'boat'"):
        token_places(tokenizer, "a doll", "boat")


def test_times_are_drawn_where_each_stage_looks() -> None:
    noisy, less = draw_times(4000, noisy=True), draw_times(4000, noisy=False)
    assert 0.9 < (noisy > 0.8).float().mean() < 0.94
    assert 0.9 < (less < 0.8).float().mean() < 0.94
    assert 0 <= less.min() < noisy.max() <= 1
    assert less[less < 0.8].mean().item() == pytest.approx(0.4, abs=0.02)


def test_what_does_not_fit_is_refused(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="expected offsets of 4 blocks, got 3"):
        predicted(pipeline, offsets(pipeline, 1)[:3], [1])
    with pytest.raises(ValueError, match="expected 2 places"):
        predicted(pipeline, offsets(pipeline, 2), [1])
