"""DM-Codec: SpeechTokenizer's codec with a language model and a speech model as teachers.

Paper: arXiv 2410.15017. Original: mubtasimahasan/DM-Codec (Apache-2.0).
"""

from __future__ import annotations

from audio.speechtokenizer import (
    KEY_MAP,
    SpeechTokenizer,
    SpeechTokenizerConfig,
    config_from_original,
    original_losses,
)
from zoo.registry import register

__all__ = ["KEY_MAP", "DMCodec", "config_from_original", "original_losses"]


@register("dm_codec")
class DMCodec(SpeechTokenizer):
    """Speech (B, 1, T) in [-1, 1] -> frames of tokens (B, codebooks, ceil(T / hop)).

    In training `zoo.losses.distillation` takes the teachers' features: of one level, or of two with a map for each.
    """

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__(config)
