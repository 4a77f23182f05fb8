"""Images of any source together with their captions, for losses that compare the two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.data.loading import Reader
from trainers.data.rows import CaptionedImages
from zoo.media import MediaError
from zoo.media.sources import Record


@dataclass(frozen=True)
class CaptionReader:
    """Items of a source that kept their captions -> batches of one image and its caption.

    Attributes:
        reader: of the image.
        place: of the caption: a member of WebDataset samples by its suffix, or a column; `json:NAME` takes a value of
            an object in JSON. Where there are several captions one is drawn.
    """

    reader: Reader
    place: str

    @property
    def kept(self) -> str:
        """The member or column alone."""
        return self.place.partition(":")[0]

    def __call__(self, record: Record, key: Sequence[int]) -> CaptionedImages:
        """The image and its caption; what is random is a function of `key` alone.

        Raises:
            MediaError: an image that cannot be read, or one without a caption.
        """
        return CaptionedImages(self.reader(record, key)[None], (self._caption(record, key),))

    def _caption(self, record: Record, key: Sequence[int]) -> str:
        value, name = record.kept.get(self.kept), self.place.partition(":")[2]
        try:
            found: Any = value.decode() if isinstance(value, bytes) else value
            if name:
                found = (json.loads(found) if isinstance(found, str) else found)[name]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise MediaError(f"cannot read {record.name}: no caption {self.place}: {error!r}") from error
        captions = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        captions = [caption.strip() for caption in captions if isinstance(caption, str) and caption.strip()]
        if not captions:
            raise MediaError(f"cannot read {record.name}: no caption {self.place}")
        return captions[int(np.random.default_rng(tuple(key)).integers(len(captions)))]
