"""Triplets for RTD out of plain captions: `python -m trainers.caption_triplets CAPTIONS OUT.json [TAGGER]`.

A keyword of a caption is exchanged for one of another caption, and a template tells the change. The published triplets
were written by a language model (CompoDiff, arXiv 2303.11916).
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers_visual.inversion.lincir import clean_caption
from trainers.data.captions import KeywordTagger, read_lines
from zoo.media.storage import write_atomically

CHANGES = (
    "has {new} instead of {old}",
    "shows {new} in place of {old}",
    "replaces {old} with {new}",
    "changes {old} into {new}",
)


def make_triplets(captions: Sequence[str], keywords: Sequence[Sequence[str]], seed: int = 0) -> list[dict[str, str]]:
    """One triplet of each caption that holds one of its keywords, as `TripletData` reads them.

    Args:
        captions: cleaned.
        keywords: those of each.
        seed: of what is chosen.

    Raises:
        ValueError: fewer than two different keywords.
    """
    known = sorted({word for words in keywords for word in words})
    if len(known) < 2:
        raise ValueError(f"expected captions with at least two keywords in all, got {len(known)}")
    draw, triplets = random.Random(seed), []
    for caption, words in zip(captions, keywords, strict=True):
        found = {word: _whole(word).search(caption) for word in words}
        if held_places := {word: match.span() for word, match in found.items() if match}:
            old = draw.choice(list(held_places))
            new = draw.choice([word for word in draw.sample(known, 2) if word != old])
            change = draw.choice(CHANGES).format(old=old, new=new)
            start, end = held_places[old]
            target = caption[:start] + new + caption[end:]
            triplets.append({"reference_caption": caption, "target_caption": target, "conditioning_caption": change})
    return triplets


def _whole(word: str) -> re.Pattern[str]:
    """It, where no letter stands before or behind."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")


def main(captions: str, out: Path, tagger: str = "en_core_web_sm") -> int:
    """Write the triplets of a file of captions, one a line, plain or gzipped; gives their number."""
    texts = [clean_caption(line) for line in read_lines(captions)]
    triplets = make_triplets(texts, KeywordTagger(tagger)(texts))
    write_atomically(out, json.dumps(triplets, indent=0).encode())
    return len(triplets)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit("usage: python -m trainers.caption_triplets CAPTIONS OUT.json [TAGGER]")
    print(f"{main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])} triplets")
