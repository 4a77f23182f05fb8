"""NeTI's words depend on time and layer, are ordered by importance, and bypass the text encoder as the paper says."""

import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_pipeline import clip_tokenizer, stable_diffusion

from tokenizers_visual.inversion.clip import TransformersPair
from tokenizers_visual.inversion.diffusion import text_encoders
from tokenizers_visual.inversion.layered_prompts import layered_prompts
from tokenizers_visual.inversion.neti import Conditioning, NeTI, NeTIConfig, load_concept
from tokenizers_visual.parity.inversion.generation import encoder_of
from zoo.checkpoint import CheckpointError
from zoo.config import ConfigError
from zoo.parity import Fixture

PARITY = Path(__file__).parents[2] / "parity"
START, END, DOLLAR = 48, 49, 47


def small(**changes: object) -> NeTI:
    torch.manual_seed(0)
    fields = {"backbone": "tiny", "word_dim": 16, "layers": 3, "frequencies": 32, "time_anchors": 4, "norm": 0.4}
    return NeTI(NeTIConfig(**(fields | changes))).eval()


def pair() -> TransformersPair:
    made = encoder_of(Fixture.read(PARITY / "neti"), "tiny")
    made.placeholder_id = DOLLAR
    return made


def prompt(*ids: int) -> torch.Tensor:
    return torch.tensor([[START, *ids, END, *[0] * (12 - len(ids))]])


def at(*places: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    times, layers = zip(*places)
    return torch.tensor(times), torch.tensor(layers)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 2)), min_size=1, max_size=4))
def test_the_encoding_has_norm_one_and_the_output_the_norm_of_a_real_word(places: list[tuple[int, int]]) -> None:
    model = small()
    times, layers = at(*places)
    torch.testing.assert_close(model.encode(times, layers).norm(dim=-1), torch.ones(len(places)))
    words = model.project(times, layers)
    whole = torch.cat([words.words.embeddings[:, 0], words.bypass], dim=-1)
    torch.testing.assert_close(whole.norm(dim=-1), torch.full((len(places),), 0.4))


def test_near_times_have_nearer_encodings_than_far_ones() -> None:
    model = small(frequencies=1024)
    start, near, far = model.encode(*at((100, 0), (105, 0), (900, 0)))
    assert start @ near > 0.9 > 0.5 > start @ far


def test_words_differ_between_times_and_between_layers() -> None:
    words = small().project(*at((0, 0), (900, 0), (0, 2))).words.embeddings[:, 0]
    assert (words[0] - words[1]).abs().max() > 1e-3
    assert (words[0] - words[2]).abs().max() > 1e-3


def test_half_precision_keeps_the_frequencies_and_so_the_words() -> None:
    model, places = small(frequencies=256), at((3, 0), (500, 1), (999, 2))
    exact = model.project(*places).words.embeddings[:, 0]
    source = model.source
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        assert model.frequencies.dtype == torch.float32
        words = model.project(*places).words.embeddings[:, 0]
        assert words.dtype == dtype
        assert torch.nn.functional.cosine_similarity(words.float(), exact).min() > 0.999
        assert model.source == source


def test_autocast_does_not_reach_the_encoding() -> None:
    model, places = small(frequencies=256), at((3, 0), (500, 1), (999, 2))
    exact = model.encode(*places)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(*places), exact)


def test_anchors_are_evenly_spaced_times_each_with_all_layers() -> None:
    model = small()
    rows = model.anchor_encodings()
    torch.testing.assert_close(rows[4], model.encode(*at((250, 1)))[0])
    assert torch.equal(model.anchors.weight, rows)


@given(st.integers(0, 127))
def test_hidden_units_are_cut_off_from_the_end(keep: int) -> None:
    model, (times, layers) = small(), at((10, 0), (500, 2))
    cut = model.project(times, layers, keep=keep).words.embeddings
    with torch.no_grad():
        model.out.weight[:, keep:] = 0  # so that only the first units count
    torch.testing.assert_close(cut, model.project(times, layers).words.embeddings)


def test_training_cuts_as_often_as_the_config_says_and_evaluation_never() -> None:
    times, layers = at((10, 0), (500, 2))
    for probability, share in ((0.0, 0.0), (1.0, 1.0)):
        model = small(dropout=probability)
        expected = model(times, layers)
        model.train()
        changed = [not torch.equal(model(times, layers), expected) for _ in range(20)]
        assert sum(changed) / 20 >= share * 0.9
        assert sum(changed) == 0 or share
        assert torch.equal(model.project(times, layers).words.embeddings[:, 0], expected[:, :16])


def test_the_bypass_moves_the_last_state_of_the_word_alone() -> None:
    model, encoder = small(), pair()
    ids = prompt(5, DOLLAR, 9).expand(2, -1)
    result = model.compose(encoder, ids, model.project(*at((10, 0), (500, 2))))
    moved = (result.values.hidden - result.keys.hidden).abs().amax(-1) > 1e-4
    assert torch.equal(moved, ids == DOLLAR)
    torch.testing.assert_close(result.values.features, result.keys.features)


def test_without_a_bypass_keys_and_values_are_one() -> None:
    model, encoder = small(bypass=False), pair()
    words = model.project(*at((10, 0)))
    result = model.compose(encoder, prompt(DOLLAR), words)
    assert result.keys is result.values
    torch.testing.assert_close(result.keys.features, encoder.compose(prompt(DOLLAR), words.words))


