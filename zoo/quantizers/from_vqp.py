"""Takes over trained modules of vector-quantize-pytorch.

The result gives the same codes and indices, and trains on from the same state. What differs by design: it takes latents
channels last whatever the module's layout was; losses come by name and unweighted; sums are over all processes of a
run; a revived code has a count of at least 1, and lies on its latent with `affine_param` too, whose statistics do not
move in evaluation; the diversity of codes is that of the whole batch, not the mean over positions of that over items; a
codebook with an optimizer of its own gets no gradient from the losses outside; gradients of losses over all codes are
those at the codes that were searched, not at those after their running update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.quantizers.base import Quantizer, QuantizerConfig
from zoo.quantizers.binary import BinaryConfig, BinaryEntropyConfig
from zoo.quantizers.codebooks import (
    AffineConfig,
    CodebookConfig,
    EmaCodebookConfig,
    FrozenCodebookConfig,
    GradientCodebookConfig,
    InPlaceCodebookConfig,
)
from zoo.quantizers.finite_scalar import FiniteScalarConfig, NoiseDropoutConfig
from zoo.quantizers.finite_scalar_perturbation import FiniteScalarPerturbationConfig, MomentsConfig
from zoo.quantizers.gradients import DiVeQConfig, GradientConfig, RotationConfig, StraightThroughConfig
from zoo.quantizers.grouped import Grouped, GroupedConfig
from zoo.quantizers.latent import LatentConfig
from zoo.quantizers.level_dropout import LevelDropoutConfig
from zoo.quantizers.projected import Projected, ProjectedConfig
from zoo.quantizers.random_projection import RandomProjectionConfig
from zoo.quantizers.regularisers import CrossEntropyConfig, OrthogonalityConfig, SoftEntropyConfig
from zoo.quantizers.residual import ResidualConfig
from zoo.quantizers.rotated import Rotated, RotatedConfig
from zoo.quantizers.sim_vq import SimVQConfig
from zoo.quantizers.spherical_binary import SphericalBinaryConfig
from zoo.quantizers.vector import SamplingConfig, Vector, VectorConfig


def from_vqp(module: nn.Module) -> Quantizer:
    """A quantizer of ours in place of a module of vector-quantize-pytorch.

    Args:
        module: one of the classes of `CONVERTERS`.

    Returns:
        The quantizer on the module's device and in its mode, with copies of its weights and running statistics.

    Raises:
        TypeError: a module of another class.
        ValueError: an option that has no counterpart here; the message names it.
    """
    name = type(module).__name__
    if not type(module).__module__.startswith("vector_quantize_pytorch") or name not in CONVERTERS:
        raise TypeError(f"expected a module of vector-quantize-pytorch among {', '.join(CONVERTERS)}, got {name}")
    quantizer = CONVERTERS[name](module)
    tensors = [*module.parameters(), *module.buffers()]
    return quantizer.to(tensors[0].device if tensors else "cpu").train(module.training)


def refuse(module: nn.Module, **options: object) -> None:
    """Raise a ValueError that names the options of a module that are set, for those have no counterpart here."""
    if found := [name for name, value in options.items() if value]:
        raise ValueError(f"{type(module).__name__}: cannot take over the option {', '.join(found)}")


def copy(target: nn.Module, **tensors: Tensor) -> None:
    """Copy tensors into parameters and buffers of a module, by name; shapes may differ in axes of length 1."""
    with torch.no_grad():
        for name, value in tensors.items():
            own = target.get_parameter(name) if name in dict(target.named_parameters()) else target.get_buffer(name)
            own.copy_(value.reshape(own.shape))


# -- VectorQuantize ----------------------------------------------------------------------------------------------------


def _vector_quantize(module: nn.Module) -> Quantizer:
    theirs = module._codebook
    config: QuantizerConfig = _vector_config(module)
    if module.heads > 1:  # type: ignore[operator]
        shared = not module.separate_codebook_per_head
        config = GroupedConfig(config, num_groups=module.heads, shared=shared)  # type: ignore[arg-type]
    if module.has_projections:
        layer_norm = isinstance(module.project_in, nn.Sequential)
        config = ProjectedConfig(module.dim, config, layer_norm)  # type: ignore[arg-type]
    quantizer = config.build()
    inner: nn.Module = quantizer
    if isinstance(quantizer, Projected):
        linear, *norm = module.project_in if isinstance(module.project_in, nn.Sequential) else [module.project_in]
        quantizer.project_in.load_state_dict(linear.state_dict())
        quantizer.project_out.load_state_dict(module.project_out.state_dict())  # type: ignore[union-attr]
        if norm and quantizer.norm is not None:
            quantizer.norm.load_state_dict(norm[0].state_dict())
        inner = quantizer.inner
    vectors = list(inner.groups) if isinstance(inner, Grouped) else [inner]
    for head, vector in enumerate(vectors):
        _copy_codebook(vector, module, theirs, head)  # type: ignore[arg-type]
    return quantizer


def _vector_config(module) -> VectorConfig:  # type: ignore[no-untyped-def]
    theirs = module._codebook
    sampling = theirs.gumbel_sample.keywords
    refuse(
        module,
        vq_bridge=getattr(theirs, "vq_bridge", None),
        manual_ema_update=theirs.manual_ema_update,
        sync_update_v=module.sync_update_v,  # it scales the gradient to the latent, where the paper moves the codebook
        straight_through=sampling["straight_through"],
        reset_cluster_size=theirs.reset_cluster_size != theirs.threshold_ema_dead_code,
        route_gradients_to_input=not getattr(module, "route_gradients_to_input", True),
    )
    if theirs.affine_param:
        refuse(module, **{"affine_param together with orthogonal_reg_weight": module.has_codebook_orthogonal_loss})
    cosine = theirs.use_cosine_sim

    def temperature(value: float) -> float:
        """Their logits are cosines or minus distances; |z - c|^2 of unit vectors is twice 1 - cosine."""
        return 2 * value if cosine else value

    gradient: GradientConfig = StraightThroughConfig()
    if getattr(module, "directional_reparam", False):
        gradient = DiVeQConfig(module.directional_reparam_variance)
    elif module.rotation_trick:
        gradient = RotationConfig()
    entropy = cross_entropy = orthogonality = sample = affine = None
    if module.has_codebook_diversity_loss:
        heat = temperature(1 / module.codebook_diversity_temperature)
        entropy = SoftEntropyConfig(heat, clamp=1e-5, sample_weight=0.0, squared=cosine)
    if module.commitment_use_cross_entropy_loss:
        cross_entropy = CrossEntropyConfig(temperature(1.0), squared=cosine)
    if module.has_codebook_orthogonal_loss:
        codes = "active" if module.orthogonal_reg_active_codes_only else "all"
        orthogonality = OrthogonalityConfig(codes, module.orthogonal_reg_max_codes)  # type: ignore[arg-type]
    if sampling["stochastic"] and theirs.sample_codebook_temp > 0:
        sample = SamplingConfig(temperature(theirs.sample_codebook_temp), squared=cosine)
    if theirs.affine_param:
        affine = AffineConfig(theirs.affine_param_batch_decay, theirs.affine_param_codebook_decay)
    return VectorConfig(
        codebook_size=theirs.codebook_size,
        dim=theirs.embed.shape[-1],
        metric="cosine" if cosine else "euclidean",
        codebook=_codebook_config(module, theirs),
        entropy=entropy,
        gradient=gradient,
        cross_entropy=cross_entropy,
        orthogonality=orthogonality,
        sampling=sample,
        affine=affine,
    )


def _codebook_config(module, theirs) -> CodebookConfig:  # type: ignore[no-untyped-def]
    start = {"start": "random" if bool(theirs.initted) else "kmeans", "kmeans_iterations": theirs.kmeans_iters}
    revive_below, optimizer = float(theirs.threshold_ema_dead_code), module.in_place_codebook_optimizer
    if module.freeze_codebook:
        return FrozenCodebookConfig(**start)
    if optimizer is not None:
        settings = optimizer.param_groups[0]
        plain = type(optimizer) is torch.optim.SGD and not any(
            settings[name] for name in ("dampening", "weight_decay", "nesterov", "maximize")
        )
        refuse(
            module,
            in_place_codebook_optimizer=not plain,
            manual_in_place_optimizer_update=module.manual_in_place_optimizer_update,
            threshold_ema_dead_code=revive_below,
            ema_update=theirs.ema_update,
            affine_param=theirs.affine_param,
            orthogonal_reg_weight=module.has_codebook_orthogonal_loss,
        )
        return InPlaceCodebookConfig(settings["lr"], settings["momentum"], **start)
    if theirs.learnable_codebook:
        refuse(module, **{"ema_update together with orthogonal_reg_weight": theirs.ema_update})
        return GradientCodebookConfig(revive_below, theirs.decay, **start)
    if theirs.ema_update:
        return EmaCodebookConfig(theirs.decay, theirs.eps, revive_below, **start)
    refuse(module, threshold_ema_dead_code=revive_below)
    return FrozenCodebookConfig(**start)


def _copy_codebook(vector: Vector, module, theirs, head: int) -> None:  # type: ignore[no-untyped-def]
    copy(vector.codebook, weight=theirs.embed[head])
    if vector.ema is not None:
        copy(vector.ema, count=theirs.cluster_size[head])
    if isinstance(vector.config.codebook, EmaCodebookConfig) and vector.ema is not None:
        copy(vector.ema, total=theirs.embed_avg[head])
    if vector.affine is not None and theirs.batch_mean is not None and not bool(theirs.codebook_mean_needs_init):
        copy(
            vector.affine,
            started=torch.tensor(True),
            latent_mean=theirs.batch_mean[head],
            latent_variance=theirs.batch_variance[head],
            codebook_mean=theirs.codebook_mean[head],
            codebook_variance=theirs.codebook_variance[head],
        )
    if isinstance(vector.config.codebook, InPlaceCodebookConfig):
        state = module.in_place_codebook_optimizer.state.get(theirs.embed, {})
        if state.get("momentum_buffer") is not None:
            copy(vector.codebook, velocity=state["momentum_buffer"][head])


# -- SimVQ -------------------------------------------------------------------------------------------------------------


def _sim_vq(module: nn.Module) -> Quantizer:
    transform = module.code_transform
    if not isinstance(transform, nn.Linear):
        raise ValueError("SimVQ: cannot take over the option codebook_transform, which is no linear layer")
    size, width = module.frozen_codebook.shape  # type: ignore[union-attr]
    quantizer = SimVQConfig(
        codebook_size=size,
        dim=transform.out_features,
        frozen_dim=width,
        bias=transform.bias is not None,
        gradient=RotationConfig() if module.rotation_trick else StraightThroughConfig(),
    ).build()
    copy(quantizer, **{"codebook.weight": module.frozen_codebook})  # type: ignore[dict-item]
    quantizer.transform.load_state_dict(transform.state_dict())  # type: ignore[union-attr]
    return quantizer


# -- binary, scalar and random -----------------------------------------------------------------------------------------


def _in_its_width(module, config: QuantizerConfig, codebooks: int = 1) -> Quantizer:  # type: ignore[no-untyped-def]
    """The quantizer of a config, once for each codebook, between the module's projections if it has any.

    In its orthogonal rotation if it has one, which is the same for all codebooks.
    """
    if rotated := getattr(module, "orthogonal_rotation", False):
        config = RotatedConfig(config)
    if codebooks > 1:
        config = GroupedConfig(config, num_groups=codebooks)
    if module.has_projections:
        config = ProjectedConfig(module.dim, config)
    quantizer = config.build()
    for part in quantizer.modules():
        if rotated and isinstance(part, Rotated):
            copy(part, rotation=module.orthogonal_rot)
    if not isinstance(quantizer, Projected):
        return quantizer
    refuse(module, **{"projection_has_bias=False": getattr(module.project_in, "bias", None) is None})
    quantizer.project_in.load_state_dict(module.project_in.state_dict())
    quantizer.project_out.load_state_dict(module.project_out.state_dict())
    return quantizer


def _finite_scalar(module) -> Quantizer:  # type: ignore[no-untyped-def]
    """Noise has its stated probability here; theirs has 1/2 whatever is stated."""
    config = FiniteScalarConfig(
        levels=tuple(module._levels.tolist()),
        symmetric=module.preserve_symmetry,
        squash="clamp" if module.bound_hard_clamp else "tanh",
        noise=NoiseDropoutConfig(module.noise_dropout, around="code") if module.noise_dropout > 0 else None,
    )
    return _in_its_width(module, config, module.num_codebooks)


def _lookup_free(module) -> Quantizer:  # type: ignore[no-untyped-def]
    """Their entropies clamp, our `floor`; `inv_temperature` is an argument of their forward pass, 100 by default.

    Given a mask, their codebook entropy takes no mean over tokens; ours is that of the tokens left.
    """
    rotated = module.orthogonal_rotation
    refuse(
        module,
        cosine_sim_project_in=type(module.project_in).__name__ == "CosineSimLinear",
        straight_through_activation=not isinstance(module.activation, nn.Identity),
        experimental_softplus_entropy_loss=module.experimental_softplus_entropy_loss,
        **{"spherical together with codebook_scale": module.spherical and module.codebook_scale != 1},
        **{"spherical together with soft_clamp_input_value": module.spherical and module.soft_clamp_input_value},
        **{"orthogonal_rotation after soft_clamp_input_value": rotated and module.soft_clamp_input_value},
    )
    entropy = BinaryEntropyConfig(temperature=0.01, gamma=float(module.diversity_gamma), floor=1e-5)
    config: QuantizerConfig
    if module.spherical:
        config = SphericalBinaryConfig(module.codebook_dim, entropy, gradient="code")
    else:
        config = BinaryConfig(
            module.codebook_dim,
            entropy,
            scale=float(module.codebook_scale),
            soft_clamp=module.soft_clamp_input_value,
            most_significant_first=True,
        )
    return _in_its_width(module, config, module.num_codebooks)


def _finite_scalar_perturbation(module) -> Quantizer:  # type: ignore[no-untyped-def]
    norm = module.vector_norm
    config = FiniteScalarPerturbationConfig(
        levels=tuple(module._levels.tolist()),
        distribution=module.act_name,
        quantize_rate=float(module.quantize_rate),
        inverse=module.need_inv_act,
        moments=MomentsConfig(*map(float, (norm.l1_target, norm.l2_target, norm.l3_target, norm.l4_target))),
    )
    return _in_its_width(module, config)


def _latent(module) -> Quantizer:  # type: ignore[no-untyped-def]
    """Their losses do not reach the values, and their indices hold for the values of the start alone."""
    refuse(
        module,
        in_place_codebook_optimizer=module.in_place_codebook_optimizer,
        num_codebooks=module.num_codebooks > 1,
        **{"optimize_values=False": not isinstance(module.values_per_latent, nn.ParameterList)},
    )
    quantizer = _in_its_width(module, LatentConfig(tuple(module._levels.tolist())))
    inner = quantizer.inner if isinstance(quantizer, Projected) else quantizer
    copy(inner, values=torch.cat([values.detach() for values in module.values_per_latent]))  # type: ignore[arg-type]
    return quantizer


def _random_projection(module) -> Quantizer:  # type: ignore[no-untyped-def]
    refuse(module, num_codebooks=module.num_codebooks > 1)  # it then projects twice, the second time with a bias
    count, dim, width = module.rand_projs.shape
    codebooks = module.vq._codebook.embed
    normalise = isinstance(module.norm, nn.LayerNorm)
    quantizer = RandomProjectionConfig(dim, codebooks.shape[1], width, count, normalise).build()
    copy(quantizer, projections=module.rand_projs, codebooks=codebooks)
    return quantizer


# -- residual ----------------------------------------------------------------------------------------------------------
# Their losses are one number a level, ours the mean. A shared running codebook takes one step for all levels, not many.
# Groups of residual quantizers become residual levels of groups: the same, with indices level by level.


def _residual(module, gradient="per_level", **fields: Any) -> Quantizer:  # type: ignore[no-untyped-def]
    """Ours of the module's `layers`, between its projections if it has any."""
    parts = [CONVERTERS[type(layer).__name__](layer) for layer in _layers(module)]
    config = ResidualConfig(
        _one_or_each([part.config for part in parts]), len(parts), gradient=gradient, dropout=_dropout(module), **fields
    )
    if not getattr(module, "has_projections", False):
        quantizer = inner = config.build()
    else:
        quantizer = ProjectedConfig(module.project_in.in_features, config).build()
        quantizer.project_in.load_state_dict(module.project_in.state_dict())  # type: ignore[union-attr]
        quantizer.project_out.load_state_dict(module.project_out.state_dict())  # type: ignore[union-attr]
        inner = quantizer.inner  # type: ignore[assignment]
    for own, part in zip(inner.levels, parts):  # type: ignore[arg-type]
        own.load_state_dict(part.state_dict())
    return quantizer


