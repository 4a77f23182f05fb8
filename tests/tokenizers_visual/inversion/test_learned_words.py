"""Words learned for one concept, and the techniques around them, have the properties that their papers claim."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from tokenizers_visual.inversion import (
    core_ti,
    decor,
    domain_agnostic_e4t,
    inspiration_tree,
    negtome,
    safe_clip,
)
from tokenizers_visual.inversion.batex import BaTex, BaTexConfig, choose_basis
from tokenizers_visual.inversion.clip import TransformersPair
from tokenizers_visual.inversion.discriminative_class_tokens import class_loss, classify, generate, prompt
from tokenizers_visual.inversion.textual_inversion import LearnedWords, LearnedWordsConfig, rescaled
from tokenizers_visual.inversion.tokenverse import TokenVerse, TokenVerseConfig, modulate_tokens
from tokenizers_visual.inversion.words import PseudoWords
from tokenizers_visual.parity.inversion import transformers_pair
from zoo.parity import Fixture

PARITY = Path(__file__).parents[2] / "parity"
START, END, DOLLAR, WIDTH = 398, 399, 259, 40


def pair() -> TransformersPair:
    return transformers_pair(Fixture.read(PARITY / "tiny_clip"), DOLLAR)


def ids(*middle: int) -> Tensor:
    return torch.tensor([[START, *middle, END, *[0] * (75 - len(middle))]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- textual inversion ---------------------------------------------------------------------------------------------


def test_words_start_from_real_ones_and_are_all_that_is_trained() -> None:
    clip, model = pair(), LearnedWords(LearnedWordsConfig("tiny_clip", WIDTH, words=2))
    model.start_from(clip, torch.tensor([17]))
    assert torch.equal(model.rows, clip.token_embeddings(torch.tensor([17, 17])))
    prompt_ids, target = ids(5, DOLLAR, DOLLAR), clip.text_features(ids(5, 30, 31))
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(clip.compose(prompt_ids, model()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())


def test_starting_from_the_wrong_number_or_encoder_is_refused() -> None:
    clip, model = pair(), LearnedWords(LearnedWordsConfig("tiny_clip", WIDTH, words=2))
    with pytest.raises(ValueError, match=r"one id, or 2, got \(3,\)"):
        model.start_from(clip, torch.tensor([1, 2, 3]))
    clip.backbone = "other"
    with pytest.raises(ValueError, match="expected the CLIP tiny_clip, got other"):
        model.start_from(clip, torch.tensor([1]))


def test_words_are_rescaled_to_a_real_norm() -> None:
    words, real = normal(3, 6), normal(6, seed=1)
    torch.testing.assert_close(rescaled(words, real).norm(dim=-1), real.norm().expand(3))
    torch.testing.assert_close(nn.functional.cosine_similarity(rescaled(words, real), words), torch.ones(3))


# -- BaTex ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 19), st.integers(1, 20))
def test_a_basis_holds_the_words_most_alike(word: int, size: int) -> None:
    table = normal(20, 6)
    dots, distances = table @ table[word], (table - table[word]).norm(dim=-1)
    cosines = nn.functional.cosine_similarity(table, table[word][None])
    for measure, scores in (("dot", dots), ("l2", -distances), ("cosine", cosines)):
        chosen = choose_basis(table, word, size, measure)
        assert torch.equal(scores[chosen], scores.sort(descending=True).values[:size])
    assert choose_basis(table, word, size, "l2")[0] == word
    assert choose_basis(table, word, size, "cosine")[0] == word
    drawn = choose_basis(table, word, size, "random", seed=3)
    assert drawn[0] == word
    assert len(set(drawn.tolist())) == size


def test_a_second_word_is_the_last_of_the_basis() -> None:
    table = normal(20, 6)
    near = choose_basis(table, 3, 5)
    far = int((table @ table[3]).argmin())
    assert choose_basis(table, 3, 5, second=far).tolist() == [*near[:4].tolist(), far]
    with pytest.raises(ValueError, match="second word that is not in the basis"):
        choose_basis(table, 3, 5, second=int(near[0]))
    with pytest.raises(ValueError, match="measure 'dot' or 'cosine', got 'l2'"):
        choose_basis(table, 3, 5, "l2", second=far)
    with pytest.raises(ValueError, match="within 20 words"):
        choose_basis(table, 3, 21)


def test_the_word_starts_in_the_basis_and_stays_in_its_span(tmp_path: Path) -> None:
    table = normal(50, 8)
    model = BaTex.from_vocabulary(BaTexConfig("tiny", 8, size=4), table, 7)
    torch.testing.assert_close(model().embeddings[0, 0], table[model.ids[0]])
    assert model.regulariser() == 0
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    for _ in range(10):
        optimizer.zero_grad()
        ((model().embeddings - normal(8, seed=2)).square().sum() + model.regulariser()).backward()
        optimizer.step()
    word = model().embeddings[0].detach()
    span = torch.linalg.svd(model.basis, full_matrices=False).Vh
    torch.testing.assert_close(word @ span.T @ span, word, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(word[0], table[model.ids[0]])
    again = zoo.create_model(str(zoo.save_model(model, tmp_path)))
    assert torch.equal(again().embeddings, model().embeddings)
    with pytest.raises(ValueError, match=r"a table \(V, 8\)"):
        BaTex.from_vocabulary(BaTexConfig("tiny", 8, size=4), normal(50, 9), 7)


def test_a_file_of_batex_loads(tmp_path: Path) -> None:
    basis, weight = normal(720, 768), normal(720, 1, seed=1)
    content = {"<toy>": (weight.T @ basis)[0], "weight_vector": weight, "candidate_embedding_matrix": basis,
               "vocab_ids": torch.arange(720)}  # fmt: skip
    torch.save(content, tmp_path / "learned_embeds-steps-1000.bin")
    model = zoo.create_model("batex", checkpoint=tmp_path / "learned_embeds-steps-1000.bin")
    torch.testing.assert_close(model().embeddings[0, 0], content["<toy>"], rtol=1e-4, atol=1e-3)


# -- CoRe ----------------------------------------------------------------------------------------------------------


def test_only_context_behind_the_word_can_move() -> None:
    clip, word = pair(), normal(1, 1, WIDTH).requires_grad_()
    states = clip.encode_text(*clip.embed(ids(5, 6, DOLLAR, 7, 8), PseudoWords(word, "tiny_clip"))).hidden
    reference = clip.encode_text(ids(5, 6, 30, 7, 8)).hidden
    context = torch.zeros(1, 77, dtype=torch.bool)
    context[0, [1, 2]] = True
    assert core_ti.context_embedding_loss(states, reference, context).item() == pytest.approx(0, abs=1e-6)
    context[0, [4, 5]] = True
    for measure in ("cosine", "mse"):
        loss = core_ti.context_embedding_loss(states, reference, context, measure)
        assert loss > 1e-3
    loss.backward()
    assert word.grad.abs().sum() > 0
    same = core_ti.context_embedding_loss(reference, reference, context)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_the_reference_side_gets_no_gradient() -> None:
    one, other = (normal(2, 3, 4, 6, seed=seed).softmax(-1).requires_grad_() for seed in (0, 1))
    context = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    core_ti.context_attention_loss(one, other, context).backward()
    assert other.grad is None
    touched = one.grad.abs().sum((1, 2)) > 0
    assert torch.equal(touched, context.bool())


def test_core_refuses_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="equal shape"):
        core_ti.context_embedding_loss(normal(1, 4, 3), normal(1, 5, 3), torch.ones(1, 4))
    with pytest.raises(ValueError, match="at least one token of context"):
        core_ti.context_attention_loss(normal(1, 2, 5, 4), normal(1, 2, 5, 4), torch.zeros(1, 4))


# -- DECOR ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 100), st.floats(0.0, 1.0))
def test_projection_is_idempotent_symmetric_and_leaves_nothing(count: int, seed: int, strength: float) -> None:
    undesired, states = normal(count, 8, seed=seed), normal(12, 8, seed=seed + 1)
    undesired = torch.cat([undesired, undesired.sum(0, keepdim=True)])  # dependent rows change nothing
    projection = decor.projector(undesired)
    torch.testing.assert_close(projection @ projection, projection, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projection, projection.T)
    assert projection.trace().item() == pytest.approx(count, abs=1e-3)
    clean = decor.project_out(states, undesired)
    torch.testing.assert_close(clean @ undesired.T, torch.zeros(12, count + 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(decor.project_out(clean, undesired), clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decor.project_out(states, undesired, strength), states.lerp(clean, strength))


def test_a_projection_is_kept_as_a_model(tmp_path: Path) -> None:
    states, undesired = normal(5, 8), normal(2, 8, seed=1)
    model = decor.Decor(decor.DecorConfig("tiny", 8, strength=0.7))
    assert torch.equal(model(states), states)
    model.remove(undesired)
    torch.testing.assert_close(model(states), decor.project_out(states, undesired, 0.7))
    again = zoo.create_model(str(zoo.save_model(model, tmp_path)))
    assert torch.equal(again(states), model(states))


def test_decor_keeps_what_is_orthogonal_and_refuses_nothing_at_all() -> None:
    basis = torch.linalg.qr(normal(8, 8)).Q
    torch.testing.assert_close(decor.project_out(basis[3:], basis[:3]), basis[3:], rtol=0, atol=1e-5)
    values = decor.singular_values(basis[:3] * torch.tensor([[3.0], [2.0], [1.0]]))
    torch.testing.assert_close(values, torch.tensor([3.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match="other than zero"):
        decor.projector(torch.zeros(2, 4))


# -- domain-agnostic E4T -------------------------------------------------------------------------------------------


def test_the_nearest_token_loss_pulls_to_tokens_and_pushes_apart() -> None:
    table, start = normal(60, 6), 0.1 * normal(1, 6, seed=1) + 0.01 * normal(4, 6, seed=2)
    words = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([words], 0.05)

    def loss(likeness: str = "cosine") -> Tensor:
        return domain_agnostic_e4t.nearest_token_loss(words, table, count=3, temperature=0.2, likeness=likeness)

    def spread(x: Tensor) -> float:
        unit = nn.functional.normalize(x, dim=-1)
        return (unit @ unit.T).sum().item()

    def nearness(x: Tensor) -> float:
        unit = nn.functional.normalize(x, dim=-1)
        return (unit @ nn.functional.normalize(table, dim=-1).T).topk(3).values.mean().item()

    before = spread(start), nearness(start)
    for _ in range(40):
        optimizer.zero_grad()
        loss().mean().backward()
        optimizer.step()
    assert spread(words.detach()) < before[0] - 1
    assert nearness(words.detach()) > before[1] - 0.05
    assert loss()[:1].shape == (1,)


def test_words_of_images_start_near_their_class_and_the_loss_takes_them_to_tokens() -> None:
    clip, images = pair(), normal(6, 32)
    config = domain_agnostic_e4t.DomainAgnosticConfig("tiny_clip", 32, WIDTH, denoiser_dim=5, hidden_dim=24)
    model = domain_agnostic_e4t.DomainAgnosticE4T(config)
    table = clip.token_embeddings(torch.arange(390))
    model.class_word.copy_(table[30])
    seen = normal(6, 5)
    assert (model(images, seen) - model(images, -seen)).abs().max() > 1e-3  # what the denoiser sees counts
    moved = model.head(torch.cat([images, seen], dim=1))
    assert (model(images, seen)[:, 0] - table[30]).norm(dim=-1).max() < 0.1 * moved.norm(dim=-1).max() + 1e-4

    def nearness() -> float:
        words = nn.functional.normalize(model(images, seen)[:, 0].detach(), dim=-1)
        return (words @ nn.functional.normalize(table, dim=-1).T).topk(2).values.mean().item()

    model.class_word.copy_(0.2 * normal(WIDTH, seed=4))
    before, optimizer = nearness(), torch.optim.AdamW(model.parameters(), 0.02)
    for _ in range(200):
        loss = domain_agnostic_e4t.nearest_token_loss(
            model(images, seen)[:, 0], table, count=2, temperature=0.1, likeness="cosine"
        )
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert nearness() > before + 0.1


def test_a_single_item_has_no_negatives_and_half_precision_does_not_overflow() -> None:
    table = normal(20, 6)
    one = domain_agnostic_e4t.nearest_token_loss(normal(1, 6), table, count=3, temperature=0.1)
    assert one.item() == pytest.approx(0, abs=1e-6)
    large = domain_agnostic_e4t.nearest_token_loss(
        30 * normal(3, 6).half(), 30 * table.half(), count=3, temperature=0.01
    )
    assert large.isfinite().all()
    with pytest.raises(ValueError, match="1 to 20 tokens, got 21"):
        domain_agnostic_e4t.nearest_tokens(normal(1, 6), table, 21)


def test_autocast_does_not_reach_the_nearest_token_loss() -> None:
    words, table = normal(4, 6), normal(20, 6, seed=1)
    exact = domain_agnostic_e4t.nearest_token_loss(words, table, count=3, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        again = domain_agnostic_e4t.nearest_token_loss(words, table, count=3, temperature=0.1)
    assert torch.equal(again, exact)


def test_tokens_are_nearest_by_cosine_whatever_their_norms() -> None:
    table = torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, 0.1]])
    assert domain_agnostic_e4t.nearest_tokens(torch.tensor([[0.1, 1.0]]), table, 2).tolist() == [[2, 1]]


# -- Inspiration Tree ----------------------------------------------------------------------------------------------


def test_noisy_times_are_drawn_more_often() -> None:
    weights = inspiration_tree.timestep_weights(1000, 0.5)
    assert (weights.diff() > -1e-9).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(inspiration_tree.timestep_weights(10, 0.0), torch.full((10,), 0.1))
    with pytest.raises(ValueError, match=r"slope in \[-1, 1\]"):
        inspiration_tree.timestep_weights(10, 2.0)


def test_a_split_scores_high_when_words_are_consistent_and_unlike() -> None:
    def around(axis: int, seed: int) -> Tensor:
        return torch.eye(6)[axis] + 0.05 * normal(5, 6, seed=seed)

    good = inspiration_tree.seed_score(around(0, 0), around(1, 1), normal(5, 6))
    alike = inspiration_tree.seed_score(around(0, 0), around(0, 1), normal(5, 6))
    loose = inspiration_tree.seed_score(normal(5, 6, seed=3), around(1, 1), normal(5, 6))
    assert good.score > alike.score
    assert good.score > loose.score
    assert good.similarity[0, 0] > 0.9 > 0.2 > good.similarity[0, 1]
    with pytest.raises(ValueError, match="at least two images"):
        inspiration_tree.seed_score(normal(1, 6), normal(2, 6), normal(2, 6))


# -- NegToMe -------------------------------------------------------------------------------------------------------


def test_tokens_like_the_reference_are_pushed_away_and_others_stay() -> None:
    reference = torch.eye(4)
    item = torch.stack([torch.tensor([1.0, 0.3, 0, 0]), *-torch.eye(4)[1:]])
    pushed = negtome.push_from_reference(torch.stack([reference, item]))
    torch.testing.assert_close(pushed[0], reference)
    cosine = nn.functional.cosine_similarity
    assert cosine(pushed[1, 0], reference[0], dim=0) < cosine(item[0], reference[0], dim=0)
    assert torch.equal(pushed[1, 2:], item[2:])
    assert torch.equal(negtome.push_from_reference(torch.stack([reference, item]), strength=0.0)[1], item)


def test_masked_tokens_of_the_reference_push_nothing() -> None:
    hidden = normal(1, 5, 6).repeat(2, 1, 1)  # equal to the reference, so that all are matched
    mask = torch.tensor([True, False, True, False, False])
    moved = negtome.push_from_reference(hidden, threshold=0.5, mask=mask, strength=0.5)
    assert torch.equal(moved[:, ~mask], hidden[:, ~mask])
    with pytest.raises(ValueError, match="a mask of 5 tokens"):
        negtome.push_from_reference(hidden, mask=mask[:3])
    with pytest.raises(ValueError, match=r"tokens \(B, N, D\)"):
        negtome.push_from_reference(hidden[0])


# -- discriminative class tokens -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def denoiser(unet: UNet2DConditionModel, calls: list[bool] | None = None):
    def denoise(latents: Tensor, time: Tensor, states: Tensor) -> Tensor:
        if calls is not None:
            calls.append(torch.is_grad_enabled())
        return unet(latents, time, encoder_hidden_states=states).sample

    return denoise


def test_the_last_step_alone_carries_gradients(unet: UNet2DConditionModel) -> None:
    calls: list[bool] = []
    states, empty, noise = normal(1, 5, WIDTH).requires_grad_(), normal(1, 5, WIDTH, seed=1), normal(1, 4, 8, 8)
    made = generate(denoiser(unet, calls), DDIMScheduler(), states, empty, noise, steps=4)
    assert calls == [False, False, False, True]
    made.sum().backward()
    assert states.grad.abs().sum() > 0
    with torch.no_grad():
        again = generate(denoiser(unet), DDIMScheduler(), states, empty, noise, steps=4)
        unguided = generate(denoiser(unet), DDIMScheduler(), states, empty, noise, steps=4, guidance=1.0)
        alone = generate(
            denoiser(unet), DDIMScheduler(), states, normal(1, 5, WIDTH, seed=9), noise, steps=4, guidance=1.0
        )
    torch.testing.assert_close(made, again)
    torch.testing.assert_close(unguided, alone)  # at guidance 1 the empty prompt has no say
    assert not torch.allclose(made, unguided)


def test_a_word_learns_to_satisfy_the_classifier_and_nothing_else_moves(unet: UNet2DConditionModel) -> None:
    clip, model = pair(), LearnedWords(LearnedWordsConfig("tiny_clip", WIDTH))
    model.start_from(clip, torch.tensor([30]))
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False)
    to_image = torch.randn(3, 4) * 0.3  # stands for the decoder
    empty, noise = clip.encode_text(ids()).hidden[:, :8], normal(1, 4, 8, 8)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 0.05), []
    before = {name: value.clone() for name, value in [*clip.state_dict().items(), *unet.state_dict().items()]}
    for _ in range(25):
        states = clip.encode_text(*clip.embed(ids(5, DOLLAR, 9), model())).hidden[:, :8]
        latents = generate(denoiser(unet), DDIMScheduler(), states, empty, noise, steps=3)
        images = torch.einsum("oc,bchw->bohw", to_image, latents)
        loss = class_loss(classify(classifier, images, size=8, resize=8), 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    after = {**clip.state_dict(), **unet.state_dict()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_classifier_sees_the_centre_normalised() -> None:
    seen: list[Tensor] = []

    class Classifier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean((2, 3))

    images = torch.full((1, 3, 32, 32), -1.0)
    images[:, :, 8:24, 8:24] = 1
    classify(Classifier(), images, size=12, resize=32)
    assert seen[0].shape == (1, 3, 12, 12)
    torch.testing.assert_close(seen[0], torch.ones(1, 3, 12, 12))
    assert prompt("goldfish") == "A photo of $ goldfish"


# -- TokenVerse ----------------------------------------------------------------------------------------------------


def small_tokenverse(blocks: int = 3) -> TokenVerse:
    return TokenVerse(TokenVerseConfig("tiny", text_dim=6, width=5, hidden_dim=8, blocks=blocks))


def test_offsets_start_at_zero_and_leave_the_transformer_as_it_was() -> None:
    model, modulation = small_tokenverse(), normal(2, 5)
    offsets = model(normal(2, 6))
    assert not offsets.any()
    tokens = modulate_tokens(modulation, 7, offsets, [1, 4])
    assert torch.equal(tokens, modulation[:, None].expand(-1, 7, -1))


def test_a_concept_moves_its_own_token_alone_and_concepts_combine() -> None:
    modulation, one, other = normal(2, 5), normal(1, 5, seed=1), normal(1, 5, seed=2)
    moved = modulate_tokens(modulation, 7, torch.cat([one, other]), [1, 4]) - modulation[:, None]
    assert moved.abs().sum((0, 2)).nonzero()[:, 0].tolist() == [1, 4]
    torch.testing.assert_close(moved[:, 1], one.expand(2, -1))
    torch.testing.assert_close(moved[:, 4], other.expand(2, -1))


def test_the_second_stage_adds_an_offset_for_each_block() -> None:
    model, words = small_tokenverse(), normal(2, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    shared, each = model(words), model(words, stage=2)
    assert each.shape == (3, 2, 5)
    assert (each - shared).abs().amin() > 0
    with pytest.raises(ValueError, match="stage 1, or 2 of a model with blocks"):
        small_tokenverse(blocks=0)(words, stage=2)
    with pytest.raises(ValueError, match=r"expected 2 places in 0\.\.6"):
        modulate_tokens(normal(1, 5), 7, shared, [7, 1])


# -- Safe-CLIP -----------------------------------------------------------------------------------------------------


def test_unsafe_features_are_taken_to_the_safe_ones() -> None:
    safe_texts, safe_images = torch.eye(4, 8), torch.eye(4, 8) + 0.01 * normal(4, 8)
    reference = safe_clip.Quadruplets(safe_texts, normal(4, 8, seed=1), safe_images, normal(4, 8, seed=2))
    redirected = safe_clip.Quadruplets(safe_texts, safe_texts, safe_images, safe_images)
    kept = safe_clip.safe_clip_losses(reference, reference)
    best = safe_clip.safe_clip_losses(redirected, reference)
    assert all(best[name].item() == pytest.approx(0, abs=1e-4) for name in safe_clip.WEIGHTS)
    for name in safe_clip.WEIGHTS:
        unsafe = "unsafe" in name
        assert (kept[name] > 0.5) == unsafe
    expected = sum(safe_clip.WEIGHTS[name] * value for name, value in kept.items()) / 8
    torch.testing.assert_close(safe_clip.total_loss(kept), expected)


def test_safe_clip_leaves_the_reference_alone_and_names_what_was_published() -> None:
    import json

    trained, reference = (
        safe_clip.Quadruplets(*(normal(3, 6, seed=seed + i).requires_grad_() for i in range(4))) for seed in (0, 10)
    )
    safe_clip.total_loss(safe_clip.safe_clip_losses(trained, reference)).backward()
    assert all(getattr(reference, name).grad is None for name in vars(reference))
    assert all(getattr(trained, name).grad.abs().sum() > 0 for name in vars(trained))
    listed = json.loads((PARITY / "safe_clip" / "published.json").read_text())
    assert {entry["repo"] for entry in listed} == set(safe_clip.REPOSITORIES)
