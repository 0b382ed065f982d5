"""Batch-1 steps of two-layer nets, fused into one sweep over the weights.

With f = w · a / r, a = relu(z), z = Wẋ (ẋ = (x, 1) with a bias), the per-example gradient is rank one in W:

    ∂f/∂W = g ẋᵀ,   g_j = 1(z_j > 0) (w_j/r − f a_j/r²),   ∂f/∂w = a/r        (r = 1: g_j = 1(z_j > 0) w_j)
    ‖∇f‖² = ‖g‖² ‖ẋ‖² + ‖a‖²/r²,    ‖g‖² = (Σ_{z_j > 0} w_j² − f²)/r²         (r = 1: without f²)

The loss gradient is ℓ'(f)∇f, ℓ' = 2(f − y) under squared error and σ(f) − t under the smoothed logistic loss,
t = 1 − p where y > 0 and p elsewhere. So SAM ascends along s∇f, s = ±ρ/‖∇f‖ with the sign of ℓ', and the
ascended net is known in closed form without touching W: z̃ = z + s‖ẋ‖² g, w̃ = w + s a/r. The descent adds a
multiple of g̃ẋᵀ to W, and the sweep that writes W reads the next example's pre-activations from it. W is kept
transposed (D, m), so that the inner loop runs over units and vectorises.

Softplus takes the place of relu where r = 1: a = log(1 + eᶻ), and σ(z) stands for 1(z > 0).

Where the norm of the first layer is held at h, the sweep leaves V = W_t + change ẋᵀ and adds up ‖V‖²; the
weights are (h/‖V‖) V, and the next sweep multiplies by that scalar as it goes.

Needs numba; without it the stacked trainer takes the same steps, a thousand times slower.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flattrain.core import trees
from flattrain.problems.two_layer import LayerNormed, TwoLayer
from flattrain.training.batches import indices, next_stop, noise_of
from flattrain.training.stacked import Seeds
from flattrain.training.trainer import State, Trainer
from flattrain.types import Draw, Params

LABELS = {"rule.labels": Draw("rademacher", (1,))}


class Settings(NamedTuple):
    """Learning rate η, SAM radius ρ (0: plain SGD), label noise ±δ (0: none), and the loss:

    squared error, or with `smoothing` p the logistic one with labels smoothed by p.
    """

    lr: float
    rho: float = 0.0
    delta: float = 0.0
    smoothing: float | None = None


def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def covers(module: nn.Module) -> bool:
    """Whether the kernel is exact for this net."""
    return type(module) in (TwoLayer, LayerNormed)


def fused_trainer(module: TwoLayer, settings: Settings, seeds: Seeds) -> Trainer:
    """Train each seed on its own by the kernel, one block of steps after the other."""
    kernel = _compiled()
    clamp = module.clamp if isinstance(module, LayerNormed) else -1.0
    bias = module.hidden.bias is not None
    real = np.dtype(str(seeds.x[0].dtype).removeprefix("torch.")).type
    inputs = [_augmented(x, bias) for x in seeds.x]
    targets = [y.reshape(-1).numpy() for y in seeds.y]
    numbers = [real(v) for v in (settings.lr, settings.rho, clamp)]
    held = None if module.held_norm is None else real(module.held_norm)
    smoothing = None if settings.smoothing is None else real(settings.smoothing)
    softplus = real(1) if module.activation == "softplus" else None
    noises = [noise_of(LABELS, s, seeds.x[0].dtype) for s in seeds.numbers]

    def advance(state: State, target: int) -> State:
        stop = next_stop(state.step, target)
        done = []
        for k, seed in enumerate(seeds.numbers):
            index = indices(seed, len(inputs[k]), 1, state.step, stop)[:, 0].numpy()
            y = targets[k][index]
            if settings.delta:
                signs = [noises[k](t)["rule.labels"] for t in range(state.step, stop)]
                y = y + real(settings.delta) * torch.cat(signs).numpy()
            weights, head = _pack(trees.pick(state.params, k), bias)
            kernel(weights, head, inputs[k], y, index, *numbers, held, smoothing, softplus)
            done.append(_unpack(weights, head, bias))
        return State(stop, trees.stack(done), [])

    return Trainer(
        lambda: State(0, trees.stack(list(seeds.params)), []),
        advance,
        f"fused batch-1 kernel, {real.__name__}",
    )


def _augmented(x: Tensor, bias: bool) -> np.ndarray:
    return (torch.cat([x, torch.ones_like(x[:, :1])], 1) if bias else x).contiguous().numpy()


def _pack(params: Params, bias: bool) -> tuple[np.ndarray, np.ndarray]:
    weight = params["hidden.weight"]
    rows = torch.cat([weight, params["hidden.bias"][:, None]], 1) if bias else weight
    return rows.T.contiguous().clone().numpy(), params["head.weight"][0].clone().numpy()


def _unpack(weights: np.ndarray, head: np.ndarray, bias: bool) -> Params:
    rows = torch.from_numpy(weights).T
    if not bias:
        return {"hidden.weight": rows.contiguous(), "head.weight": torch.from_numpy(head)[None]}
    return {
        "hidden.weight": rows[:, :-1].contiguous(),
        "hidden.bias": rows[:, -1].contiguous(),
        "head.weight": torch.from_numpy(head)[None],
    }


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    import numba

    # Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning.
    jit = numba.njit(fastmath={"reassoc", "contract", "nsz"}, nogil=True, cache=True)
    return jit(_steps)


def _steps(
    weights: Any,
    head: Any,
    inputs: Any,
    y: Any,
    index: Any,
    lr: Any,
    rho: Any,
    clamp: Any,
    held: Any,
    smoothing: Any,
    softplus: Any,
) -> None:
    """len(index) steps in place. weights (D, m), head (m,), y already picked and noisy, per step.

    `held` is None or the norm of the weights, `smoothing` None or that of the labels of a logistic loss,
    `softplus` None for relu; numba compiles the cases apart.
    """
    dim, units = weights.shape
    zero, one, two = lr * 0, lr * 0 + 1, lr * 0 + 2
    z = np.zeros_like(head)
    change = np.zeros_like(head)  # W += change ẋᵀ, pending from the step before
    before = inputs[index[0]]
    scale = np.ones_like(head[:1])  # the weights are scale · V; in an array, to stay in their precision
    sizes = np.zeros_like(head)  # ‖V‖², unit by unit, so that its sum vectorises
    soft = np.zeros_like(head)  # a, where it is dear
    for t in range(len(index) + 1):
        x = inputs[index[min(t, len(index) - 1)]]
        # One sweep: apply the pending change and read the pre-activations of this step, 4 rows at once.
        keep = scale[0]
        k = 0
        while k + 3 < dim:
            p0, p1, p2, p3 = before[k], before[k + 1], before[k + 2], before[k + 3]
            x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
            for j in range(units):
                c = change[j]
                w0, w1 = weights[k, j], weights[k + 1, j]
                w2, w3 = weights[k + 2, j], weights[k + 3, j]
                if held is not None:
                    w0, w1, w2, w3 = keep * w0, keep * w1, keep * w2, keep * w3
                w0, w1, w2, w3 = w0 + p0 * c, w1 + p1 * c, w2 + p2 * c, w3 + p3 * c
                weights[k, j] = w0
                weights[k + 1, j] = w1
                weights[k + 2, j] = w2
                weights[k + 3, j] = w3
                z[j] += (w0 * x0 + w1 * x1) + (w2 * x2 + w3 * x3)
                if held is not None:
                    sizes[j] += (w0 * w0 + w1 * w1) + (w2 * w2 + w3 * w3)
            k += 4
        while k < dim:
            p0, x0 = before[k], x[k]
            for j in range(units):
                w0 = weights[k, j]
                if held is not None:
                    w0 = keep * w0
                w0 = w0 + p0 * change[j]
                weights[k, j] = w0
                z[j] += w0 * x0
                if held is not None:
                    sizes[j] += w0 * w0
            k += 1
        if held is not None:
            total = zero
            for j in range(units):
                total += sizes[j]
                sizes[j] = zero
            scale[0] = held / np.sqrt(total)
            for j in range(units):
                z[j] *= scale[0]
        if t == len(index):
            break
        before = x

        size2 = zero  # ‖ẋ‖²
        for k in range(dim):
            size2 += x[k] * x[k]
        wa, aa, ww = zero, zero, zero  # w · a, ‖a‖², Σ_{active} w²
        for j in range(units):
            if softplus is None:
                a = max(z[j], zero)
                w = head[j] if z[j] > zero else zero
                wa += w * a
            else:
                small = np.exp(-abs(z[j]))
                a = max(z[j], zero) + np.log1p(small)
                gate = (one if z[j] > zero else small) / (one + small)
                soft[j], change[j] = a, gate
                w = gate * head[j]
                wa += head[j] * a
            aa += a * a
            ww += w * w
        r, free = one, zero  # 1/‖a‖; free: the normalisation is there and not clamped
        if clamp >= zero:
            r = one / np.sqrt(max(aa, clamp * clamp))
            free = one if aa > clamp * clamp else zero
        f = wa * r
        gradient2 = (ww - free * f * f) * r * r * size2 + aa * r * r
        slope = two * (f - y[t])
        if smoothing is not None:
            target = one - smoothing if y[t] > zero else smoothing
            slope = one / (one + np.exp(-f)) - target
        s = zero
        if slope != zero and gradient2 > zero:
            s = rho / np.sqrt(gradient2)
            if slope < zero:
                s = -s

        # z̃ = z + s‖ẋ‖² (w r − f a r²) on the active units, w̃ = w + s r a
        up_w, up_a, up_head = s * size2 * r, s * size2 * free * f * r * r, s * r
        wa, aa = zero, zero
        for j in range(units):
            if softplus is None:
                a = max(z[j], zero)
                active = z[j] > zero
                up = max((z[j] + up_w * head[j] - up_a * a) if active else zero, zero)
                w = head[j] + up_head * a
                change[j] = w if up > zero else zero
            else:
                there = z[j] + up_w * head[j] * change[j]
                w = head[j] + up_head * soft[j]
                small = np.exp(-abs(there))
                up = max(there, zero) + np.log1p(small)
                change[j] = w * (one if there > zero else small) / (one + small)
            wa += w * up
            aa += up * up
            z[j] = up
        r, free = one, zero
        if clamp >= zero:
            r = one / np.sqrt(max(aa, clamp * clamp))
            free = one if aa > clamp * clamp else zero
        f = wa * r
        slope = two * (f - y[t])
        if smoothing is not None:
            target = one - smoothing if y[t] > zero else smoothing
            slope = one / (one + np.exp(-f)) - target
        step = -lr * slope
        along, across = step * r, step * free * f * r * r
        for j in range(units):
            head[j] += along * z[j]
            change[j] = along * change[j] - across * z[j]
            z[j] = zero
    if held is not None:
        for k in range(dim):
            for j in range(units):
                weights[k, j] *= scale[0]