def test_what_does_not_fit_is_refused() -> None:
    model, encoder = small(), pair()
    words = model.project(*at((10, 0)))
    with pytest.raises(ValueError, match="one placeholder in each prompt"):
        model.compose(encoder, prompt(DOLLAR, 3, DOLLAR), words)
    with pytest.raises(ValueError, match="in each prompt, got none"):
        model.compose(encoder, prompt(3), words)
    with pytest.raises(ValueError, match=r"times in 0\.\.999"):
        model.project(*at((1000, 0)))
    with pytest.raises(ValueError, match=r"layers in 0\.\.2"):
        model.project(*at((0, 3)))
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        model.project(torch.zeros(2), torch.zeros(1))
    encoder.backbone = "other"
    with pytest.raises(ValueError, match="expected the CLIP tiny, got other"):
        model.compose(encoder, prompt(DOLLAR), words)
    with pytest.raises(ConfigError, match="time_anchors that divide 1000"):
        NeTIConfig(time_anchors=3)


class NeTIPositionalEncoding(torch.nn.Module):
    """Stands for the class of that name, which a file of the original names and a reader does not have."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = w


NeTIPositionalEncoding.__module__ = "models.positional_encoding"


@pytest.mark.parametrize("stored_beside", [True, False])
def test_a_file_of_the_original_loads_without_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored_beside: bool
) -> None:
    fixture = Fixture.read(PARITY / "neti")
    state = {key: value for key, value in fixture.weights.items() if not key.startswith("clip_text.")}
    frequencies = state["encoder.w"] if stored_beside else state.pop("encoder.w")
    settings = {"num_pe_time_anchors": 2, "pe_sigmas": {"sigma_t": 0.03, "sigma_l": 2.0}, "target_norm": 0.4,
                "output_bypass": True}  # fmt: skip
    with monkeypatch.context() as patch:
        module = types.ModuleType("models.positional_encoding")
        module.NeTIPositionalEncoding = NeTIPositionalEncoding  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "models", types.ModuleType("models"))
        patch.setitem(sys.modules, "models.positional_encoding", module)
        content = {"state_dict": state, "cfg": {"model": settings}, "encoder": NeTIPositionalEncoding(frequencies)}
        torch.save(content, tmp_path / "mapper-steps-1000.pt")
    model = load_concept(tmp_path / "mapper-steps-1000.pt")
    assert (model.config.layers, model.config.word_dim, model.config.norm) == (2, 16, 0.4)
    words = model.project(fixture.arrays["timesteps"], fixture.arrays["unet_layers"])
    whole = torch.cat([words.words.embeddings[:, 0], words.bypass], dim=-1)
    torch.testing.assert_close(whole, fixture.arrays["mapped"])


def test_a_file_that_holds_code_or_no_mapper_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "cfg": {}, "encoder": Path("x")}, tmp_path / "code.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    for name in ("code.pt", "other.pt", "absent.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: expected a mapper of NeTI"):
            load_concept(tmp_path / name)


# -- in a pipeline -------------------------------------------------------------------------------------------------


def test_layers_and_steps_of_a_pipeline_take_prompts_of_their_own() -> None:
    pipeline = stable_diffusion(clip_tokenizer())
    (encoder,) = text_encoders(pipeline, ["tiny"])
    count = sum(name.endswith("attn2") for name, _ in pipeline.unet.named_modules())
    settings = {"height": 8, "width": 8, "num_inference_steps": 3, "output_type": "pt"}

    def paint(**prompt: object) -> torch.Tensor:
        return pipeline(**prompt, **settings, generator=torch.Generator().manual_seed(0)).images

    plain = paint(prompt="a photo of a cat", negative_prompt="ugly")
    other = encoder.encode_text(encoder.tokenize("a photo of a cat"))
    dummy = torch.zeros_like(other.hidden)
    times: list[float] = []

    def same(time: float) -> list[Conditioning]:
        times.append(time)
        return [Conditioning(other, other)] * count

    with layered_prompts(pipeline.unet, same):
        layered = paint(prompt_embeds=dummy, negative_prompt="ugly")
    torch.testing.assert_close(layered, plain, rtol=1e-3, atol=1e-4)
    assert len(times) == 3
    assert times == sorted(times, reverse=True)
    assert torch.equal(paint(prompt="a photo of a cat", negative_prompt="ugly"), plain)  # nothing is left behind
    with (
        pytest.raises(ValueError, match=f"prompts for {count} cross-attention layers, got 1"),
        layered_prompts(pipeline.unet, lambda time: [Conditioning(other, other)]),
    ):
        paint(prompt_embeds=dummy, negative_prompt="ugly")


def test_keys_and_values_of_a_layer_come_from_its_own_versions() -> None:
    pipeline = stable_diffusion(clip_tokenizer())
    (encoder,) = text_encoders(pipeline, ["tiny"])
    attentions = [module for name, module in pipeline.unet.named_modules() if name.endswith("attn2")]
    model = small(layers=len(attentions), bypass=True)
    made = model.layer_prompts(encoder, "a photo of $", 700)
    words = model.project(*at(*((700, layer) for layer in range(len(attentions)))))
    torch.testing.assert_close(
        made[1].keys.hidden, encoder.encode_text(*encoder.embed("a photo of $", words.words[1])).hidden
    )
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with layered_prompts(pipeline.unet, lambda time: made):
        handles = [
            part.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
            for attention in attentions
            for part in (attention.to_k, attention.to_v)
        ]
        pipeline.unet(torch.zeros(2, 4, 8, 8), 700, encoder_hidden_states=torch.zeros(2, 77, 16))
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * len(made)
    for layer, prompts in enumerate(made):
        assert not seen[2 * layer][0].any()  # the unconditional half stays
        assert torch.equal(seen[2 * layer][1], prompts.keys.hidden[0])
        assert torch.equal(seen[2 * layer + 1][1], prompts.values.hidden[0])
