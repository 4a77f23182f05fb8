"""Originals of the image families whose tokens lie on a grid."""

from __future__ import annotations

import importlib

from torch import Tensor, nn

from zoo.bench.originals.adapter import Adapter, Fields, Original, Setting

_CONVOLUTIONAL = {"cpu": 1.15, "cuda": 1.5}


def _image(model: str) -> tuple[Setting]:
    return (Setting(model, batch=1, size=(256, 256)),)


# -- LlamaGen ------------------------------------------------------------------------------------------------------

_LLAMAGEN = {"llamagen_vq_f16.c2i": "VQ-16", "llamagen_vq_f8.c2i": "VQ-8"}


def _llamagen(model: str) -> Original:
    module = importlib.import_module("tokenizer.tokenizer_image.vq_model").VQ_models[_LLAMAGEN[model]]().eval()
    dim = module.config.codebook_embed_dim

    def encode(images: Tensor) -> Tensor:
        quantized, _, (_, _, indices) = module.encode(images)
        return indices.view(len(images), *quantized.shape[2:])

    def decode(indices: Tensor) -> Tensor:
        return module.decode_code(indices, (len(indices), dim, *indices.shape[1:]))

    return Original(module, encode, decode)


# -- MaskBit -------------------------------------------------------------------------------------------------------


def _maskbit(model: str) -> Original:
    bits = int(model.partition(".")[0].removeprefix("maskbit_lfq_").removesuffix("bit"))
    config = Fields(
        quantizer_type="lookup-free", codebook_size=2**bits, token_size=bits, commitment_cost=0.25,
        entropy_loss_weight=0.02, entropy_loss_temperature=0.01, entropy_gamma=1.0, num_channels=3,
        hidden_channels=128, channel_mult=[1, 1, 2, 2, 4], num_resolutions=5, num_res_blocks=2, sample_with_conv=True,
    )  # fmt: skip
    module = importlib.import_module("modeling.conv_vqgan").ConvVQModel(config).eval()
    return Original(
        module,
        lambda images: module.encode(images)[1]["min_encoding_indices"],
        lambda indices: module.decode_tokens(indices.flatten(1)),
    )


# -- Open-MAGVIT2 --------------------------------------------------------------------------------------------------


def _open_magvit2(model: str) -> Original:
    """Encoder, decoder and quantizer as the original's model joins them, without its losses."""
    package = "src.Open_MAGVIT2.modules"
    networks = importlib.import_module(f"{package}.diffusionmodules.improved_model")
    quantizers = importlib.import_module(f"{package}.vqvae.lookup_free_quantize")
    sizes = {
        "ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 4, "z_channels": 18, "in_channels": 3, "out_ch": 3,
        "resolution": 128, "double_z": False,
    }  # fmt: skip
    quantizer = quantizers.LFQ(dim=18, codebook_size=2**18)
    module = nn.ModuleDict(
        {"encoder": networks.Encoder(**sizes), "decoder": networks.Decoder(**sizes), "quantize": quantizer}
    ).eval()

    def encode(images: Tensor) -> Tensor:
        latent = module["encoder"](images)
        return quantizer(latent)[2].view(len(images), *latent.shape[2:])

    def decode(indices: Tensor) -> Tensor:
        shape = (*indices.shape, quantizer.codebook_dim)
        return module["decoder"](quantizer.get_codebook_entry(indices.flatten(1), shape, ""))

    return Original(module, encode, decode)


ADAPTERS: dict[str, Adapter] = {
    "llamagen_vq": Adapter(
        "FoundationVision/LlamaGen", "tokenizer.tokenizer_image.vq_model", _image("llamagen_vq_f16.c2i"),
        _llamagen, _CONVOLUTIONAL,
    ),
    "maskbit": Adapter(
        "markweberdev/maskbit", "modeling.conv_vqgan", _image("maskbit_lfq_14bit.imagenet"), _maskbit,
        _CONVOLUTIONAL,
    ),
    "open_magvit2": Adapter(
        "TencentARC/SEED-Voken", "src.Open_MAGVIT2.modules.diffusionmodules.improved_model",
        _image("open_magvit2_256.imagenet"), _open_magvit2, _CONVOLUTIONAL,
    ),
}  # fmt: skip
