"""Losses, masking of captions and inversion by optimisation do what their papers claim of them."""

import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenizers_visual.inversion import lincir, pic2word, rtd, searle
from tokenizers_visual.parity.inversion import open_clip_pair
from zoo.config import ConfigError
from zoo.parity import Fixture

PARITY = Path(__file__).parents[2] / "parity"


# -- losses --------------------------------------------------------------------------------------------------------


def test_distillation_is_the_sum_written_out() -> None:
    target, estimate = torch.randn(3, 5), torch.randn(3, 5)
    words = torch.nn.functional.normalize(torch.cat([target, estimate]), dim=-1).double()
    terms = []
    for i in range(6):
        likeness = [math.exp(float(words[i] @ words[j]) / 0.25) for j in range(6) if j != i]
        terms.append(-math.log(math.exp(float(words[i] @ words[(i + 3) % 6]) / 0.25) / sum(likeness)))
    assert searle.distillation_loss(target, estimate).item() == pytest.approx(sum(terms) / 6, rel=1e-5)


@given(st.integers(2, 6), st.floats(0.05, 1.0))
def test_distillation_is_symmetric_and_least_for_equal_words_far_apart(count: int, temperature: float) -> None:
    words, other = torch.eye(count), torch.randn(count, count)
    loss = searle.distillation_loss(words, other, temperature)
    torch.testing.assert_close(loss, searle.distillation_loss(other, words, temperature))
    assert searle.distillation_loss(words, words, temperature) < searle.distillation_loss(
        words, words.roll(1, 0), temperature
    )


def test_contrastive_losses_prefer_own_texts() -> None:
    images = torch.eye(4)
    own, wrong = (pic2word.contrastive_losses(images, images.roll(shift, 0), 10.0) for shift in (0, 1))
    assert own["image"] < 0.01 < 9 < wrong["image"]
    assert own["text"] < wrong["text"]
    one_sided = pic2word.contrastive_losses(images, images[[0, 0, 0, 0]], 10.0)
    assert one_sided["image"] != one_sided["text"]


def test_cosine_loss_ignores_length() -> None:
    x = torch.randn(4, 6)
    assert searle.cosine_loss(x, 3 * x).item() == pytest.approx(0, abs=1e-6)
    assert searle.cosine_loss(x, -x).item() == pytest.approx(2, abs=1e-6)


# -- words by optimisation -----------------------------------------------------------------------------------------


def sentences(word: int) -> searle.Sentences:
    def ids(*middle: int) -> torch.Tensor:
        return torch.tensor([[398, *middle, 399, *[0] * (75 - len(middle))]]).expand(2, -1)

    return searle.Sentences(templates=ids(5, 259), phrases=ids(7, 259, 9), plain=ids(7, word, 9))


