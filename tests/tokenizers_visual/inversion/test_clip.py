"""A CLIP pair gives what its library gives, with or without pseudo-words, and refuses what does not fit."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from tokenizers_visual.inversion.clip import ClipPair, OpenClipPair, TransformersPair
from tokenizers_visual.inversion.vocabulary import nearest_words
from tokenizers_visual.inversion.words import PseudoWords
from tokenizers_visual.parity.inversion import open_clip_pair, transformers_pair
from zoo.checkpoint import CheckpointError
from zoo.parity import Fixture

PARITY = Path(__file__).parents[2] / "parity"
DOLLAR, START, END, WIDTH = 259, 398, 399, 40
both = pytest.mark.parametrize("make", [open_clip_pair, transformers_pair])


class LetterTokenizer:
    """Each letter is a token; "$" is one as in CLIP's vocabulary."""

    sot_token_id, eot_token_id = START, END

    def encode(self, text: str) -> list[int]:
        return [DOLLAR if letter == "$" else ord(letter) for letter in text if letter != " "]


def tiny(make: Callable[[Fixture, int], ClipPair]) -> ClipPair:
    return make(Fixture.read(PARITY / "tiny_clip"), DOLLAR)


@pytest.fixture(scope="module")
def pair() -> OpenClipPair:
    model = tiny(open_clip_pair).model
    return OpenClipPair(model, LetterTokenizer(), backbone="tiny_clip")


def words(*shape: int, seed: int = 0) -> PseudoWords:
    return PseudoWords(torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed)), "tiny_clip")


def row(*ids: int) -> list[int]:
    return [START, *ids, END, *[0] * (75 - len(ids))]


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# -- equal to the libraries ----------------------------------------------------------------------------------------


def test_open_clip_features_are_its_own() -> None:
    pair = tiny(open_clip_pair)
    ids, images = torch.tensor([row(1, 2, 3), row(7)]), torch.randn(2, 3, 32, 32)
    assert torch.equal(pair.text_features(ids), pair.model.encode_text(ids))
    assert torch.equal(pair.image_features(images), pair.model.encode_image(images))


def test_transformers_features_are_its_own() -> None:
    pair = tiny(transformers_pair)
    ids, images = torch.tensor([row(1, 2, 3), row(7)]), torch.randn(2, 3, 32, 32)
    own = pair.model(input_ids=ids, pixel_values=images)
    unit = torch.nn.functional.normalize
    near(unit(pair.text_features(ids), dim=-1), own.text_embeds)
    near(unit(pair.image_features(images), dim=-1), own.image_embeds)


def test_the_libraries_agree_on_features_hidden_states_and_image_tokens() -> None:
    one, other = tiny(open_clip_pair), tiny(transformers_pair)
    ids, images = torch.tensor([row(1, DOLLAR, DOLLAR), row(DOLLAR, 9, DOLLAR)]), torch.randn(2, 3, 32, 32)
    given = one.encode_text(*one.embed(ids, words(2, 2)))
    again = other.encode_text(*other.embed(ids, words(2, 2)))
    near(given.features, again.features)
    near(given.hidden, again.hidden)
    near(one.image_tokens(images), other.image_tokens(images))
    near(one.logit_scale, other.logit_scale)


@both
def test_hidden_states_go_to_the_joint_space_as_the_pooled_ones_do(make: Callable) -> None:
    pair = tiny(make)
    images = torch.randn(2, 3, 32, 32)
    near(pair.joint_tokens(pair.image_tokens(images))[:, 0], pair.image_features(images))
    ids = torch.tensor([row(5, 6), row(7)])
    output = pair.encode_text(ids)
    ends = (ids == END).int().argmax(1)
    near(pair.joint_hidden(output.hidden)[torch.arange(2), ends], output.features)


def test_an_encoder_that_pools_a_map_has_no_tokens_in_the_joint_space() -> None:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32, "timm_model_name": None}
    text = {"context_length": 77, "vocab_size": 400, "width": 8, "heads": 2, "layers": 1}
    pair = OpenClipPair(open_clip.CLIP(8, vision, text), LetterTokenizer(), backbone="resnet")
    with pytest.raises(ValueError, match="resnet: expected an image encoder that projects its class token"):
        pair.joint_tokens(pair.image_tokens(torch.randn(1, 3, 32, 32)))


