"""Semantic distillation: teachers through transformers, what of the codec they move, the cache, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_codec_task import fit, sounds, task
from torch import Tensor

import zoo
from trainers.tasks.distillation import (
    Distillation,
    DistillationConfig,
    LanguageTeacherConfig,
    SpeechTeacherConfig,
    level_codes,
)
from zoo.config import ConfigError

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
CONVOLUTIONS = {"conv_dim": (4,) * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
SYMBOLS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a", "##b", "##c"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a speech model, a recogniser and a language model, all tiny and random."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    transformers.HubertModel(transformers.HubertConfig(**SIZES, **CONVOLUTIONS)).save_pretrained(folder / "speech")
    config = transformers.Wav2Vec2Config(**SIZES, **CONVOLUTIONS, vocab_size=len(SYMBOLS))
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder / "recogniser")
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(SYMBOLS)}))
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(), transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    ).save_pretrained(folder / "recogniser")
    transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=len(PIECES))).save_pretrained(
        folder / "language"
    )
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "language")
    return {name: str(folder / name) for name in ("speech", "recogniser", "language")}


def speech(models: dict[str, str], **settings: Any) -> dict[str, Any]:
    return {"kind": "speech", "features": {"kind": "hidden_states", "width": 8, "repo": models["speech"]}, **settings}


def language(models: dict[str, str], **settings: Any) -> dict[str, Any]:
    return {
        "kind": "language", "width": 8, "repo": models["language"], "recogniser": models["recogniser"], **settings
    }  # fmt: skip


def test_the_speech_teacher_gives_the_mean_of_all_hidden_states(models: dict[str, str]) -> None:
    signal = torch.randn(2, 1, 1600)
    teacher = SpeechTeacherConfig.from_dict(speech(models)).build()
    model = transformers.HubertModel.from_pretrained(models["speech"]).eval()
    with torch.no_grad():
        states = model(signal[:, 0], output_hidden_states=True).hidden_states
    torch.testing.assert_close(teacher(signal), torch.stack(states).mean(0), rtol=1e-4, atol=1e-5)


def test_the_language_teacher_reads_the_recognised_text(models: dict[str, str]) -> None:
    signal = torch.randn(2, 1, 3200)
    teacher = LanguageTeacherConfig.from_dict(language(models, layer=2)).build()
    features = teacher(signal)
    assert features.shape == (2, 9, 8)  # a place for each frame of the recogniser
    text, frames = teacher.transcribe(signal[0, 0])
    assert frames == 9
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["language"])
    model = transformers.AutoModel.from_pretrained(models["language"]).eval()
    pieces = tokenizer(text, padding="max_length", max_length=9, truncation=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(features[0], model(**pieces).last_hidden_state[0])


def test_the_codes_of_a_level_pass_the_gradient_to_the_latent() -> None:
    model = task().model.eval()
    output = model(sounds(1)[0])
    codes = [level_codes(output, model.quantizer, level) for level in (0, 1)]
    torch.testing.assert_close(sum(codes), output.quantized.codes + output.latent - output.latent)
    torch.testing.assert_close(codes[0], model.quantizer.indices_to_codes(output.quantized.levels[0]))
    (gradient,) = torch.autograd.grad(codes[1].sum(), output.latent)
    assert torch.equal(gradient, torch.ones_like(gradient))
    with pytest.raises(ValueError, match="expected level 2 in every step, got 2 levels"):
        level_codes(output, model.quantizer, 2)


def lesson(models: dict[str, str], **settings: Any) -> Distillation:
    torch.manual_seed(0)
    config = {"teachers": [speech(models), language(models, level=1)], **settings}
    return Distillation(DistillationConfig.from_dict(config), 4, 16000)


def test_several_teachers_are_averaged_or_weighed(models: dict[str, str]) -> None:
    model, signal = task().model.eval(), sounds(1)[0]
    with torch.no_grad():
        output = model(signal)
        both = lesson(models)
        each = []
        for teacher, student in zip(both.teachers, both.students):
            codes = student.projection(level_codes(output, model.quantizer, teacher.config.level))
            features = teacher(signal)
            length = min(codes.shape[1], features.shape[1])
            if features.shape[1] <= codes.shape[1]:
                codes = codes[:, :length]
            cosine = F.cosine_similarity(codes, features[:, :length], dim=1)
            each.append(-F.logsigmoid(cosine).mean())
        torch.testing.assert_close(both(signal, output, model.quantizer), torch.stack(each).mean())
        weighed = lesson(models, weights=[2.0, 0.5])(signal, output, model.quantizer)
        torch.testing.assert_close(weighed, 2 * each[0] + 0.5 * each[1])


def test_a_codec_of_fewer_frames_is_taught_their_mean(models: dict[str, str]) -> None:
    taught = lesson(models, teachers=[speech(models)], along="features")
    latent = torch.randn(1, 3, 4)

    class Constant:
        def indices_to_codes(self, *levels: Tensor) -> Tensor:
            return latent

    quantized = zoo.quantizers.Quantized(latent, (torch.zeros(1, 3, dtype=torch.int64),), {})
    signal = torch.randn(1, 1, 320 * 12 + 80)
    output = zoo.Output(signal, latent, quantized)
    features = taught.features(taught.teachers[0], signal)
    assert features.shape[1] == 12
    means = features.unflatten(1, (3, 4)).mean(2)
    student = taught.students[0].projection(latent)
    cosine = F.cosine_similarity(student, means, dim=2)
    expected = F.l1_loss(student, means) - F.logsigmoid(cosine).mean()
    torch.testing.assert_close(taught(signal, output, Constant()), expected)


def test_features_are_kept_and_read_again(models: dict[str, str], tmp_path: Path) -> None:
    taught = lesson(models, teachers=[speech(models)], cache=str(tmp_path))
    signal = torch.randn(2, 1, 1600)
    first = taught.features(taught.teachers[0], signal)
    torch.testing.assert_close(first, taught.teachers[0](signal))
    assert len(list(tmp_path.glob("*.npy"))) == 2
    taught.teachers[0].features = None  # type: ignore[attr-defined]
    assert torch.equal(taught.features(taught.teachers[0], signal), first)


def test_the_map_to_the_teacher_learns_and_the_teacher_does_not(models: dict[str, str]) -> None:
    module = task(distillation={"teachers": [speech(models)], "weight": 10.0})
    before = [parameter.clone() for parameter in module.distillation.parameters()]
    rows = fit(module, sounds(1).expand(30, -1, -1, -1)).rows
    assert all(not torch.equal(a, b) for a, b in zip(before, module.distillation.parameters(), strict=True))
    assert rows[-1]["train/distillation"] < rows[0]["train/distillation"]
    assert not any("teacher" in key for key in module.state_dict())


def test_settings_that_cannot_work_are_told(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="at least one teacher"):
        DistillationConfig(teachers=())
    with pytest.raises(ConfigError, match="1 weights or none"):
        DistillationConfig(weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="kind"):
        task(distillation={"teachers": [{"kind": "music"}]})
