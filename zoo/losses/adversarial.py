"""Adversarial losses on a discriminator's logits, LeCam and R1 regularisation, and the adaptive weight of VQGAN.

Logits may have any shape; all losses are means in float32. LeCam: arXiv 2104.03310. R1: arXiv 1801.04406. Adaptive
weight: arXiv 2012.09841. What is not linear in the batch is computed over the batches of all processes together, so
that a distributed step equals that of one process.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.ops.collective import mean_over_ranks

AdversarialKind = Literal["hinge", "vanilla", "non_saturating", "non_saturating_image"]


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of mean(relu(1 - real)) and mean(relu(1 + fake))."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def vanilla_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of the two cross entropies, mean(softplus(-real)) and mean(softplus(fake))."""
    return 0.5 * non_saturating_discriminator_loss(real, fake)


def non_saturating_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Sum of the two cross entropies, mean(softplus(-real)) and mean(softplus(fake))."""
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def linear_generator_loss(fake: Tensor) -> Tensor:
    """Negative mean logit: the generator's part of the hinge loss, and of the vanilla loss in the VQGAN codes."""
    return -fake.float().mean()


def non_saturating_generator_loss(fake: Tensor) -> Tensor:
    """Cross entropy of the fakes against "real", mean(softplus(-fake))."""
    return F.softplus(-fake.float()).mean()


def image_logits(logits: Tensor) -> Tensor:
    """Mean logit of each image: (B, ...) -> (B,) in float32."""
    return logits.float().flatten(1).mean(1)


# "non_saturating_image" judges the mean logit of each image instead of every patch (Open-MAGVIT2).
DISCRIMINATOR_LOSSES: dict[AdversarialKind, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": hinge_discriminator_loss,
    "vanilla": vanilla_discriminator_loss,
    "non_saturating": non_saturating_discriminator_loss,
    "non_saturating_image": lambda real, fake: non_saturating_discriminator_loss(
        image_logits(real), image_logits(fake)
    ),
}
GENERATOR_LOSSES: dict[AdversarialKind, Callable[[Tensor], Tensor]] = {
    "hinge": linear_generator_loss,
    "vanilla": linear_generator_loss,
    "non_saturating": non_saturating_generator_loss,
    "non_saturating_image": lambda fake: non_saturating_generator_loss(image_logits(fake)),
}


class LeCam(nn.Module):
    """LeCam regulariser: keeps real logits near the running mean of the fake ones, and the reverse.

    The means are those of the joined batch of all processes (the originals' are of each process alone).

    Args:
        decay: share of the old running mean that an update keeps.
        convention: "means" compares mean logits with the running means before the update (MaskBit, TiTok);
            "logits" updates first and compares every logit (Open-MAGVIT2).

    Source: arXiv 2104.03310; in the conventions of markweberdev/maskbit and TencentARC/SEED-Voken.
    """

    ema_real_logits_mean: Tensor
    ema_fake_logits_mean: Tensor

    def __init__(self, decay: float = 0.999, convention: Literal["means", "logits"] = "means") -> None:
        super().__init__()
        self.decay = decay
        self.convention = convention
        self.register_buffer("ema_real_logits_mean", torch.zeros(1))
        self.register_buffer("ema_fake_logits_mean", torch.zeros(1))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Regulariser of a discriminator step; in training mode the running means are updated too.

        Args:
            real: logits of the real signals, any shape.
            fake: logits of the reconstructions, any shape.

        Returns:
            Scalar in float32, unweighted.
        """
        real, fake = real.float(), fake.float()
        real_mean, fake_mean = mean_over_ranks(torch.stack([real.mean(), fake.mean()]))
        if self.convention == "means":
            penalty = self._penalty(real_mean, fake_mean)
            self._update(real_mean, fake_mean)
        else:
            self._update(real_mean, fake_mean)
            penalty = self._penalty(real, fake)
        return penalty

    def _penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        real_excess = F.relu(real - self.ema_fake_logits_mean)
        fake_excess = F.relu(self.ema_real_logits_mean - fake)
        return real_excess.square().mean() + fake_excess.square().mean()

    @torch.no_grad()
    def _update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        if self.training:
            self.ema_real_logits_mean.lerp_(real_mean.to(self.ema_real_logits_mean.dtype), 1 - self.decay)
            self.ema_fake_logits_mean.lerp_(fake_mean.to(self.ema_fake_logits_mean.dtype), 1 - self.decay)


def r1_penalty(real: Tensor, logits: Tensor) -> Tensor:
    """Half the squared length of the gradient of each real image's logits to its pixels; mean over the batch.

    Args:
        real: images (B, ...) that the logits were computed from, with `requires_grad`.
        logits: (B, ...), of the discriminator.

    Returns:
        Scalar in float32, unweighted; its own gradient reaches the discriminator.

    Source: arXiv 1801.04406, equation 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()


def adaptive_weight(nll: Tensor, generator_loss: Tensor, last_layer_weight: Tensor, maximum: float = 1e4) -> Tensor:
    """Weight that gives the adversarial gradient the length of the reconstruction's at the decoder's last layer.

    Args:
        nll: scalar, weighted reconstruction and perceptual loss.
        generator_loss: scalar, the generator's adversarial loss.
        last_layer_weight: parameter of the decoder that both losses depend on.
        maximum: upper bound of the weight.

    Returns:
        Detached scalar |grad nll| / (|grad generator_loss| + 1e-4), at most `maximum`, of the gradients' means over all
        processes. Both graphs are retained.

    Source: arXiv 2012.09841, equation 7.
    """
    (nll_gradient,) = torch.autograd.grad(nll, last_layer_weight, retain_graph=True)
    (generator_gradient,) = torch.autograd.grad(generator_loss, last_layer_weight, retain_graph=True)
    gradients = mean_over_ranks(torch.stack([nll_gradient, generator_gradient]).float())
    nll_length, generator_length = gradients.flatten(1).norm(dim=1)
    return (nll_length / (generator_length + 1e-4)).clamp(0, maximum).detach()
