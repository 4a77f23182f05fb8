"""ClipPair: image and text encoder of one CLIP that takes pseudo-words in its prompts; `clip` has those of libraries.

CLIP: arXiv 2103.00020. The library's own forward runs; only the looked-up token embeddings are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.hooks import output_replaced
from tokenizers_visual.inversion.words import PseudoWords

Fill = Literal["all", "first"]
PLACEHOLDER = "$"


@dataclass(frozen=True)
class TextOutput:
    """What a text encoder gives: features (B, E) in the joint space, not normalised; and its last hidden states
    (B, L, D), after the final layer norm and before the projection.
    """

    features: Tensor
    hidden: Tensor


class ClipPair(nn.Module):
    """A frozen CLIP. It stays in evaluation mode, and its weights never get a gradient; its inputs do.

    Use `OpenClipPair.load`, `TransformersPair.load`, or wrap a model at hand. One pair must not encode texts in two
    threads at once.

    Args:
        model: the CLIP of a library.
        backbone: which CLIP it is: a hub repository, or `open_clip:ARCHITECTURE/WEIGHTS`.
        embedding: the text encoder's table of token embeddings.
        context_length: most ids of a prompt, start and end included.
        end_id: id of the end of text, where CLIP's features are pooled; None: ids may end in any way.
        placeholder_id: id that stands for a pseudo-word in prompts; by default that of "$".
        encode: a text to ids, without start and end; None: prompts are given as ids.
        decode: ids to a text; None: words are read back as ids alone.
        start_id: id of the start of text; None: there is none.
        pad_id: id behind the end of text, which changes no features, but the hidden states behind the end.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        backbone: str,
        embedding: nn.Module,
        context_length: int,
        end_id: int | None,
        start_id: int | None,
        placeholder_id: int | None = None,
        encode: Callable[[str], list[int]] | None = None,
        decode: Callable[[list[int]], str] | None = None,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        if placeholder_id is None:
            if encode is None:
                raise ValueError("expected a tokenizer or a placeholder_id, got neither")
            ids = encode(PLACEHOLDER)
            if len(ids) != 1:
                raise ValueError(f"expected a tokenizer in which {PLACEHOLDER!r} is one token, got {ids}")
            placeholder_id = ids[0]
        self.model = model.eval().requires_grad_(False)
        self.backbone = backbone
        self.context_length = context_length
        self.start_id, self.end_id, self.pad_id = start_id, end_id, pad_id
        self.placeholder_id = placeholder_id
        self._encode, self.decode = encode, decode
        self._embedding = [embedding]  # in a list, since it is a part of the model already

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever a parent module asks."""
        return super().train(False)

    # -- what a library differs in ---------------------------------------------------------------------------------

    def image_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised as this CLIP takes them -> features (B, E), not normalised."""
        raise NotImplementedError

    def image_tokens(self, images: Tensor) -> Tensor:
        """Images as above -> the image encoder's last hidden states (B, N, W), class token first, before its norm."""
        raise NotImplementedError

    def joint_tokens(self, tokens: Tensor) -> Tensor:
        """The image encoder's hidden states (B, N, W) -> (B, N, E): each as the class token goes to the joint space.

        Raises:
            ValueError: an image encoder that pools in another way.
        """
        raise ValueError(f"{self.backbone}: expected an image encoder that projects its class token")

    def joint_hidden(self, hidden: Tensor) -> Tensor:
        """The text encoder's hidden states (B, L, D) -> (B, L, E): each as the pooled one goes to the joint space."""
        raise NotImplementedError

    def _text(self, ids: Tensor) -> TextOutput:
        raise NotImplementedError

    # -- texts -----------------------------------------------------------------------------------------------------

    @property
    def embedding(self) -> nn.Module:
        """The table of token embeddings."""
        return self._embedding[0]

    @property
    def logit_scale(self) -> Tensor:
        """What cosines are multiplied by: exp of the learned scale."""
        return self.model.logit_scale.exp()

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """Ids (B, L) -> embeddings (B, L, D), before positions."""
        return self.embedding(ids)

    def tokenize(self, prompts: str | Sequence[str], words: Sequence[int] = (1,)) -> Tensor:
        """Prompts to ids (B, context length), padded behind the end of text.

        Args:
            prompts: texts; "$" may stand anywhere, next to punctuation too.
            words: how many words the "$" of a prompt stand for, in turn; of one number, each stands for so many.

        Raises:
            ValueError: a prompt that is too long, or whose "$" are more or fewer than `words`; no tokenizer.
        """
        if self._encode is None:
            raise ValueError(f"{self.backbone} has no tokenizer; expected prompts as ids")
        rows = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            ids: list[int] = []
            *heads, tail = prompt.split(PLACEHOLDER)
            if len(words) > 1 and heads and len(heads) != len(words):
                raise ValueError(f"expected {len(words)} {PLACEHOLDER!r} in the prompt, got {len(heads)}: {prompt!r}")
            for place, text in enumerate(heads):
                ids += [*self._encode(text), *[self.placeholder_id] * words[place % len(words)]]
            ids = [*ids, *self._encode(tail)]
            ids = [
                *([] if self.start_id is None else [self.start_id]),
                *ids,
                *([] if self.end_id is None else [self.end_id]),
            ]
            if len(ids) > self.context_length:
                raise ValueError(
                    f"expected at most {self.context_length} tokens with start, end and pseudo-words, got {len(ids)}: "
                    f"{prompt!r}"
                )
            rows.append(ids + [self.pad_id] * (self.context_length - len(ids)))
        if not rows:
            raise ValueError("expected at least one prompt, got none")
        return torch.tensor(rows, device=next(self.parameters()).device)

    def text_features(self, prompts: str | Sequence[str] | Tensor) -> Tensor:
        """Texts, or ids (B, L), without pseudo-words -> features (B, E), not normalised."""
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts)
        return self.encode_text(ids).features

    def compose(
        self,
        prompts: str | Sequence[str] | Tensor,
        words: PseudoWords | Sequence[PseudoWords],
        *,
        fill: Fill = "all",
        optional: bool = False,
    ) -> Tensor:
        """Features (B, E), not normalised, of prompts with pseudo-words: "a photo of $ that is red".

        Args:
            prompts: texts, or ids (B, L) in which a pseudo-word of n vectors has n placeholders. One prompt serves for
                all words, and one item of words for all prompts.
            words: of every placeholder; or of several, the first for the first placeholder and so on.
            fill: "all" placeholders of a prompt, or the "first" alone: then n words go to the first placeholder and
                the n - 1 positions behind it, whatever stands there, and later placeholders stay ordinary tokens.
            optional: a prompt without placeholder is taken as it is, and its words are not used.

        Raises:
            ValueError: a prompt without placeholder, with more or fewer than there are words, or too long; words of
                another CLIP; numbers of prompts and of items that do not match.
        """
        return self.encode_text(*self.embed(prompts, words, fill=fill, optional=optional)).features

    def embed(
        self,
        prompts: str | Sequence[str] | Tensor,
        words: PseudoWords | Sequence[PseudoWords],
        *,
        fill: Fill = "all",
        optional: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, L) of prompts, and their token embeddings (B, L, D) with the pseudo-words in place; see `compose`."""
        given = [words] if isinstance(words, PseudoWords) else list(words)
        if not given:
            raise ValueError("expected pseudo-words, got none")
        if fill == "first" and len(given) > 1:
            raise ValueError(f"fill 'first' takes the words of one placeholder, got those of {len(given)}")
        for part in given:
            self.check_words(part)
        counts = [part.embeddings.shape[1] for part in given]
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts, counts)
        table = _joined(given, len(ids))  # (B, total, D)
        ids = ids.expand(len(table), -1)
        mask = self._places(ids, table.shape[1], len(given) > 1, fill, optional)
        embeddings = self.token_embeddings(ids)
        order = (mask.cumsum(1) - 1) % table.shape[1]
        chosen = table.to(embeddings).gather(1, order[..., None].expand(-1, -1, table.shape[2]))
        return ids, torch.where(mask[..., None], chosen, embeddings)

    def check_words(self, words: PseudoWords) -> None:
        """Raise a ValueError unless `words` lie in the token space of this CLIP."""
        if words.backbone != self.backbone:
            raise ValueError(f"expected words of the CLIP {self.backbone}, got words of {words.backbone}")

    def _places(self, ids: Tensor, total: int, several: bool, fill: Fill, optional: bool) -> Tensor:
        """Where the words go: bool (B, L)."""
        mask = ids == self.placeholder_id
        found = mask.sum(1)
        without = found == 0
        if without.any() and not optional:
            row = int(without.nonzero()[0])
            raise ValueError(f"expected {PLACEHOLDER!r} (id {self.placeholder_id}) in each prompt, got none in {row}")
        if fill == "first":
            places = mask.int().argmax(1, keepdim=True) + torch.arange(total, device=ids.device)
            ends = places.new_full((len(ids), 1), ids.shape[1])
            if self.end_id is not None:
                ends = (ids == self.end_id).int().argmax(1, keepdim=True)
            if not ((places < ends).all(1) | without).all():
                raise ValueError(f"expected room for {total} words before the end of text, got less")
            return torch.zeros_like(mask).scatter(1, places, True) & ~without[:, None]
        wrong = (found != total if several else found % total != 0) & ~without
        if wrong.any():
            row = int(wrong.nonzero()[0])
            wanted = f"{total}" if several else f"a multiple of {total}"
            raise ValueError(f"expected {wanted} placeholders in each prompt, got {int(found[row])} in {row}")
        return mask

    def encode_text(self, ids: Tensor, embeddings: Tensor | None = None) -> TextOutput:
        """Features and hidden states of ids (B, L), whose token embeddings may be given: (B, L, D).

        Raises:
            ValueError: ids without an end of text, or embeddings of another shape.
        """
        if ids.ndim != 2 or (self.end_id is not None and not (ids == self.end_id).any(1).all()):
            raise ValueError(
                f"expected ids (B, L) with the end of text {self.end_id} in each row, got {tuple(ids.shape)}"
            )
        if embeddings is None:
            return self._text(ids)
        if embeddings.shape[:2] != ids.shape:
            raise ValueError(f"expected embeddings {(*ids.shape, 'D')}, got {tuple(embeddings.shape)}")
        with output_replaced(self.embedding, embeddings):
            return self._text(ids)


def _joined(words: Sequence[PseudoWords], prompts: int) -> Tensor:
    """Words of several placeholders side by side (B, total, D), B the number of items or of prompts."""
    sizes = {prompts, *map(len, words)} - {1}
    if len(sizes) > 1:
        given = ", ".join(str(len(part)) for part in words)
        raise ValueError(f"expected as many prompts as items of words, or one, got {prompts} prompts and {given} items")
    batch = sizes.pop() if sizes else 1
    return torch.cat([part.embeddings.expand(batch, -1, -1) for part in words], dim=1)
