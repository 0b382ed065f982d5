"""Sources of truth that share no code with the package: dense Hessians, finite differences, closed forms."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call, hessian


def flat(params):
    return torch.cat([p.reshape(-1) for p in params.values()])


def rebuild(vector, like):
    out, start = {}, 0
    for name, p in like.items():
        out[name] = vector[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
    return out


def loss_of_vector(module, loss, x, y, buffers=None):
    """θ (flat) -> mean loss, by functional_call alone."""
    like = {k: p.detach() for k, p in module.named_parameters()}

    def value(vector):
        outputs = functional_call(module, {**rebuild(vector, like), **(buffers or {})}, (x,))
        return loss(outputs, y)

    return value, flat(like)


def full_hessian(module, loss, x, y, buffers=None):
    """∇²L, dense, forward over reverse over all parameters in the order of the module."""
    value, at = loss_of_vector(module, loss, x, y, buffers)
    return hessian(value)(at)


def gradient_of(definition, module, loss, x, y):
    """∇ of a function of the dense Hessian and the parameters, by reverse mode through that Hessian."""
    value, at = loss_of_vector(module, loss, x, y)
    like = {k: p.detach() for k, p in module.named_parameters()}
    return torch.func.grad(lambda v: definition(hessian(value)(v), rebuild(v, like)))(at)


def kappa_of(matrix, params, layer):
    """Relative flatness from its definition, as a function of the dense Hessian and the parameters."""
    start = 0
    for name, p in params.items():
        if name == f"{layer}.weight":
            h = matrix[start : start + p.numel(), start : start + p.numel()].reshape(*p.shape, *p.shape)
            return sum(
                (p[s] @ p[t]) * torch.trace(h[s, :, t, :]) for s in range(len(p)) for t in range(len(p))
            )
        start += p.numel()
    raise KeyError(layer)


def block(module, matrix, name):
    """The diagonal block of parameter `name`."""
    start = 0
    for key, p in module.named_parameters():
        if key == name:
            return matrix[start : start + p.numel(), start : start + p.numel()]
        start += p.numel()
    raise KeyError(name)


def kappa(module, matrix, layer):
    """Relative flatness from its definition: Σ_{s,t} ⟨w_s, w_t⟩ Tr H_{s,t}, by loops over row pairs."""
    weight = dict(module.named_parameters())[f"{layer}.weight"].detach()
    rows, columns = weight.shape
    h = block(module, matrix, f"{layer}.weight").reshape(rows, columns, rows, columns)
    total = torch.zeros(())
    for s in range(rows):
        for t in range(rows):
            total = total + (weight[s] @ weight[t]) * torch.trace(h[s, :, t, :])
    return total


def finite_difference(value, at, step=1e-5):
    """∇ value by central differences, 4th order."""
    out = torch.zeros_like(at)
    for k in range(len(at)):
        e = torch.zeros_like(at)
        e[k] = step
        near = value(at + e) - value(at - e)
        far = value(at + 2 * e) - value(at - 2 * e)
        out[k] = (8 * near - far) / (12 * step)
    return out


def value_and_gradient(measure_value, net, definition):
    """(value, gradient) of a live value, and of a definition of the flat parameters by differences."""
    live = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    value = measure_value(live)
    grads = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
    like = {k: p.detach() for k, p in live.items()}
    wanted = finite_difference(lambda v: definition(rebuild(v, like)).detach(), flat(like), 1e-4)
    return value.detach(), flat(dict(zip(live, grads, strict=True))), definition(like).detach(), wanted


def input_jacobians(net, x, params=None):
    """∂f/∂x (n, K, D), one example after the other."""
    from torch.func import jacrev

    params = params or {k: p.detach() for k, p in net.named_parameters()}
    return torch.stack([jacrev(lambda r: functional_call(net, params, (r[None],))[0])(row) for row in x])


def parameter_jacobians(net, x, params=None):
    """∂f/∂θ (n, K, P), one example after the other, in the order of the module."""
    from torch.func import jacrev

    params = params or {k: p.detach() for k, p in net.named_parameters()}
    rows = [jacrev(lambda p, row=row: functional_call(net, p, (row[None],))[0])(params) for row in x]
    return torch.stack([torch.cat([j.flatten(1) for j in row.values()], 1) for row in rows])


def dense_fisher_blocks(module, x, softmax=True):
    """{layer: type-2 Fisher block over (W, b)} of linear layers, from explicit per-example Jacobians."""
    from torch.func import jacrev

    params = {k: p.detach() for k, p in module.named_parameters()}
    blocks = {}
    for row in x:
        jacobian = jacrev(lambda p, row=row: functional_call(module, p, (row[None],))[0])(params)
        f = functional_call(module, params, (row[None],))[0]
        if softmax:
            p = f.softmax(-1)
            s = torch.diag(p) - torch.outer(p, p)
        else:
            s = 2 * torch.eye(len(f))
        for layer in {k.rsplit(".", 1)[0] for k in params}:
            parts = [jacobian[f"{layer}.weight"].flatten(2)]
            w = jacobian[f"{layer}.weight"]
            parts = [w]
            if f"{layer}.bias" in params:
                parts.append(jacobian[f"{layer}.bias"][..., None])
            j = torch.cat(parts, -1).flatten(1)
            blocks[layer] = blocks.get(layer, 0) + j.T @ s @ j / len(x)
    return blocks


def trainable(module):
    """Its trainable parameters, tied ones once, detached."""
    return {k: p.detach().clone() for k, p in module.named_parameters() if p.requires_grad}


def live(module):
    """Its trainable parameters as new leaves."""
    return {k: p.requires_grad_() for k, p in trainable(module).items()}


def example_gradients(module, loss, x, y, params):
    """Rows (n, K, P) with F = mean_i Σ_c row row ᵀ: a root of each output Hessian times the Jacobian.

    The output Hessian is torch's own, of n times the mean loss; its root is symmetric, by eigenvectors.
    """
    from torch.func import jacrev

    outputs = functional_call(module, params, (x,))
    curvature = hessian(lambda f: len(x) * loss(f, y))(outputs.detach())
    rows = []
    for i in range(len(x)):
        values, vectors = torch.linalg.eigh(curvature[i, :, i])
        root = vectors * values.clamp(min=0).sqrt()
        jacobian = jacrev(lambda p, i=i: functional_call(module, p, (x[i : i + 1],))[0])(params)
        rows.append(root.T @ torch.cat([j.flatten(1) for j in jacobian.values()], 1))
    return torch.stack(rows)


def fisher(module, loss, x, y, params):
    """The type-2 Fisher (= Gauss–Newton) matrix of the mean loss, dense, as a function of `params`.

    Differentiable: J and S by torch.func, Jᵀ S J, no roots.
    """
    from torch.func import jacrev

    outputs = functional_call(module, params, (x,))
    curvature = hessian(lambda f: len(x) * loss(f, y))(outputs)
    jacobian = jacrev(lambda p: functional_call(module, p, (x,)))(params)
    j = torch.cat([v.flatten(2) for v in jacobian.values()], 2)
    s = torch.stack([curvature[i, :, i] for i in range(len(x))])
    return torch.einsum("ncp,ncd,ndq->pq", j, s, j) / len(x)


def small_net(kind="tanh", sizes=(4, 5, 3), seed=0, bias=True):
    """A named MLP of at most 200 parameters: layers hidden1, …, head."""
    torch.manual_seed(seed)
    act = {"tanh": nn.Tanh, "relu": nn.ReLU, "softplus": nn.Softplus}[kind]
    parts = {}
    for k in range(len(sizes) - 2):
        parts[f"hidden{k + 1}"] = nn.Linear(sizes[k], sizes[k + 1], bias=bias)
        parts[f"act{k + 1}"] = act()
    parts["head"] = nn.Linear(sizes[-2], sizes[-1], bias=bias)
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    for p in net.parameters():
        nn.init.normal_(p, std=0.7)
    return net


def data(n=12, inputs=4, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return x, y


def distinct(split):
    """A split in float64 without repeated training points."""
    x, y = split.train_x.double(), split.train_y.double()
    first = [i for i in range(len(x)) if not any(torch.equal(x[i], x[j]) for j in range(i))]
    return split._replace(train_x=x[first], train_y=y[first])


class Flat(nn.Module):
    """A net on tokens as one with a single row (n, T K) per example; its parameters are `net.…`."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).flatten(1)


def of_tokens(loss, count):
    """A loss of torch's on such rows, in torch's own layout: classes second."""

    def mean(z, y):
        rows = z.unflatten(1, (-1, count))
        return loss(rows.movedim(-1, 1), y.movedim(-1, 1) if y.ndim == rows.ndim else y)

    return mean


def of_flat(module, definition, x, y, loss, count):
    """(value, gradient by parameter) of a function of the dense Fisher of a net on tokens."""
    flat = Flat(module)
    params = trainable(flat)
    value = definition(fisher(flat, of_tokens(loss, count), x, y, params))
    slope = torch.func.grad(lambda p: definition(fisher(flat, of_tokens(loss, count), x, y, p)))(params)
    return value, {name.removeprefix("net."): g for name, g in slope.items()}
