"""Per-example Jacobians of the outputs (n examples, K outputs, D numbers that go in), exact by K pullbacks.

Where the examples of a batch do not touch, one pullback of the k-th unit vector gives row k of every
example's Jacobian at once. Everything stays on the graph of the parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flattrain.core.eager import need_examples_apart, need_separable
from flattrain.ranges import Refused
from flattrain.types import Seen


def input_jacobian(seen: Seen, what: str) -> Tensor:
    """∂f/∂x per example, (n, K, D); inputs and outputs of any shape are flattened."""
    need_examples_apart(seen, what)
    if not isinstance(seen.inputs, Tensor) or not seen.inputs.is_floating_point():
        given = seen.inputs.dtype if isinstance(seen.inputs, Tensor) else type(seen.inputs).__name__
        raise Refused(
            f"{what} differentiates in the inputs, which are {given} here; give one tensor of real numbers "
            "(embed whole-number inputs beforehand)"
        )
    # By torch.func, because `requires_grad_` on the inputs is not allowed inside its transforms.
    pulled = torch.func.vjp(lambda x: seen.run(seen.params, x).flatten(1), seen.inputs)
    outputs, pull = pulled[0], pulled[1]
    return torch.stack([pull(row)[0].flatten(1) for row in unit_rows(outputs)], 1)


def layer_jacobian(seen: Seen, layer: str, what: str) -> Tensor:
    """∂f/∂φ per example, (n, K, D), φ the input of a tapped linear layer z = Wφ + b: (∂f/∂z) W."""
    need_separable(seen, what)
    tap = seen.taps[layer]
    if tap.input.ndim != 2:
        raise Refused(
            f"{what} of {layer!r} needs one row of features per example, but its input has shape "
            f"{tuple(tap.input.shape)}; choose a layer that sees (n, features)"
        )
    outputs = seen.outputs.flatten(1)
    pulled = [
        torch.autograd.grad(outputs, tap.output, row, create_graph=True)[0] for row in unit_rows(outputs)
    ]
    return torch.stack(pulled, 1) @ tap.weight


def gram(jacobian: Tensor) -> Tensor:
    """J Jᵀ per example, (n, K, K), in float64: its eigenvalues are the squared singular values of J."""
    j = jacobian.to(torch.float64)
    return j @ j.transpose(-1, -2)


def unit_rows(outputs: Tensor) -> list[Tensor]:
    """A unit vector for each of an example's outputs (n, …), the same for all examples."""
    shape = outputs.shape
    unit = torch.eye(shape[1:].numel(), dtype=outputs.dtype, device=outputs.device)
    return [row.reshape(shape[1:]).expand(shape) for row in unit]
