"""The image-text pair of packages keeps the contract of a CLIP; its style head tells styles and adds their texts."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tokenizers_visual.inversion.conse import CONSE, ConsePair, StyleHead, available
from tokenizers_visual.inversion.words import PseudoWords


class Classifier(nn.Module):
    """As timm's: features, their pooling, and a last layer; here of the mean colour alone."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 60)

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
        return features.mean((2, 3))


class Letters:
    """A letter a token; "$" is one as any other."""

    cls_token_id, sep_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 60 for letter in text if letter != " "]}


def tiny(styles: StyleHead | None = None) -> ConsePair:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    return ConsePair(Classifier(), BertModel(config), Letters(), [f"class {i}" for i in range(60)], styles)


def test_a_word_of_the_vocabulary_gives_the_plain_text_whatever_stands_beside() -> None:
    pair = tiny()
    word = PseudoWords(pair.token_embeddings(torch.tensor([Letters()("x", False)["input_ids"]])), CONSE)
    plain = pair.text_features("a x b")
    torch.testing.assert_close(pair.compose("a $ b", word), plain)
    torch.testing.assert_close(pair.text_features(["a x b", "a much longer text than that"])[:1], plain)
    assert not torch.allclose(pair.compose("a $", word), plain)


def test_gradients_reach_the_words_alone() -> None:
    pair = tiny()
    embeddings = torch.randn(2, 1, 8, requires_grad=True)
    pair.compose("a $ b", PseudoWords(embeddings, CONSE)).sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_an_image_is_the_mean_of_its_likeliest_classes_and_their_style() -> None:
    head = StyleHead(("photo", "sketch"), torch.tensor([[9.0, 0, 0], [-9.0, 0, 0]]), torch.zeros(2))
    plain, styled = tiny(), tiny(head)
    images = torch.stack([torch.full((3, 4, 4), value) for value in (1.0, -1.0)])
    texts = plain.text_features([f"a photo of a class {i}" for i in range(60)])
    shares = (plain.model["image"].classifier(images.mean((2, 3))) / 1.5).softmax(-1).topk(50)  # type: ignore[index, union-attr, operator]
    weights = shares.values / shares.values.sum(1, keepdim=True)
    expected = (weights[..., None] * texts[shares.indices]).sum(1)
    torch.testing.assert_close(plain.image_features(images), expected, rtol=1e-4, atol=1e-5)
    added = styled.image_features(images) - plain.image_features(images)
    names = ["class 0", "class 50"]
    offset = plain.text_features([f"a sketch of a {name}" for name in names]).mean(0) - plain.text_features(
        [f"a photo of a {name}" for name in names]
    ).mean(0)
    torch.testing.assert_close(added[0], torch.zeros(8), rtol=0, atol=1e-4)  # the photo
    torch.testing.assert_close(added[1], offset, rtol=1e-3, atol=1e-4)  # the sketch


def test_a_style_head_learns_and_is_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = ["photo", "sketch"] * 20
    pooled = torch.randn(40, 6, generator=generator) + torch.tensor([[3.0], [-3.0]] * 20)
    head = StyleHead.fit(pooled, labels)
    guessed = torch.nn.functional.linear(pooled, head.weight, head.bias).argmax(1)
    assert [head.styles[place] for place in guessed] == labels
    head.save(tmp_path / "styles.safetensors")
    again = StyleHead.load(tmp_path / "styles.safetensors")
    assert again.styles == ("photo", "sketch")
    assert torch.equal(again.weight, head.weight)
    PseudoWords(torch.zeros(1, 1, 2), "c").save(tmp_path / "words.safetensors")
    with pytest.raises(ValueError, match="expected a style head, got words"):
        StyleHead.load(tmp_path / "words.safetensors")


@pytest.mark.skipif(not available(), reason="the packages of its weights are not installed")
def test_styles_are_fitted_to_one_role(tmp_path: Path) -> None:
    from trainers.conse_styles import fit_styles

    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "domain", "role"])
        for number, (domain, colour) in enumerate([("photo", "red"), ("art_painting", "blue")] * 2):
            Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
            table.writerow([f"{number}.png", "dog", domain, "query"])
        table.writerow(["missing.png", "dog", "sketch", "index"])
    head = fit_styles(tmp_path / "labels.csv", tmp_path / "styles.safetensors")
    assert head.styles == ("photo", "art painting")
    assert head.weight.shape == (2, 1280)
    assert StyleHead.load(tmp_path / "styles.safetensors").styles == head.styles
    with pytest.raises(ValueError, match="role gallery, got none"):
        fit_styles(tmp_path / "labels.csv", tmp_path / "x.safetensors", "gallery")