def test_a_text_encoder_alone_composes_and_has_no_images() -> None:
    whole = tiny(transformers_pair)
    text = CLIPTextModelWithProjection(whole.model.config.text_config).eval()
    text.text_model.load_state_dict(whole.model.text_model.state_dict())
    text.text_projection.load_state_dict(whole.model.text_projection.state_dict())
    alone = TransformersPair(text, backbone="tiny_clip", placeholder_id=DOLLAR)
    ids = torch.tensor([row(5, DOLLAR)])
    near(alone.compose(ids, words(1, 1)), whole.compose(ids, words(1, 1)))
    with pytest.raises(ValueError, match="image encoder"):
        alone.image_features(torch.zeros(1, 3, 32, 32))


def test_a_custom_text_tower_of_open_clip_composes() -> None:
    model = open_clip.CustomTextCLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 12, "vocab_size": 50, "width": 24, "heads": 2, "layers": 1},
    )
    pair = OpenClipPair(model, backbone="custom", placeholder_id=9)
    ids = torch.tensor([[48, 3, 9, 49, *[0] * 8]])
    real = PseudoWords(pair.token_embeddings(torch.tensor([[9]])), "custom")
    near(pair.compose(ids, real), model.encode_text(ids))


@both
def test_words_of_the_vocabulary_give_the_features_of_the_plain_text(make: Callable) -> None:
    pair = tiny(make)
    marked, plain = torch.tensor([row(3, DOLLAR, DOLLAR, 8)]), torch.tensor([row(3, 17, 21, 8)])
    real = PseudoWords(pair.token_embeddings(torch.tensor([[17, 21]])), "tiny_clip")
    near(pair.compose(marked, real), pair.text_features(plain))
    assert (pair.compose(marked, words(1, 2)) - pair.text_features(plain)).abs().max() > 1e-2


# -- where words go ------------------------------------------------------------------------------------------------


def test_each_placeholder_takes_the_same_words_or_one_each(pair: OpenClipPair) -> None:
    ids, embeddings = pair.embed("a $ and $", words(1, 2))
    places = (ids[0] == DOLLAR).nonzero()[:, 0]
    assert len(places) == 4
    near(embeddings[0, places], words(1, 2).embeddings[0].repeat(2, 1))
    first, second = words(1, 2), words(1, 1, seed=1)
    ids, embeddings = pair.embed("a $ and $", [first, second])
    places = (ids[0] == DOLLAR).nonzero()[:, 0]
    near(embeddings[0, places], torch.cat([first.embeddings[0], second.embeddings[0]]))


def test_the_first_placeholder_alone_may_be_filled(pair: OpenClipPair) -> None:
    ids = torch.tensor([row(3, DOLLAR, 4, DOLLAR)])
    _, embeddings = pair.embed(ids, words(1, 2), fill="first")
    near(embeddings[0, 2:4], words(1, 2).embeddings[0])
    near(embeddings[:, 4], pair.token_embeddings(ids[:, 4]))


def test_a_prompt_without_placeholder_may_be_let_through(pair: OpenClipPair) -> None:
    ids = torch.tensor([row(3, 4), row(DOLLAR)])
    for fill in ("all", "first"):
        features = pair.compose(ids, words(2, 1), fill=fill, optional=True)
        near(features[:1], pair.text_features(ids[:1]))
        near(features[1:], pair.compose(ids[1:], words(2, 1)[1]))


def test_one_prompt_serves_all_words_and_one_word_all_prompts(pair: OpenClipPair) -> None:
    near(pair.compose("a $", words(3, 1))[2:], pair.compose("a $", words(3, 1)[2]))
    near(pair.compose(["a $", "b $"], words(1, 1))[1:], pair.compose("b $", words(1, 1)))


@given(
    texts=st.lists(st.text("abc.,", max_size=8), min_size=2, max_size=4),
    counts=st.integers(1, 4),
)
def test_dollars_anywhere_become_so_many_placeholders(pair: OpenClipPair, texts: list[str], counts: int) -> None:
    ids = pair.tokenize("$".join(texts), [counts])[0]
    assert ids.shape == (77,)
    assert int((ids == DOLLAR).sum()) == counts * (len(texts) - 1)
    assert [chr(i) for i in ids.tolist() if 0 < i < DOLLAR] == list("".join(texts))
    assert ids[0] == START
    assert int((ids == END).sum()) == 1


