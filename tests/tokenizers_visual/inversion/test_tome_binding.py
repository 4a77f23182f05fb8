"""ToMe: merging of the words of a prompt, the ending of a plainer one, and the loss of scattered attention."""

import math

import pytest
import torch
from torch import Tensor

from tokenizers_visual.inversion.tome_binding import Binding, attention_entropy, bind, with_plain_ending


def test_words_of_a_thing_become_one_token() -> None:
    embeddings = torch.randn(2, 8, 5)
    bound = bind(embeddings, [Binding((3, 4), (2,)), Binding((6,))])
    merged = 1.1 * (embeddings[:, 3] + embeddings[:, 4]) + 1.2 * embeddings[:, 2]
    torch.testing.assert_close(bound[:, 3], merged)
    torch.testing.assert_close(bound[:, 6], 1.1 * embeddings[:, 6])
    assert not bound[:, [2, 4]].any()
    assert torch.equal(bound[:, [0, 1, 5, 7]], embeddings[:, [0, 1, 5, 7]])


def test_gradients_reach_every_bound_word() -> None:
    embeddings = torch.randn(7, 3, requires_grad=True)
    bind(embeddings, [Binding((2,), (1, 4))])[2].sum().backward()
    assert embeddings.grad is not None
    torch.testing.assert_close(embeddings.grad[:, 0], torch.tensor([0, 1.2, 1.1, 0, 1.2, 0, 0]))


def test_what_follows_the_last_word_is_that_of_the_plain_prompt() -> None:
    embeddings, plain = torch.randn(2, 1, 9, 4)
    mixed = with_plain_ending(embeddings, plain, words=5)
    assert torch.equal(mixed[:, :6], embeddings[:, :6])  # the start token and five words
    assert torch.equal(mixed[:, 6:], plain[:, 6:])


def attended(shares: Tensor) -> Tensor:
    """Attention whose softmax over three words, at temperature 0.5, gives the second these shares of a place."""
    rest = ((1 - shares) / 2)[..., None]
    return 0.5 * torch.cat([rest, shares[..., None], rest], dim=-1).log()


def test_attention_to_one_place_is_less_scattered_than_to_many() -> None:
    one = torch.full((4, 4), 0.1)
    one[1, 2] = 0.9
    half = torch.full((4, 4), 0.1)
    half[:, :2] = 0.9
    assert attention_entropy(attended(one), [1]).item() == pytest.approx(0, abs=1e-4)
    assert attention_entropy(attended(half), [1]).item() == pytest.approx(2 * math.log(8), abs=1e-3)
    both = torch.stack([attended(one)[..., 1], attended(half)[..., 1], attended(one)[..., 0]], dim=-1)
    assert attention_entropy(both, [0, 1]) > attention_entropy(both, [0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected different positions"):
        Binding((1, 2), (2,))
    with pytest.raises(ValueError, match="one of a thing among them"):
        Binding((), (2,))
    with pytest.raises(ValueError, match=r"positions below 4, got \[1, 1\]"):
        bind(torch.zeros(4, 2), [Binding((1,)), Binding((1,))])
    with pytest.raises(ValueError, match="positions below 4"):
        bind(torch.zeros(4, 2), [Binding((4,))])
    with pytest.raises(ValueError, match="at most 2 words, got 3"):
        with_plain_ending(torch.zeros(4, 2), torch.zeros(4, 2), words=3)
    with pytest.raises(ValueError, match="of one shape"):
        with_plain_ending(torch.zeros(4, 2), torch.zeros(5, 2), words=1)
    with pytest.raises(ValueError, match=r"\(height, width, words\)"):
        attention_entropy(torch.zeros(4, 4), [1])