def _layers(module) -> Iterable[nn.Module]:  # type: ignore[no-untyped-def]
    for layer in module.layers:
        if getattr(module, "shared_codebook", False):  # these tell the layer to leave the shared steps to the module
            layer = deepcopy(layer)
            layer._codebook.manual_ema_update = layer.manual_in_place_optimizer_update = False
        yield layer


def _one_or_each(configs: list[QuantizerConfig]) -> Any:
    return configs[0] if all(config == configs[0] for config in configs) else tuple(configs)


def _dropout(module) -> LevelDropoutConfig | None:  # type: ignore[no-untyped-def]
    if not module.quantize_dropout:
        return None
    return LevelDropoutConfig(module.quantize_dropout_cutoff_index + 1, module.quantize_dropout_multiple_of)


def _residual_vectors(module) -> Quantizer:  # type: ignore[no-untyped-def]
    refuse(
        module,
        implicit_neural_codebook=module.implicit_neural_codebook,
        diveq=module.diveq,
        beam_size=(module.beam_size or 1) > 1 or (module.eval_beam_size or 1) > 1,
        quant_grad_frac=module.quant_grad_frac not in (0, 1),
    )
    gradient = "through" if module.quant_grad_frac == 1 else "per_level"
    return _residual(module, gradient, shared=module.shared_codebook)


