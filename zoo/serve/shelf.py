"""The models that a server offers: loaded once, kept while they are used, one call at a time for each of them."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from zoo import cards, hub

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

T = TypeVar("T")


class Busy(RuntimeError):
    """No place in the queue, or the turn did not come in time: to be tried again later."""


class Late(RuntimeError):
    """The model did not end in time."""


class Gone(RuntimeError):
    """The client left before its turn came."""


@dataclass(frozen=True)
class Offer:
    """A model that can be tried.

    Attributes:
        name: as the API takes it.
        modality: what it takes.
        family, quantizer, licence, notes: as its card states them.
    """

    name: str
    modality: Literal["image", "audio"]
    family: str
    quantizer: str
    licence: str
    notes: str


def installed() -> list[Offer]:
    """Whole tokenizers of images and audio whose weights are on this machine."""
    return [
        offer_of(card.full_name, card)
        for card in cards.all_cards()
        if card.modality in ("image", "audio") and card.layout != "words" and card.part is None
        if card.source is not None and hub.is_here(card.source)
    ]  # fmt: skip


def offer_of(name: str, card: cards.ModelCard) -> Offer:
    """What is told of a model.

    Raises:
        ValueError: neither of images nor of audio.
    """
    if card.modality not in ("image", "audio"):
        raise ValueError(f"{name}: expected a model of images or audio, got one of {card.modality}")
    return Offer(name, card.modality, card.family, card.quantizer, card.licence, card.notes)  # type: ignore[arg-type]


class Shelf:
    """Lends models to one caller at a time, in the order in which they came.

    Args:
        names: the models that there are.
        load: gives the model of a name, in any thread.
        kept: how many stay in memory; the one that was not used for longest goes first.
        places: how many callers may be inside, those that wait included.
    """

    def __init__(self, names: Iterable[str], load: Callable[[str], Tokenizer], *, kept: int, places: int) -> None:
        self._load, self._most_kept, self._places = load, kept, places
        self._turns = {name: asyncio.Lock() for name in names}
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()
        self._guard = threading.Lock()
        self._inside = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place inside while the block lasts.

        Raises:
            Busy: all are taken.
        """
        if self._inside >= self._places:
            raise Busy(f"the queue of {self._places} requests is full; try again in a moment")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def lend(
        self, name: str, work: Callable[[Tokenizer], T], *, until: float, gone: Callable[[], Awaitable[bool]]
    ) -> T:
        """What `work` makes with a model, in a thread, when the turn has come.

        Args:
            name: one of the names.
            work: called with the model; what it raises is raised here.
            until: time of the event loop at which to give up. A call that has begun cannot be stopped: the next one
                waits for its end.
            gone: whether the result is wanted no more, asked when the turn has come.

        Raises:
            Busy, Late: the turn, or the result, did not come in time.
            Gone: the result was wanted no more.
        """
        turn = self._turns[name]

        def ended(call: asyncio.Task[T]) -> None:
            turn.release()
            if not call.cancelled():
                call.exception()  # of a call that nobody waits for any more it is not reported

        try:
            async with asyncio.timeout_at(until):
                await turn.acquire()
        except TimeoutError as error:
            raise Busy(f"{name} is busy with earlier requests; try again later") from error
        try:
            if await gone():
                raise Gone(name)
            call = asyncio.create_task(asyncio.to_thread(lambda: work(self._get(name))))
        except BaseException:
            turn.release()
            raise
        call.add_done_callback(ended)
        try:
            async with asyncio.timeout_at(until):
                return await asyncio.shield(call)
        except TimeoutError as error:
            if call.done() and call.exception() is error:
                raise
            raise Late(f"{name} did not end in time; a smaller picture or a shorter clip would") from error

    def _get(self, name: str) -> Tokenizer:
        """The model, loaded unless it is kept; never twice at once for one name, since its turn comes to one caller."""
        with self._guard:
            model = self._kept.get(name)
        model = model or self._load(name)
        with self._guard:
            self._kept[name] = model
            self._kept.move_to_end(name)
            while len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return model
