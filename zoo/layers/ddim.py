"""Noise schedules of diffusion models, their training, and their deterministic sampling (DDIM, arXiv 2010.02502)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Schedule = Literal["linear", "squaredcos_cap_v2"]
Prediction = Literal["sample", "v_prediction", "epsilon"]


def signal_share(schedule: Schedule, steps: int, *, zero_terminal_snr: bool = False) -> Tensor:
    """(steps,) float32 on the CPU: the share of the clean signal left in the variance at each time ("alpha bar").

    Args:
        schedule: "linear" betas from 0.0001 to 0.02, or the squared cosine of arXiv 2102.09672.
        steps: of training.
        zero_terminal_snr: nothing is left at the last time (arXiv 2305.08891, algorithm 1).
    """
    if schedule == "linear":
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float32, device="cpu")
    else:
        places = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
        shares = torch.cos((places + 0.008) / 1.008 * torch.pi / 2).square()
        betas = (1 - shares[1:] / shares[:-1]).clamp(max=0.999).float()
    share = (1 - betas).cumprod(0)
    if zero_terminal_snr:
        root = share.sqrt()
        share = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    return share


def trailing_times(train_steps: int, steps: int) -> list[int]:
    """The falling times that sampling in `steps` steps visits, the last time of training first.

    Raises:
        ValueError: steps below 1 or above train_steps.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps: expected 1 to {train_steps}, got {steps}")
    return [time - 1 for time in range(train_steps, 0, -train_steps // steps)]


def ddim(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    share: Tensor,
    times: Sequence[int],
    hop: int,
    prediction: Prediction,
    *,
    clip: bool,
) -> Tensor:
    """A signal (B, ...) from noise of its shape.

    Args:
        predict: noisy signals and times (B,) to what `prediction` names.
        noise: normal, where sampling starts.
        share: of the clean signal by time, from `signal_share`.
        times: falling, from `trailing_times`.
        hop: how far down a step goes, in times.
        prediction: the clean signal ("sample"), its rotation with the noise ("v_prediction"), or the noise ("epsilon").
        clip: predicted clean signals to [-1, 1].
    """
    x = noise
    for time in times:
        now = share[time]
        then = share[time - hop] if time >= hop else torch.ones_like(now)
        clean, residue = _parts(x, predict(x, torch.full((x.shape[0],), time, device=x.device)), now, prediction)
        x = then.sqrt() * (clean.clamp(-1, 1) if clip else clean) + (1 - then).sqrt() * residue
    return x


def consistent(
    predict: Callable[[Tensor, Tensor], Tensor],
    noises: Tensor,
    share: Tensor,
    times: Sequence[int],
    prediction: Prediction,
) -> Tensor:
    """A signal (B, ...) by a consistency model, whose every step gives a clean one (arXiv 2303.01469, algorithm 1).

    Args:
        predict, share, prediction: as for `ddim`.
        noises: (B, steps, ...) normal: where sampling starts, and what each further step is noised with.
        times: falling, one for each step.
    """
    clean = torch.zeros_like(noises[:, 0])
    for number, time in enumerate(times):
        at = torch.full((noises.shape[0],), time, device=noises.device)
        x = noised(clean, noises[:, number], at, share) if number else noises[:, 0]
        clean = _parts(x, predict(x, at), share[time], prediction)[0]
    return clean


def denoising(
    predict: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    noise: Tensor,
    time: Tensor,
    share: Tensor,
    prediction: Prediction,
) -> tuple[Tensor, Tensor]:
    """The loss by which a diffusion model learns, and the signals (B, ...) that its predictions stand for.

    Args:
        predict: noisy signals and times (B,) to what `prediction` names.
        clean: signals (B, ...).
        noise: normal, of their shape.
        time: (B,) int64, of `share`.
        share, prediction: as for `ddim`.

    Returns:
        The mean squared error of the predictions, in float32, and the clean signals.
    """
    now = _at(share, time, clean)
    noisy = noised(clean, noise, time, share)
    output = predict(noisy, time)
    wanted = {
        "sample": clean,
        "epsilon": noise,
        "v_prediction": now.sqrt() * noise - (1 - now).sqrt() * clean,
    }[prediction]
    return F.mse_loss(output.float(), wanted.float()), _parts(noisy, output, now, prediction)[0]


def noised(clean: Tensor, noise: Tensor, time: Tensor, share: Tensor) -> Tensor:
    """Signals (B, ...) at times (B,), the variance of their noise being what `share` leaves."""
    now = _at(share, time, clean)
    return now.sqrt() * clean + (1 - now).sqrt() * noise


def variance_bound(clean: Tensor, noisy: Tensor, noise: Tensor, spread: Tensor, time: Tensor, steps: int) -> Tensor:
    """What the variances of a model's steps down the linear schedule cost in the variational bound, in bits a number.

    Of the hybrid objective of arXiv 2102.09672 (section 3.1), the part that learns the variances: the divergence of a
    step from the posterior given the clean signal, at time 0 the log-likelihood of the signal in bins of 1/127.5.

    Args:
        clean: signals (B, ...).
        noisy: at their times.
        noise: as predicted in them; the variances alone learn, so it passes no gradient.
        spread: of the variances in the logarithm, -1 being that of the posterior and 1 that of the forward step.
        time: (B,) int64.
        steps: of training.

    Returns:
        The mean, in float32.
    """
    betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64, device="cpu")
    share = (1 - betas).cumprod(0)
    before = F.pad(share[:-1], (1, 0), value=1.0)
    posterior = betas * (1 - before) / (1 - share)
    posterior[0] = posterior[1]  # instead of 0, whose logarithm there is none of
    clean, noisy, noise, spread = clean.float(), noisy.float(), noise.detach().float(), spread.float()

    def at(values: Tensor) -> Tensor:
        return _at(values, time, clean)

    def mean(signal: Tensor) -> Tensor:  # of the posterior given this signal
        of_signal, of_noisy = before.sqrt() * betas, (1 - betas).sqrt() * (1 - before)
        return at(of_signal / (1 - share)) * signal + at(of_noisy / (1 - share)) * noisy

    guess = mean((noisy - at((1 - share).sqrt()) * noise) / at(share.sqrt()))
    least, most = at(posterior.log()), at(betas.log())
    log_variance = torch.lerp(least, most, (spread + 1) / 2)
    divergence = log_variance - least + (least - log_variance).exp() - 1
    divergence = (divergence + (mean(clean) - guess).square() * (-log_variance).exp()) / 2
    first = (time == 0).view(-1, *[1] * (clean.ndim - 1))
    cost = torch.where(first, -_log_likelihood(clean, guess, log_variance), divergence)
    return cost.mean() / math.log(2)


def _log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of values in [-1, 1] in bins of 1/127.5, the outermost of which have no end (arXiv 2006.11239, equation 13)."""

    def below(value: Tensor) -> Tensor:  # the normal distribution as the original approximates it
        value = (value - mean) * (-log_variance / 2).exp()
        return (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3))) / 2

    upper = torch.where(x > 0.999, 1.0, below(x + 1 / 255))
    lower = torch.where(x < -0.999, 0.0, below(x - 1 / 255))
    return (upper - lower).clamp_min(1e-12).log()


def _at(values: Tensor, time: Tensor, like: Tensor) -> Tensor:
    """Values by time -> those of the times (B,) of signals (B, ...), of their dtype."""
    return values.to(like.dtype).to(like.device)[time].view(-1, *[1] * (like.ndim - 1))


def _parts(x: Tensor, output: Tensor, now: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """The clean signal and the noise that a prediction takes noisy signals for, `now` being the share of the former."""
    if prediction == "epsilon":
        return (x - (1 - now).sqrt() * output) / now.sqrt(), output
    if prediction == "v_prediction":
        return now.sqrt() * x - (1 - now).sqrt() * output, now.sqrt() * output + (1 - now).sqrt() * x
    return output, (x - now.sqrt() * output) / (1 - now).sqrt()


def item_noise(shape: tuple[int, ...], seed: int | list[int] | None, noise: Tensor | None = None) -> Tensor:
    """Normal noise (B, ...), each item's by its own seed, so that it does not depend on the rest of the batch.

    Args:
        shape: (B, ...).
        seed: one for all items (None: 0), or a list with one for each.
        noise: what was drawn elsewhere, which counts instead of a seed.

    Raises:
        ValueError: a list of another length, or noise of another shape.
    """
    if noise is not None:
        if noise.shape != shape:
            raise ValueError(f"noise: expected {shape}, got {tuple(noise.shape)}")
        return noise
    seeds = seed if isinstance(seed, list) else [seed or 0] * shape[0]
    if len(seeds) != shape[0]:
        raise ValueError(f"seed: expected {shape[0]}, one for each item, got {len(seeds)}")
    generators = (torch.Generator().manual_seed(s) for s in seeds)
    return torch.stack([torch.randn(shape[1:], generator=g, dtype=torch.float32, device="cpu") for g in generators])