def test_gradients_reach_the_words_and_nothing_else(pair: OpenClipPair) -> None:
    embeddings = words(2, 1).embeddings.requires_grad_()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    pair.train()
    assert not any(module.training for module in pair.modules())
    pair.compose("a $ b", PseudoWords(embeddings, "tiny_clip")).sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())


def test_the_table_of_embeddings_is_itself_again_after_an_error(pair: OpenClipPair) -> None:
    ids = torch.tensor([row(3)])
    expected = pair.text_features(ids)
    with pytest.raises(RuntimeError):
        pair.encode_text(ids, torch.zeros(1, 77, WIDTH + 1))
    assert torch.equal(pair.text_features(ids), expected)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["", "in_"])
def test_half_precision_ranks_the_same_ten_first(make: Callable, dtype: torch.dtype, case: str) -> None:
    """The retrieval of a fixture: words and their domain against a gallery, in either library."""
    arrays = Fixture.read(PARITY / "freedom").arrays
    weights, gallery = arrays[f"{case}weights"], arrays[f"{case}database"]
    features = tiny(make).to(dtype).text_features(arrays[f"{case}text_ids"]).float()
    unit = torch.nn.functional.normalize(features, dim=-1).unflatten(0, weights.shape)
    similarity = (weights[..., None] * unit).sum(1) @ gallery.T
    assert torch.equal(similarity.topk(10).indices, arrays[f"{case}ranking"][:, :10])


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_words_of_half_precision_compose_in_that_of_the_clip(make: Callable, dtype: torch.dtype) -> None:
    pair, ids = tiny(make), torch.tensor([row(3, DOLLAR)])
    exact = pair.compose(ids, words(1, 1))
    pair.to(dtype)
    for word in (words(1, 1), words(1, 1).to(dtype)):
        features = pair.compose(ids, word)
        assert features.dtype == dtype
        assert torch.nn.functional.cosine_similarity(features.float(), exact) > 0.999


# -- frozen --------------------------------------------------------------------------------------------------------


