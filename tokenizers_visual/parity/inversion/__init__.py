"""Checks of the fixtures of textual inversion, by the name of the fixture's family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers_visual.parity.inversion import benchmarks, clips, dictionaries, generation, retrieval, techniques
from tokenizers_visual.parity.inversion.clips import open_clip_pair, transformers_pair
from zoo.parity import Fixture
from zoo.registry import Family

__all__ = ["case", "open_clip_pair", "transformers_pair"]

CASES: dict[str, Callable[[Fixture, Family], Any]] = {
    "clip": clips.ClipCase,
    "long_clip": clips.LongClipCase,
    "pic2word": retrieval.Pic2WordCase,
    "searle": retrieval.SearleCase,
    "lincir": retrieval.LinCIRCase,
    "rtd": retrieval.RTDCase,
    "ladi_vton": generation.LadiVtonCase,
    "textual_inversion": generation.PromptCase,
    "cir_inputs": benchmarks.InputsCase,
    "cir_metrics": benchmarks.MetricsCase,
    "batex": generation.BaTexCase,
    "precise_control": generation.PreciseControlCase,
    "core_ti": techniques.CoReCase,
    "decor": techniques.DecorCase,
    "domain_agnostic_e4t": techniques.DomainAgnosticCase,
    "inspiration_tree": techniques.InspirationTreeCase,
    "negtome": techniques.NegToMeCase,
    "freedom": retrieval.FreeDomCase,
    "sitta": dictionaries.SittaCase,
    "fdt": dictionaries.FDTCase,
    "neti": generation.NeTICase,
}


def case(fixture: Fixture, family: Family) -> Any:
    """The case of the fixture's family."""
    return CASES[fixture.meta["family"]](fixture, family)
