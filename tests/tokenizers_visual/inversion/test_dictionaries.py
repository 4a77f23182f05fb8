"""Images named by entries of a dictionary, by words of a vocabulary or by tokens of a language model."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from tokenizers_visual.inversion import freedom, sitta
from tokenizers_visual.inversion.fdt import FDT, FDTConfig, FDTTextEncoder, temperature
from tokenizers_visual.inversion.freedom import FreeDom, FreeDomConfig
from tokenizers_visual.parity.inversion import open_clip_pair
from zoo.config import ConfigError
from zoo.parity import Fixture

PARITY = Path(__file__).parents[2] / "parity"


# -- FDT: sparse weights over a dictionary -------------------------------------------------------------------------


def small_fdt(**changes: object) -> FDT:
    torch.manual_seed(0)
    fields = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "heads": 2, "joint_dim": 8, "text_dim": 6,
              "codebook_size": 20, "dim": 8, "temperature": 1.0}  # fmt: skip
    return FDT(FDTConfig(**(fields | changes))).eval()


def test_sparse_weights_are_a_distribution_over_few_entries_which_are_the_tokens() -> None:
    grounded = small_fdt().encode(torch.randn(3, 3, 16, 16))
    torch.testing.assert_close(grounded.weights.sum(-1), torch.ones(3))
    for weights, entries in zip(grounded.weights, grounded.entries()):
        assert 0 < len(entries) < 20
        assert set(entries.tolist()) == set(weights.nonzero()[:, 0].tolist())
        assert (weights[entries].diff() <= 0).all()


def test_a_lower_temperature_leaves_fewer_entries() -> None:
    images = torch.randn(4, 3, 16, 16)
    counts = [sum(map(len, small_fdt(temperature=t).encode(images).entries())) for t in (100.0, 1.0, 0.01)]
    assert counts[0] > counts[1] > counts[2] == 4


@pytest.mark.parametrize("weighting", ["sparsemax", "softmax", "sigmoid"])
@pytest.mark.parametrize("pooling", ["max", "mean", "sum"])
def test_grounded_features_are_the_weighted_entries(weighting: str, pooling: str) -> None:
    model = small_fdt(weighting=weighting, pooling=pooling)
    grounded = model.ground(torch.randn(2, 5, 6), "text")
    shares = grounded.weights / grounded.weights.sum(-1, keepdim=True)
    torch.testing.assert_close(grounded.features, shares @ model.codebook)


def test_max_pooling_asks_for_each_entry_the_patch_that_likes_it_most() -> None:
    model, words = small_fdt(), torch.randn(1, 4, 6)
    twice = model.ground(torch.cat([words, words], dim=1), "text")
    torch.testing.assert_close(twice.weights, model.ground(words, "text").weights)
    assert not torch.allclose(twice.weights, model.ground(words[:, :2], "text").weights)


def test_padding_scores_zero_with_each_entry() -> None:
    model, words = small_fdt(), torch.randn(1, 4, 6)
    padding = torch.tensor([[False, False, True, True]])
    one = model.ground(words, "text", padding)
    other = model.ground(torch.cat([words[:, :2], torch.randn(1, 2, 6)], dim=1), "text", padding)
    torch.testing.assert_close(one.weights, other.weights)
    assert not one.scores[:, 2:].any()


def test_the_scale_stays_at_100_and_keeps_its_gradient() -> None:
    model = small_fdt()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    assert model.scale.item() == pytest.approx(100)
    model.scale.sum().backward()
    assert model.logit_scale.grad.item() > 100


def test_grounding_is_in_float32_and_saved_models_come_back(tmp_path: Path) -> None:
    model, images = small_fdt(), torch.randn(2, 3, 16, 16)
    again = zoo.create_model(str(zoo.save_model(model, tmp_path)))
    assert torch.equal(again.encode(images).weights, model.encode(images).weights)
    model.to(torch.bfloat16)
    grounded = model.encode(images.bfloat16())
    assert grounded.weights.dtype == torch.float32
    torch.testing.assert_close(grounded.weights.sum(-1), torch.ones(2))


def test_autocast_does_not_reach_the_dictionary() -> None:
    model, words = small_fdt(), torch.randn(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        grounded = model.ground(words, "text")
        queries = model.text_query(words)
    assert queries.dtype == torch.bfloat16
    assert grounded.scores.dtype == grounded.features.dtype == torch.float32
    torch.testing.assert_close(grounded.scores, queries.float() @ model.codebook.T / 8**0.5)
    torch.testing.assert_close(grounded.features, grounded.weights @ model.codebook)


def test_fdt_refuses_what_does_not_fit() -> None:
    model = small_fdt()
    with pytest.raises(ValueError, match=r"images \(B, 3, 16, 16\), got \(1, 3, 16, 8\)"):
        model.encode(torch.zeros(1, 3, 16, 8))
    with pytest.raises(ValueError, match=r"features \(B, N, 6\)"):
        model.ground(torch.zeros(1, 2, 8), "text")
    with pytest.raises(ValueError, match=r"padding \(1, 2\)"):
        model.ground(torch.zeros(1, 2, 6), "text", torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="patch_size that divides"):
        FDTConfig(patch_size=30)


def test_the_temperature_falls_to_its_floor() -> None:
    assert temperature(5000) == 1000
    assert temperature(2700, decay=0.5) == pytest.approx(500)
    assert temperature(10**6, decay=0.5) == 0.01


def small_texts() -> FDTTextEncoder:
    torch.manual_seed(0)
    return FDTTextEncoder(width=8, layers=1, heads=2).eval()


def test_texts_are_clips_byte_pairs_between_ids_that_are_one_larger() -> None:
    import open_clip

    encoder, plain = small_texts(), open_clip.tokenize(["A dog", "two cats"])
    ids, padding = encoder.tokenize(["A dog", "two cats"])
    assert torch.equal(ids, torch.where(plain >= 49406, plain + 1, plain))
    assert torch.equal(padding, plain == 0)
    assert encoder.transformer.token_embedding.num_embeddings == 49409


def test_words_see_what_stands_before_them_and_long_texts_lose_their_end() -> None:
    encoder = small_texts()
    words, padding = encoder(["a dog on a mat", "a dog"])
    assert words.shape == (2, 77, 8)
    torch.testing.assert_close(words[0, :3], words[1, :3])
    assert (~padding).sum(1).tolist() == [7, 4]
    ids, padding = encoder.tokenize(["dog " * 100])
    assert ids[0, 0] == encoder.start_id
    assert ids[0, -1] == encoder.end_id
    assert not padding.any()


# -- FreeDom: words by votes ---------------------------------------------------------------------------------------


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def small_freedom(**changes: object) -> FreeDom:
    fields = {"backbone": "tiny_clip", "neighbours": 4, "words_per_image": 3, "words": 3}
    return FreeDom(FreeDomConfig(**(fields | changes)))


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_words_are_counted_as_a_ballot_is(seed: int) -> None:
    model = small_freedom()
    voted = model.invert(unit(2, 8, seed=seed), unit(10, 8, seed=seed + 1), unit(12, 8, seed=seed + 2))
    for votes, labels, weights in zip(voted.votes.flatten(1).tolist(), voted.labels.tolist(), voted.weights.tolist()):
        counts = {word: votes.count(word) for word in dict.fromkeys(votes)}
        expected = sorted(counts, key=lambda word: -counts[word])[:3]  # of equals the first that was named
        assert [label for label in labels if label >= 0] == expected
        largest = counts[expected[0]]
        assert weights[: len(expected)] == pytest.approx([counts[word] / largest for word in expected])


def test_a_query_votes_unless_it_is_in_the_memory() -> None:
    memory, words = unit(10, 8), unit(12, 8, seed=1)
    stranger = small_freedom().invert(unit(1, 8, seed=5), memory, words)
    torch.testing.assert_close(stranger.voters[0, 0], unit(1, 8, seed=5)[0])
    known = small_freedom().invert(memory[:1], memory, words)
    torch.testing.assert_close(known.voters[0, 0], memory[0])
    assert not torch.allclose(known.voters[0, 1], memory[0])
    both = small_freedom().invert(torch.cat([memory[:1], unit(1, 8, seed=5)]), memory, words)
    torch.testing.assert_close(both.voters[0, :2], memory[[0, 0]])  # the test is of the whole call


def test_short_rows_are_filled_and_weigh_nothing() -> None:
    words = unit(12, 8)
    voted = small_freedom(words_per_image=1, words=8, neighbours=3, known=0.0).invert(
        words[:2], words.repeat(2, 1), words
    )
    filled = voted.labels < 0
    assert not voted.weights[filled].any()
    assert voted.prompts([f"w{i}" for i in range(12)], "toy")[0] == f"w{int(voted.labels[0, 0])} toy"
    features = unit(voted.labels.numel(), 8, seed=3)
    expected = (voted.weights[..., None] * features.view(*voted.labels.shape, 8)).sum(1)
    torch.testing.assert_close(voted.fuse(features), expected)


def test_images_of_a_class_lead_to_its_word_in_the_domain() -> None:
    """With a CLIP whose tokenizer takes single letters: "a" .. "f" are the vocabulary, "t" the domain."""
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    pair._encode = lambda text: [ord(letter) for letter in text if letter != " "]
    words = list("abcdef")
    features = torch.nn.functional.normalize(pair.text_features([f"{word}" for word in words]), dim=-1)
    gallery = torch.nn.functional.normalize(pair.text_features([f"{word} t" for word in words]), dim=-1)
    model = small_freedom(words_per_image=1, neighbours=1, known=2.0)
    queries = model.compose(pair, features, gallery, (words, features), "t")
    assert torch.equal(freedom.rank(queries @ gallery.T)[:, 0], torch.arange(6))
    pair.backbone = "other"
    with pytest.raises(ValueError, match="expected the CLIP tiny_clip, got other"):
        model.compose(pair, features, gallery, (words, features), "t")


def test_average_precision_by_hand() -> None:
    positive = torch.tensor([[True, False, True, False], [False, False, False, False]])
    # ranks 0 and 2 of two positives: (1 + 1) / 2 and (1 / 2 + 2 / 3) / 2, each over 2
    expected = (1 + (1 / 2 + 2 / 3) / 2) / (2 + 1e-5)
    assert freedom.average_precision(positive).tolist() == pytest.approx([expected, 0])
    metrics = freedom.retrieval_metrics(positive[:1], [1, 4])
    assert metrics["R@1"] == pytest.approx(50, abs=1e-3)
    assert metrics["P@1"] == pytest.approx(100, abs=1e-2)
    assert metrics["P@4"] == pytest.approx(100, abs=1e-3)  # over no more than there are


def test_baselines_are_what_they_are_called() -> None:
    queries, gallery, domain = unit(2, 8), unit(5, 8, seed=1), unit(1, 8, seed=2)
    image, text = queries @ gallery.T, (domain @ gallery.T).expand(2, -1)
    for name, expected in (("image", image), ("text", text), ("sum", image + text), ("product", image * text)):
        torch.testing.assert_close(freedom.baseline(name, queries, gallery, domain), expected)


def test_freedom_refuses_what_does_not_fit() -> None:
    model = small_freedom()
    with pytest.raises(ValueError, match="at least 4 images in memory, got 3"):
        model.invert(unit(1, 8), unit(3, 8), unit(12, 8))
    with pytest.raises(ValueError, match="at least 3 words in the vocabulary, got 2"):
        model.invert(unit(1, 8), unit(9, 8), unit(2, 8))
    with pytest.raises(ValueError, match=r"queries \(Q, E\)"):
        model.invert(unit(1, 7), unit(9, 8), unit(12, 8))
    with pytest.raises(ValueError, match=r"queries \(Q, E\)"):
        model.invert(unit(1, 8)[:0], unit(9, 8), unit(12, 8))


# -- SITTA: linear maps --------------------------------------------------------------------------------------------


def pairs(count: int = 60, source: int = 5, target: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, source, generator=generator)
    return x, x @ torch.linalg.qr(torch.randn(target, target, generator=generator)).Q[:source]


@pytest.mark.parametrize("method", ["linear", "procrustes", "robust_procrustes"])
def test_a_rotation_is_found_exactly(method: str) -> None:
    x, y = pairs()
    torch.testing.assert_close(x @ sitta.fit(x, y, method), y, rtol=1e-4, atol=1e-5)


def test_procrustes_keeps_lengths_and_least_squares_is_nearest() -> None:
    x, y = pairs()
    y = 3 * y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    rotated, linear, ridge = (sitta.fit(x, y, method) for method in ("procrustes", "linear", "ridge"))
    torch.testing.assert_close(rotated @ rotated.T, torch.eye(5), rtol=1e-4, atol=1e-5)
    error = [(x @ solved - y).square().sum().item() for solved in (linear, ridge, rotated)]
    assert error == sorted(error)
    assert ridge.norm() < linear.norm()


def test_robust_procrustes_heeds_outliers_less() -> None:
    x, y = pairs()
    wrong = y.clone()
    wrong[:12] = -5 * y[:12]
    plain, robust = (
        (x @ sitta.fit(x, wrong, method) - y)[12:].norm() for method in ("procrustes", "robust_procrustes")
    )
    assert robust < plain / 5
    weights = sitta.robust_weights(x, wrong, sitta.fit(x, y, "linear"))
    assert weights[:12].max() < weights[12:].min()
    assert weights.max() == 1


def test_a_mapped_image_reads_as_the_nearest_tokens(tmp_path: Path) -> None:
    x, y = pairs()
    model = sitta.Sitta(sitta.SittaConfig("tiny", image_dim=5, word_dim=7, language_model="tiny-t5")).eval()
    scaled, mean, deviation = sitta.standardise(x + 4)
    with torch.no_grad():
        model.map.copy_(sitta.fit(scaled, y))
    model.set_statistics(mean, deviation)
    words = model.project(x + 4)
    assert words.backbone == "tiny-t5"
    _, ids = sitta.nearest_tokens(words.embeddings[:, 0], y, 1)
    assert (ids[:, 0] == torch.arange(60)).float().mean() > 0.95
    again = zoo.create_model(str(zoo.save_model(model, tmp_path)))
    assert torch.equal(again.project(x).embeddings, model.project(x).embeddings)


def test_read_words_are_distinct_and_keep_the_best_place() -> None:
    texts = {1: " Cat", 2: "cat ", 3: "", 4: "dog", 5: "Red"}
    assert sitta.distinct_words([1, 2, 3, 4, 5], lambda ids: texts[ids[0]], 2) == ["cat", "dog"]


def test_a_published_map_loads_and_standardises_nothing_yet(tmp_path: Path) -> None:
    import numpy as np

    values = np.random.default_rng(0).normal(size=(1024, 768)).astype(np.float32)
    np.save(tmp_path / "map.npy", values)
    model = zoo.create_model("sitta_flan_t5_base", checkpoint=tmp_path / "map.npy")
    features = torch.randn(2, 1024)
    torch.testing.assert_close(model.project(features).embeddings[:, 0], features @ torch.from_numpy(values))
    with pytest.raises(ValueError, match="positive deviations"):
        model.set_statistics(torch.zeros(1024), torch.zeros(1024))
    with pytest.raises(ValueError, match="pairs of rows"):
        sitta.fit(torch.zeros(3, 2), torch.zeros(4, 2))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_fdts_layout_loads_without_its_text_encoder(tmp_path: Path, prefix: str) -> None:
    shapes = json.loads((PARITY / "fdt" / "keys_clip_fdt_cc3m_without_text_tower.json").read_text())
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    state["space_dict"] = torch.randn(shapes["space_dict"])
    state["encode_text.ln_final.weight"] = torch.zeros(512)
    content = {"model": {prefix + key: value for key, value in state.items()}, "optimizer": {"step": 3}}
    torch.save(content, tmp_path / "fdt.pt")
    model = zoo.create_model("clip_fdt_vit_b32", checkpoint=tmp_path / "fdt.pt")
    assert torch.equal(model.codebook, state["space_dict"])