def test_optimised_words_approach_the_images_and_the_average_lags() -> None:
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    images = torch.randn(2, 32)
    inversion = searle.Inversion(pair, images)
    start = inversion.average.clone()
    losses = [inversion.step(sentences(20))["total"].item() for _ in range(40)]
    assert losses[-1] < losses[0] - 0.2
    assert inversion.words.embeddings.shape == (2, 1, 40)
    moved, lagging = inversion.current.detach() - start, inversion.average - start
    assert 0 < lagging.norm() < moved.norm()
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_inversion_repeats_with_its_seed_alone() -> None:
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    images = torch.randn(2, 32)
    one, again, other = (searle.invert(pair, images, [sentences(20)] * 2, seed=seed).embeddings for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_noise_on_the_features_moves_words_and_repeats_with_the_seed() -> None:
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    images, start = torch.randn(2, 32), 0.02 * torch.randn(2, 40)

    def found(noise: float, seed: int = 0) -> torch.Tensor:
        config = searle.InversionConfig(feature_noise=noise)
        inversion = searle.Inversion(pair, images, config, initial=start, seed=seed)
        for _ in range(3):
            inversion.step(sentences(20))
        return inversion.words.embeddings

    assert torch.equal(found(0.5), found(0.5))
    assert not torch.equal(found(0.5), found(0.5, seed=1))
    assert not torch.equal(found(0.5), found(0.0))
    assert torch.equal(found(0.0), found(0.0, seed=1))


def test_inversion_refuses_what_does_not_fit() -> None:
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    with pytest.raises(ValueError, match="expected 2 words to start from, got 3"):
        searle.Inversion(pair, torch.randn(2, 32), initial=torch.zeros(3, 40))
    for fields in (
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
        {"feature_noise": -1.0},
        {"cosine_weight": 0.0, "phrase_weight": 0.0},
    ):
        with pytest.raises(ConfigError):
            searle.InversionConfig(**fields)


# -- a text encoder beside a projector ---------------------------------------------------------------------------------


def test_the_trained_encoder_learns_and_all_else_stays() -> None:
    frozen, trained = (open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259) for _ in range(2))
    trained.model.requires_grad_(True)
    projector = searle.Searle(searle.SearleConfig("tiny_clip", 32, 40, hidden_dim=16)).train()
    before = {name: value.clone() for name, value in [*frozen.state_dict().items(), *projector.state_dict().items()]}
    texts = [torch.tensor([[398, *row, 399, *[0] * (75 - len(row))] for row in rows]) for rows in (
        [(1, 2), (3, 4), (5, 6)], [(7, 8), (9, 10), (11, 12)], [(259, 7), (259, 9), (259, 11)], [(259,)]
    )]  # fmt: skip
    scale, noise = torch.zeros(3), torch.zeros(3, 32)
    optimizer = torch.optim.AdamW(trained.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = rtd.step(frozen, trained, projector, rtd.Triplets(*texts), scale, noise).loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = {**frozen.state_dict(), **projector.state_dict()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in [*frozen.parameters(), *projector.parameters()])


def test_a_projector_of_another_clip_is_refused() -> None:
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    projector = searle.Searle(searle.SearleConfig("other", 32, 40, hidden_dim=16))
    triplets = rtd.Triplets(*[torch.tensor([[398, 259, 399]])] * 4)
    with pytest.raises(ValueError, match="expected the CLIP other, got tiny_clip"):
        rtd.step(pair, pair, projector, triplets, torch.zeros(1), torch.zeros(1, 32))


# -- captions ------------------------------------------------------------------------------------------------------


def test_keywords_are_the_longest_runs_in_order() -> None:
    tagged = [("a", "DET"), ("dog", "NOUN"), ("eats", "VERB"), ("red", "ADJ"), ("meat", "NOUN")]
    assert lincir.keywords(tagged) == ["a dog", "red meat"]
    assert lincir.keywords([]) == []
    assert lincir.keywords([("run", "VERB")]) == []


def test_a_keyword_that_is_no_part_masks_one_random_word_and_ends() -> None:
    caption = "wide-angle view of rome"
    masked = {lincir.mask_keywords(caption, ["wide - angle", "rome"], random.Random(seed)) for seed in range(40)}
    assert masked == {"$ view of rome", "wide-angle $ of rome", "wide-angle view $ rome", "wide-angle view of $"}


def test_an_empty_caption_becomes_the_placeholder() -> None:
    assert lincir.mask_keywords("", [], random.Random(0)) == "$"
    assert lincir.clean_caption(None) == ""


@given(st.text("ab $<PERSON>", max_size=20), st.lists(st.sampled_from(["a", "b", "ab", "no such"]), max_size=3))
def test_masking_always_leaves_a_placeholder(caption: str, found: list[str]) -> None:
    cleaned = lincir.clean_caption(caption)
    assert "$" not in cleaned
    assert cleaned == cleaned.lower().strip()
    assert "$" in lincir.mask_keywords(cleaned, found, random.Random(0))


def test_noise_scales_by_row_and_normalising_puts_on_the_sphere() -> None:
    features, noise = torch.randn(3, 4), torch.randn(3, 4)
    spread = lincir.noised(features, torch.tensor([0.0, 1.0, 0.5]), noise)
    torch.testing.assert_close(spread, features + torch.tensor([[0.0], [1.0], [0.5]]) * noise)
    model = lincir.LinCIR(lincir.LinCIRConfig("c", 4, 6, hidden_dim=5, normalize=True)).eval()
    torch.testing.assert_close(model.prepare(spread).norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(model(spread), model(3 * spread))


def test_the_running_average_starts_fast_and_ends_slow() -> None:
    decays = [lincir.ema_decay(step) for step in (1, 10, 10**6)]
    assert decays == [pytest.approx(2 / 11), pytest.approx(11 / 20), 0.9999]


def test_the_self_masking_loss_is_computed_in_float32() -> None:
    rebuilt, target = torch.randn(2, 8).half(), torch.randn(2, 8).half()
    loss = lincir.self_masking_loss(rebuilt, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (rebuilt.float() - target.float()).square().mean())
