"""Domain-agnostic E4T leads a U-Net on two paths: offsets start at zero, weights stay, and only what learns moves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_pipeline import WIDTH, clip_tokenizer, stable_diffusion
from torch import Tensor, nn

from tokenizers_visual.inversion.diffusion import text_encoders, to_prompt_embeds
from tokenizers_visual.inversion.domain_agnostic_e4t import (
    DomainAgnosticConfig,
    DomainAgnosticE4T,
    adapt,
    nearest_tokens,
    vocabulary,
)
from tokenizers_visual.inversion.dual_path import (
    Adaptation,
    attention_projections,
    attention_widths,
    denoiser_features,
    denoiser_width,
    dual_path,
    projection_sizes,
)
from tokenizers_visual.inversion.words import PseudoWords
from zoo.config import ConfigError
from zoo.registry import registry

PROMPTS = ["a photo of a $", "a drawing of a $"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    made = stable_diffusion(clip_tokenizer())
    made.unet.requires_grad_(False)
    return made


def e4t(pipeline: Any, *, moved: bool = True) -> DomainAgnosticE4T:
    """With offsets that are not zero where `moved`."""
    torch.manual_seed(0)
    config = DomainAgnosticConfig(
        "tiny", image_dim=12, word_dim=WIDTH, denoiser_dim=denoiser_width(pipeline.unet), hidden_dim=8, scale=1.0,
        attention_widths=attention_widths(pipeline.unet), rank=2, offset_dim=6,
    )  # fmt: skip
    model = DomainAgnosticE4T(config)
    if moved:
        nn.init.normal_(model.hypernetwork.up.weight)
    return model


def given(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Image features, noisy latents and times."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 12, generator=generator)[:count],
        torch.randn(2, 4, 8, 8, generator=generator)[:count],
        torch.tensor([10, 700])[:count],
    )


def adapted(pipeline: Any, model: DomainAgnosticE4T, count: int = 2) -> Adaptation:
    features, latents, times = given(count)
    (pair,) = text_encoders(pipeline, ["tiny"])
    return adapt(model, pair, pipeline.unet, PROMPTS[:count], features, latents, times)


def predicted(pipeline: Any, adaptation: Adaptation, blend: float) -> Tensor:
    _, latents, times = given(len(adaptation.soft))
    with dual_path(pipeline.unet, lambda *_: adaptation, blend=blend):
        return pipeline.unet(latents, times, encoder_hidden_states=adaptation.soft).sample


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_the_model_of_the_paper_fits_stable_diffusion() -> None:
    config = registry.card("domain_agnostic_e4t").config
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    assert denoiser_width(unet) == config["denoiser_dim"] == 10880  # as the open implementation of E4T has it
    assert list(attention_widths(unet)) == config["attention_widths"]
    shapes = [tuple(projection.weight.shape[::-1]) for projection in attention_projections(unet)]
    assert shapes == projection_sizes(attention_widths(unet), 768)
    assert len(shapes) == 128


def test_the_denoisers_features_are_means_of_what_its_encoder_hands_on(pipeline: Any) -> None:
    _, latents, times = given()
    states = torch.randn(2, 5, WIDTH)
    features = denoiser_features(pipeline.unet, latents, times, states)
    assert features.shape == (2, denoiser_width(pipeline.unet))
    torch.testing.assert_close(features[:, :8], pipeline.unet.conv_in(latents).mean(dim=(2, 3)))
    assert not torch.allclose(denoiser_features(pipeline.unet, latents, times + 100, states), features)
    assert not torch.allclose(denoiser_features(pipeline.unet, latents, times, 2 * states), features)


# -- the two paths -------------------------------------------------------------------------------------------------


def test_offsets_start_without_effect(pipeline: Any) -> None:
    adaptation = adapted(pipeline, e4t(pipeline, moved=False))
    assert len(adaptation.offsets) == len(attention_projections(pipeline.unet))
    _, latents, times = given()
    plain = pipeline.unet(latents, times, encoder_hidden_states=adaptation.soft).sample
    assert torch.equal(predicted(pipeline, adaptation, 1.0), plain)
    assert not torch.allclose(predicted(pipeline, adapted(pipeline, e4t(pipeline)), 1.0), plain, atol=1e-4)


def test_the_other_path_is_the_u_net_as_it_is_told_the_nearest_token(pipeline: Any) -> None:
    model = e4t(pipeline)
    adaptation = adapted(pipeline, model)
    (pair,) = text_encoders(pipeline, ["tiny"])
    (nearest,) = nearest_tokens(adaptation.words.embeddings[:, 0], vocabulary(pair), 1).T
    real = PseudoWords(vocabulary(pair)[nearest][:, None], "tiny")
    torch.testing.assert_close(adaptation.hard, to_prompt_embeds([pair], PROMPTS, [real]).prompt)
    _, latents, times = given()
    plain = pipeline.unet(latents, times, encoder_hidden_states=adaptation.hard).sample
    assert torch.equal(predicted(pipeline, adaptation, 0.0), plain)
    both = predicted(pipeline, adaptation, 0.5)
    assert not torch.allclose(both, plain, atol=1e-4)
    assert not torch.allclose(both, predicted(pipeline, adaptation, 1.0), atol=1e-4)


def test_offsets_do_what_moved_weights_do(pipeline: Any) -> None:
    adaptation = adapted(pipeline, e4t(pipeline), 1)
    unet = copy.deepcopy(pipeline.unet)
    for projection, (down, up) in zip(attention_projections(unet), adaptation.offsets):
        projection.weight.data += (up @ down)[0].detach()
    _, latents, times = given(1)
    expected = unet(latents, times, encoder_hidden_states=adaptation.soft).sample
    torch.testing.assert_close(predicted(pipeline, adaptation, 1.0), expected)


def test_each_image_has_paths_of_its_own_and_what_guidance_leads_away_from_stays(pipeline: Any) -> None:
    adaptation = adapted(pipeline, e4t(pipeline))
    _, latents, times = given()
    empty = torch.randn(2, 77, WIDTH)
    with dual_path(pipeline.unet, lambda *_: adaptation, blend=0.3):
        both = pipeline.unet(
            torch.cat([latents, latents]), times.repeat(2), encoder_hidden_states=torch.cat([empty, empty])
        ).sample
    torch.testing.assert_close(both[:2], pipeline.unet(latents, times, encoder_hidden_states=empty).sample)
    torch.testing.assert_close(both[2:], predicted(pipeline, adaptation, 0.3))
    alone = adapted(pipeline, e4t(pipeline), 1)
    torch.testing.assert_close(both[2:3], predicted(pipeline, alone, 0.3))


def test_a_pipeline_is_led_anew_in_each_step(pipeline: Any) -> None:
    model, (pair,) = e4t(pipeline), text_encoders(pipeline, ["tiny"])
    features, *_ = given(1)
    seen: list[int] = []

    def adaptation_at(latents: Tensor, time: Tensor) -> Adaptation:
        seen.append(int(time))
        with torch.no_grad():
            return adapt(model, pair, pipeline.unet, PROMPTS[:1], features, latents, time)

    def image() -> Any:
        return pipeline(
            "a photo", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="latent"
        ).images

    before = image()
    with dual_path(pipeline.unet, adaptation_at):
        led = image()
    assert len(seen) == 3
    assert len(set(seen)) == 3
    assert not torch.allclose(led, before, atol=1e-3)
    assert torch.equal(image(), before)  # nothing is left behind


# -- learning ------------------------------------------------------------------------------------------------------


def test_only_what_learns_moves(pipeline: Any) -> None:
    model = e4t(pipeline, moved=False)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    target, losses = torch.randn(2, 4, 8, 8), []
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for step in range(8):
        loss = (predicted(pipeline, adapted(pipeline, model), 0.5) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:  # offsets of zero: what they are made of has no gradient yet but for its last factor
            assert model.hypernetwork.up.weight.grad.abs().sum() > 0
            assert model.hypernetwork.down.weight.grad.abs().sum() == 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in pipeline.unet.parameters())
    after = pipeline.unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_does_not_fit_is_refused(pipeline: Any) -> None:
    model, (features, _, _) = e4t(pipeline), given()
    with pytest.raises(ValueError, match="expected 24 features of a denoiser beside the image's, got 0"):
        model.project(features)
    with pytest.raises(ValueError, match=r"blend: expected 0 to 1, got 1\.5"):
        predicted(pipeline, adapted(pipeline, model), 1.5)
    adaptation = adapted(pipeline, model)
    other = Adaptation(adaptation.words, adaptation.soft, adaptation.hard, adaptation.offsets[:-1])
    with pytest.raises(ValueError, match="expected offsets of the 32 projections of this U-Net"):
        predicted(pipeline, other, 0.5)
    with pytest.raises(ConfigError, match="positive hidden_dim, rank"):
        DomainAgnosticConfig("tiny", attention_widths=(8, 0))
