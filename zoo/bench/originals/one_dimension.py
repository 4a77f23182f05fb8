"""Originals of further families whose tokens form a row: ALIT, KARL, FlexTok and Instella-T2I."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.bench.originals.adapter import Adapter, Fields, Original, Setting
from zoo.layers.ddim import item_noise
from zoo.quantizers.bit_indices import bits_to_indices, indices_to_bits
from zoo.registry import registry

_FASTER = {"cpu": 1.3, "cuda": 1.3}
_SIDE = 256


# -- ALIT and KARL -------------------------------------------------------------------------------------------------

_PATCHES = (16, 16)


class _Found(Exception):
    """Ends a forward pass of an original where its indices are there."""

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.indices = indices


def _indices(quantizer: nn.Module, run: Callable[[], Any], call: int = 1) -> Tensor:
    """Runs a forward pass up to the quantizer's call of that number: the originals tokenise only as a part of it."""
    done = 0

    def hook(quantizer: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal done
        done += 1
        if done == call:
            raise _Found(outputs[1]["min_encoding_indices"])

    handle = quantizer.register_forward_hook(hook)
    try:
        with _on_any_device():
            run()
    except _Found as found:
        return found.indices
    finally:
        handle.remove()
    raise RuntimeError(f"expected {call} calls of the quantizer, got {done}")


@contextmanager
def _on_any_device() -> Iterator[None]:
    """The originals move to `tensor.get_device()`, a number that there is of GPUs alone."""
    with mock.patch.object(torch.Tensor, "get_device", lambda tensor: tensor.device):
        yield


def _codes(quantizer: nn.Module, indices: Tensor) -> Tensor:
    """Code vectors (B, n, D) of unit length."""
    return F.normalize(quantizer.get_codebook_entry(indices.flatten()), dim=-1).view(*indices.shape, -1)


def _predicted(module: nn.Module, logits: Tensor) -> Tensor:
    """Logits (B, h w, K) of the base's codes -> their mean, (B, h w, D)."""
    return logits.softmax(-1) @ module.base_tokenizer.vqgan.quantize.embedding.weight


_BASE = {"id": "vqgan", "pretrained_ckpt_path": None}
_PRETRAINING, _FINETUNING = "latent_distillation_pretrain", "full_finetuning"


def _finetuned(build: Callable[..., nn.Module]) -> nn.Module:
    """As published weights are run, but built without the losses of that stage."""
    module = build(_BASE, quantize_latent=True, train_stage=_PRETRAINING).eval()
    module.train_stage = _FINETUNING
    return module


def _alit(model: str) -> Original:
    module = _finetuned(importlib.import_module("adaptive_tokenizers").alit_small)

    def encode(images: Tensor, num_tokens: int) -> Tensor:
        return _indices(module.quantize, lambda: module(images), num_tokens // len(module.latent_tokens))

    def decode(indices: Tensor) -> Tensor:
        codes = _codes(module.quantize, indices)
        with _on_any_device():
            grid = module.preprocess_decoder(codes.new_empty(len(codes), _PATCHES[0] * _PATCHES[1], 1))
        logits = module.decoder(codes, grid)
        return module.reconstruct_images(logits, _predicted(module, logits))

    return Original(module, encode, decode)


def _karl(model: str) -> Original:
    module = _finetuned(importlib.import_module("kolmogorov_tokenizers").karl_small)

    def encode(images: Tensor, num_tokens: int) -> Tensor:
        return _indices(module.quantize, lambda: module.encode(images, [num_tokens]))

    def decode(indices: Tensor) -> Tensor:
        latents = module.decoder_embed(_codes(module.quantize, indices))
        grid = module.preprocess_decoder(latents.new_empty(len(latents), _PATCHES[0] * _PATCHES[1], 1), _PATCHES)
        places = module.decoder_latent_tokens_timestep_embed[: indices.shape[1]]
        logits = module.decoder(latents, grid, places)
        return module.reconstruct_images(logits, _predicted(module, logits), _PATCHES)

    return Original(module, encode, decode)


# -- FlexTok -------------------------------------------------------------------------------------------------------


def _flextok(model: str) -> Original:
    """The parts as the released config joins them, as far as it is known; no weight starts at zero, so that all count.

    The posterior's mean is encoded. Attention runs compiled, as the original always has it.
    """
    config = registry.card(model).config
    wrapper = importlib.import_module("flextok.flextok_wrapper")
    vae = importlib.import_module("flextok.vae_wrapper").StableDiffusionVAE(
        "rgb", "vae_latents", "vae_latents", "rgb", "vae_kl", latent_channels=config["base"]["dim"],
        scaling_factor=config["base"]["scale"], sample_posterior=False, frozen=True,
    )  # fmt: skip
    fsq = importlib.import_module("flextok.regularizers.quantize_fsq").FSQ(
        "latents", "quants", "tokens", list(config["quantizer"]["levels"])
    )
    pipeline = importlib.import_module("flextok.flow_matching.pipelines").MinRFPipeline
    encoder, decoder = _flextok_sides(config)
    module = wrapper.FlexTok(
        vae, encoder, decoder, fsq, nn.Identity(),
        lambda model: pipeline(
            model, noise_read_key="noise", latents_read_key="quants", timesteps_read_key="times",
            noised_images_read_key="noised", reconst_write_key="vae_latents",
        ),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(std=0.02)
    latents = (config["base"]["dim"], *(_SIDE // vae.downsample_factor,) * 2)

    def conditions(indices: Tensor) -> dict[str, Any]:
        noise = item_noise((len(indices), *latents), seed=3).to(indices.device)
        return {"noise": noise, "guidance_scale": 7.5}

    def decode(indices: Tensor, noise: Tensor, steps: int, guidance_scale: float) -> Tensor:
        data = module._prepare_data_dict_for_detokenization(list(indices.split(1)))
        data["noise"] = list(noise.split(1))
        sizes = [latents[1:]] * len(indices)
        module.decode(
            data, steps, vae_image_sizes=sizes, verbose=False, guidance_scale=guidance_scale, perform_norm_guidance=True
        )
        return torch.cat(data["rgb"])

    return Original(module, lambda images: torch.cat(module.tokenize(images)), decode, conditions)


def _flextok_sides(config: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Its encoder and decoder: modules that hand on a dictionary, whose entries they read and write by name."""
    layers = {
        name: importlib.import_module(f"flextok.model.{name}")
        for name in (
            "utils.dict_ops", "utils.posembs", "utils.wrappers", "preprocessors.patching", "preprocessors.registers",
            "preprocessors.flex_seq_packing", "preprocessors.linear", "preprocessors.token_dropout",
            "preprocessors.nullcond", "preprocessors.time_embedding", "trunks.transformers",
            "postprocessors.seq_unpacking", "postprocessors.heads",
        )
    }  # fmt: skip
    operations, positions = layers["utils.dict_ops"], layers["utils.posembs"].PositionalEmbeddingAdder
    channels, patch, count = config["base"]["dim"], [config["patch_size"]] * 2, config["num_tokens"]
    dims = len(config["quantizer"]["levels"])
    grid = [config["image_size"] // 8 // patch[0]] * 2
    width, deep = config["encoder"]["width"], config["decoder"]["width"]

    def patches(read: str, width: int) -> tuple[nn.Module, ...]:
        return (
            operations.PerSampleOp(read, "channels_last", operations.channels_first_to_last),
            layers["preprocessors.patching"].PatchEmbedder(
                "channels_last", "patches", "grids", patch, channels, width, flatten_patches=False
            ),
            positions("patches", "patches", width, grid),
        )

    def pack(keys: Sequence[str], mask: str, **others: Any) -> nn.Module:
        return layers["preprocessors.flex_seq_packing"].BlockWiseSequencePacker(
            list(keys), "sequence", "mask", "inner", "outer", mask, pad_to_multiple=128, **others
        )

    def transformer(sizes: Mapping[str, int], **others: Any) -> nn.Module:
        return layers["trunks.transformers"].FlexTransformer(
            "sequence", "sequence", sizes["width"], sizes["layers"], sizes["width"] // sizes["heads"],
            block_mask_read_key="mask", **others,
        )  # fmt: skip

    def unpack(keys: Sequence[str]) -> nn.Module:
        return layers["postprocessors.seq_unpacking"].SequenceUnpacker("sequence", list(keys), "inner", "outer")

    heads, joined = layers["postprocessors.heads"], layers["utils.wrappers"].SequentialModuleDictWrapper
    first, embed, place = patches("vae_latents", width)
    encoder = {
        "enc_channels_to_last": first,
        "enc_patch_emb": embed,
        "enc_posemb_module": place,
        "enc_register_module": layers["preprocessors.registers"].Registers1D(
            "patches", "register_counts", "registers", width, count, count
        ),
        "enc_seq_packer": pack(["patches", "registers"], "causal_last"),
        "enc_transformer": transformer(config["encoder"]),
        "enc_unpacker": unpack(["patches", "registers"]),
        "enc_to_latents": heads.LinearHead("registers", "latents", width, dims, use_mup_readout=False),
    }
    first, embed, place = patches("noised", deep)
    decoder = {
        "dec_from_latents": layers["preprocessors.linear"].LinearLayer("quants", "registers", dims, deep),
        "dec_registers_posemb_module": positions("registers", "registers", deep, [count], "learnable_sum"),
        "dec_nested_dropout": layers["preprocessors.token_dropout"].MaskedNestedDropout("registers", deep),
        "dec_latent_dropout": layers["preprocessors.nullcond"].LearnedNullCond("registers", deep),
        "dec_noise_channels_to_last": first,
        "dec_noise_patch_emb": embed,
        "dec_patches_posemb_module": place,
        "dec_seq_packer": pack(
            ["patches", "registers"], "full", emb_packing_fn_write_key="packing", per_subseq_embs=True
        ),
        "dec_time_embedder": layers["preprocessors.time_embedding"].TimestepEmbedder(
            "times", "time", deep, max_timestep=1.0
        ),
        "dec_transformer": transformer(
            config["decoder"], adaLN_emb_read_key="time", adaLN_packing_fn_read_key="packing", adaLN_expansion=2
        ),
        "dec_unpacker": unpack(["patches", "registers"]),
        "dec_to_patches": heads.ToPatchesLinearHead(
            "patches", "vae_latents", deep, channels, patch, use_mup_readout=False, adaLN_emb_read_key="time"
        ),
        "dec_channels_to_first": operations.PerSampleOp(
            "vae_latents", "vae_latents", operations.channels_last_to_first
        ),
    }  # fmt: skip
    return joined(encoder), joined(decoder)


# -- Instella-T2I --------------------------------------------------------------------------------------------------


def _instella_t2i(model: str) -> Original:
    """With torch's attention in place of the flash-attn package, which takes half precision on GPUs alone."""
    attention: Any = importlib.import_module("bae.llama_attn")
    attention._flash_attention_forward = _attention
    config = registry.card(model).config
    bits, patch = config["quantizer"]["bits"], config["patch_size"]
    sizes = {
        f"{side}_{part}": value
        for side in ("encoder", "decoder")
        for part, value in {
            "layers": config[side]["layers"],
            "num_heads": config[side]["heads"],
            "head_dim": config[side]["width"] // config[side]["heads"],
        }.items()
    }
    module = importlib.import_module("bae.ae_model").BAE_Model(
        Fields(
            in_channels=3, patch_size=patch, num_latent_tkns=config["num_tokens"], codebook_size=bits,
            axes_dims_rope=config["rotary_widths"], downsample_idx=config["halve_after"],
            upsample_idx=config["double_after"], **sizes,
        )
    ).eval()  # fmt: skip
    parts = config["quantizer"]["subtokens"]

    def encode(images: Tensor) -> Tensor:
        ones = module.encode(images)[2]["binary_code"]
        return torch.stack(bits_to_indices(ones, parts, most_significant_first=True), 1)

    def decode(indices: Tensor) -> Tensor:
        ones = indices_to_bits(indices.unbind(1), bits, most_significant_first=True)
        return module.decode(ones.float(), _SIDE // patch, _SIDE // patch)

    return Original(module, encode, decode)


def _attention(q: Tensor, k: Tensor, v: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Full attention of (B, L, heads, C)."""
    return F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2)


ADAPTERS: dict[str, Adapter] = {
    "alit": Adapter(
        "ShivamDuggal4/adaptive-length-tokenizer", "adaptive_tokenizers",
        (Setting("alit_small_vqgan_quantised.in1k", 8, (_SIDE, _SIDE), {"num_tokens": 256}),), _alit, _FASTER,
    ),
    "karl": Adapter(
        "ShivamDuggal4/karl", "kolmogorov_tokenizers",
        (Setting("karl_small_vqgan_quantised.in1k", 8, (_SIDE, _SIDE), {"num_tokens": 256}),), _karl, _FASTER,
    ),
    "flextok": Adapter(
        "apple/ml-flextok", "flextok.flextok_wrapper",
        (Setting("flextok_d12_d12.in1k", 8, (_SIDE, _SIDE), decoding={"steps": 1}),), _flextok, _FASTER,
    ),
    "instella_t2i": Adapter(
        "AMD-AGI/Instella-T2I", "bae.ae_model", (Setting("instella_t2i_bae.amd", 8, (_SIDE, _SIDE)),), _instella_t2i,
        _FASTER,
    ),
}  # fmt: skip