def resnet_pair() -> OpenClipPair:
    """A CLIP whose image encoder has batch norms, which training would move."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8},
        text_cfg={"context_length": 12, "vocab_size": 50, "width": 24, "heads": 2, "layers": 1},
    )
    return OpenClipPair(model, backbone="resnet", placeholder_id=9)


@pytest.mark.parametrize("make", [lambda: tiny(open_clip_pair), lambda: tiny(transformers_pair), resnet_pair])
def test_training_through_a_pair_leaves_it_as_it_was(make: Callable[[], ClipPair]) -> None:
    pair = make()
    start, mark, end = pair.start_id, pair.placeholder_id, pair.end_id
    ids = torch.tensor([[start, mark, end, *[0] * (pair.context_length - 3)]] * 3)
    width = pair.token_embeddings(ids).shape[-1]
    images = torch.randn(3, 3, 32, 32)
    phi = torch.nn.Linear(pair.image_features(images).shape[-1], width)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    both_modules = torch.nn.ModuleList([phi, pair]).train()
    assert not pair.training
    assert not any(module.training for module in pair.modules())
    optimizer = torch.optim.AdamW(both_modules.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        features = pair.image_features(images)
        texts = pair.compose(ids, PseudoWords(phi(features)[:, None], pair.backbone))
        loss = -torch.nn.functional.cosine_similarity(texts, features).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert phi.weight.grad.abs().sum() > 0
    assert any("running_mean" in name for name in before) == (pair.backbone == "resnet")
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in pair.parameters())


# -- words read back and kept --------------------------------------------------------------------------------------


def test_words_read_back_as_the_nearest_of_the_vocabulary(pair: OpenClipPair) -> None:
    real = pair.token_embeddings(torch.tensor([[ord("c"), ord("t")], [START, ord("d")]]))
    near_real = PseudoWords(3 * real + 0.001, "tiny_clip")
    pair.decode = lambda ids: f"{chr(ids[0])} "
    read = nearest_words(pair, near_real, 3)
    assert [len(word) for item in read for word in item] == [3] * 4
    assert [read[0][0][0].text, read[0][1][0].text, read[1][1][0].text] == ["c", "t", "d"]
    assert read[0][0][0].id == ord("c")
    assert read[0][0][0].cosine == pytest.approx(1, abs=1e-3)
    cosines = [near.cosine for near in read[0][0]]
    assert cosines == sorted(cosines, reverse=True)
    assert START not in {near.id for item in read for word in item for near in word}
    pair.decode = None
    assert nearest_words(pair, near_real, 1)[0][0][0].text == ""
    with pytest.raises(ValueError, match="expected words of the CLIP tiny_clip, got words of other"):
        nearest_words(pair, PseudoWords(real, "other"))
    with pytest.raises(ValueError, match="1 to 398 tokens, got 399"):
        nearest_words(pair, near_real, 399)


def test_words_come_back_from_a_file_with_their_clip(tmp_path: Path) -> None:
    words(2, 3).save(tmp_path / "words.safetensors")
    again = PseudoWords.load(tmp_path / "words.safetensors")
    assert torch.equal(again.embeddings, words(2, 3).embeddings)
    assert again.backbone == "tiny_clip"
    assert torch.equal(again.truncate(2).embeddings, words(2, 3).embeddings[:, :2])
    save_file({"words": torch.zeros(1, 1, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: expected a file of PseudoWords\.save"):
        PseudoWords.load(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "words.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        PseudoWords.load(tmp_path / "broken.safetensors")


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        ("no mark", words(1, 1), "in each prompt, got none"),
        ("$ and $ and $", [words(1, 1), words(1, 1)], r"expected 2 '\$'"),
        ("$", [words(1, 1), words(1, 1)], r"expected 2 '\$'"),
        ("a" * 75 + "$", words(1, 1), "at most 77 tokens .* got 78"),
        ("$", words(1, 76), "at most 77 tokens"),
        (["$", "$"], words(3, 1), "as many prompts as items"),
        ([], words(1, 1), "at least one prompt"),
        ("$", [], "expected pseudo-words, got none"),
        ("$", PseudoWords(torch.zeros(1, 1, WIDTH), "other_clip"), "expected words of the CLIP tiny_clip"),
        (torch.tensor([row(DOLLAR, DOLLAR, DOLLAR)]), words(1, 2), "a multiple of 2 placeholders"),
        (torch.tensor([[START, DOLLAR, 5]]), words(1, 1), "the end of text 399 in each row"),
    ],
)
def test_what_does_not_fit_is_refused(pair: OpenClipPair, prompts: object, given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair.compose(prompts, given)  # type: ignore[arg-type]


def test_words_that_would_reach_the_end_are_refused(pair: OpenClipPair) -> None:
    with pytest.raises(ValueError, match="room for 3 words"):
        pair.compose(torch.tensor([row(DOLLAR, 4)]), words(1, 3), fill="first")


def test_texts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="has no tokenizer"):
        tiny(open_clip_pair).text_features("a cat")


def test_a_pair_without_tokenizer_and_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a tokenizer or a placeholder_id, got neither"):
        OpenClipPair(tiny(open_clip_pair).model, backbone="tiny_clip")


def test_a_tokenizer_that_cuts_the_placeholder_is_refused() -> None:
    class Cutting(LetterTokenizer):
        def encode(self, text: str) -> list[int]:
            return [1, 2]

    with pytest.raises(ValueError, match=r"'\$' is one token"):
        OpenClipPair(tiny(open_clip_pair).model, Cutting(), backbone="tiny_clip")


@pytest.mark.parametrize("shape", [(2, WIDTH), (2, 0, WIDTH)])
def test_words_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"words \(B, n, D\)"):
        PseudoWords(torch.zeros(shape), "tiny_clip")


def test_open_clip_vocabulary_and_placeholder() -> None:
    """A model of open_clip by name, with its real tokenizer."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    }
    model = open_clip.CLIP(
        **config, text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    )
    pair = OpenClipPair(model, open_clip.get_tokenizer("ViT-B-32"), backbone="tiny")
    assert pair.placeholder_id == DOLLAR
    plain = "A photo of a cat, that is red."
    assert torch.equal(pair.tokenize(plain), open_clip.get_tokenizer("ViT-B-32")(plain))
    for prompt in ("a $ that is red", "a ($), $."):
        assert int((pair.tokenize(prompt) == DOLLAR).sum()) == prompt.count("$")