def _residual_finite_scalars(module) -> Quantizer:  # type: ignore[no-untyped-def]
    clamp = module.soft_clamp_input_value
    if isinstance(clamp, Tensor):
        clamp = tuple(clamp.expand(len(module.levels)).tolist())
    return _residual(module, refinement=tuple(map(float, module.levels)), soft_clamp=clamp)


def _residual_signs(module) -> Quantizer:  # type: ignore[no-untyped-def]
    return _residual(module, refinement=1.0)


def _residual_sim_vq(module) -> Quantizer:  # type: ignore[no-untyped-def]
    return _residual(module)


def _grouped_residual(module) -> Quantizer:  # type: ignore[no-untyped-def]
    groups = [CONVERTERS[type(residual).__name__](residual) for residual in module.rvqs]
    count, first = len(groups), groups[0].config
    if not isinstance(first, ResidualConfig):  # each group has projections of its own
        refuse(module, **{"quantize_dropout together with projections": _dropout(module.rvqs[0])})
        grouped = GroupedConfig(_one_or_each([group.config for group in groups]), count).build()
        for own, group in zip(grouped.groups, groups):  # type: ignore[arg-type]
            own.load_state_dict(group.state_dict())
        return grouped
    levels = zip(*(group.config.levels for group in groups))  # type: ignore[attr-defined]
    level = _one_or_each([GroupedConfig(_one_or_each(list(parts)), count) for parts in levels])

    def tiled(value: Any) -> Any:
        return value * count if isinstance(value, tuple) else value

    config = dataclasses.replace(
        first, level=level, refinement=tiled(first.refinement), soft_clamp=tiled(first.soft_clamp)
    )
    quantizer = config.build()
    for q, own in enumerate(quantizer.levels):  # type: ignore[arg-type]
        for part, group in zip(own.groups, groups):  # type: ignore[arg-type]
            part.load_state_dict(group.levels[q].state_dict())  # type: ignore[index, union-attr]
    return quantizer


CONVERTERS: dict[str, Callable[[nn.Module], Quantizer]] = {
    "VectorQuantize": _vector_quantize,
    "SimVQ": _sim_vq,
    "FSQ": _finite_scalar,
    "LFQ": _lookup_free,
    "FSP": _finite_scalar_perturbation,
    "LatentQuantize": _latent,
    "RandomProjectionQuantizer": _random_projection,
    "ResidualVQ": _residual_vectors,
    "ResidualFSQ": _residual_finite_scalars,
    "ResidualLFQ": _residual_signs,
    "ResidualSimVQ": _residual_sim_vq,
    "GroupedResidualVQ": _grouped_residual,
    "GroupedResidualFSQ": _grouped_residual,
    "GroupedResidualLFQ": _grouped_residual,
}
