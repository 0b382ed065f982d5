"""Two processes that share a batch against one that has all of it: gradients, products, whole trainings."""

from __future__ import annotations

import pytest
import torch
from oracles import data, small_net
from torch import distributed, nn
from torch.func import grad, jvp

from flattrain.core import trees
from flattrain.core.collective import spread, total
from flattrain.core.losses import cross_entropy, recognise
from flattrain.core.probes import draw, stream
from flattrain.lab import catalog
from flattrain.lab.run import OF_ROWS
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.gradient_norm import squared_gradient_norm
from flattrain.measures.local_sensitivity import local_sensitivity
from flattrain.measures.soft_rank import soft_rank
from flattrain.problems.digits import digits
from flattrain.problems.networks import mlp
from flattrain.ranges import Refused
from flattrain.training import evaluate as module_of_chunks
from flattrain.training.evaluate import evaluate
from flattrain.training.evaluate_ranks import evaluate_together
from flattrain.training.objective import Penalty, build
from flattrain.training.ranks import Ranks, joined
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.types import Batch, Network

MEASURED = (
    "train_loss", "soft_rank", "hessian_trace", "fisher_rank", "top_eigenvalue", "calibration_error",
    "gradient_norm",
)  # fmt: skip
COUNT = 13  # shares of 6 and 7
OF_ANOTHER_NET = {"deep_linear_trace"}
WHOLE = {"gap_penalty", "fisher_rank_probes", "hessian_top_eigenvalue", "worst_sharpness"}
LINE = {"rtol": 1e-9, "atol": 1e-11}
ARGUMENTS = {
    "obar": {"x": "hidden1.weight", "y": "head.weight"},
    "nbar": {"x": "hidden1.weight", "y": "head.weight"},
    "sam_on": {"parameters": ["hidden1.weight"]},
    # Its sketch takes one pullback for a whole batch: of each share it is another draw, as unbiased.
    "connectivity_trace": {"form": "exact"},
}


def close(mine, wanted):
    for k, v in wanted.items():
        torch.testing.assert_close(mine[k], v, **LINE)
    rows = [torch.empty_like(trees.flatten(mine)) for _ in range(2)]
    distributed.all_gather(rows, trees.flatten(mine).contiguous())
    assert torch.equal(*rows), "the processes differ"


def share_of(batch, noise, wanted, rank):
    mine = Ranks(rank, 2).share(len(batch.y))
    own = {k: t[mine] if wanted[k].per_example else t for k, t in noise.items()}
    return Batch(batch.x[mine], batch.y[mine], own), Batch(batch.x, batch.y, noise)


def both(measure, rank, criterion=cross_entropy):
    """(params, the function of all processes, its batch, that of one process, its batch)."""
    net, (x, y) = small_net(), data(n=COUNT)
    params = {k: p.detach() for k, p in net.named_parameters()}
    alone = build(net, criterion, [Penalty(measure, 0.3)])
    shared = build(net, criterion, [Penalty(measure, 0.3)], ranks=joined())
    wanted = alone.draws(alone.see(x, y))
    mine, whole = share_of(Batch(x, y), draw(wanted, stream(1), torch.float64), wanted, rank)
    return params, shared, mine, alone, whole


def penalty_of(name):
    return catalog.build(catalog.choose(catalog.PENALTIES, {name: ARGUMENTS.get(name, {})}, "test"), probes=2)


def gradients(rank):
    off = []
    for name in sorted(set(catalog.PENALTIES) - WHOLE - OF_ANOTHER_NET):
        params, shared, mine, alone, whole = both(penalty_of(name), rank)
        found, logs = shared.gradient()(params, mine)
        wanted, wanted_logs = alone.gradient()(params, whole)
        try:
            close(found, wanted)
            torch.testing.assert_close(logs, wanted_logs, **LINE)
        except AssertionError as error:
            off.append(f"{name}: {error}")
    assert not off, "\n".join(off)


def test_the_gradient_of_every_penalty_is_that_of_the_union(ranks):
    ranks(gradients)


def refusals(rank):
    for name in sorted(WHOLE):
        with pytest.raises(Refused, match=f"{name}: as a penalty it needs the whole batch in one process"):
            build(small_net(), cross_entropy, [Penalty(penalty_of(name), 1.0)], ranks=joined())
    with pytest.raises(Refused, match=r"layer '0' \(BatchNorm1d\) normalises by the share"):
        build(nn.Sequential(nn.BatchNorm1d(3)), cross_entropy, [], ranks=joined())
    with pytest.raises(Refused, match="a batch of 1 cannot be shared by 2 processes"):
        joined().need(1)


def test_what_cannot_be_shared_is_refused(ranks):
    ranks(refusals)


def products(rank):
    for measure in (squared_gradient_norm(), soft_rank(), fisher_rank()):
        params, shared, mine, alone, whole = both(measure, rank)
        v = {k: torch.randn(p.shape, generator=stream(k)) for k, p in params.items()}

        def product(objective, batch, params=params, v=v):
            slope = objective.gradient()

            return grad(lambda at: trees.dot(slope(at, batch)[0], v))(params)

        close(product(shared, mine), product(alone, whole))


def test_products_with_the_hessian_of_the_penalised_loss(ranks):
    ranks(products)


def by_mean_of_gradients(rank):
    """What averaging local gradients, as DistributedDataParallel does, would give: another number."""
    params, _, mine, alone, whole = both(soft_rank(), rank)
    local, _ = alone.gradient()(params, mine)
    (flat,) = (trees.flatten(local) * len(mine.y) / COUNT,)
    distributed.all_reduce(flat)
    wanted = trees.flatten(alone.gradient()(params, whole)[0])
    return float((flat - wanted).norm() / wanted.norm())


def test_averaging_gradients_would_be_wrong(ranks):
    assert min(ranks(by_mean_of_gradients)) > 1e-3


def weighted(rank):
    criterion = recognise(nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 2.0])))
    for measure in (squared_gradient_norm(), soft_rank(), local_sensitivity()):  # the last is not of the loss
        params, shared, mine, alone, whole = both(measure, rank, criterion)
        close(shared.gradient()(params, mine)[0], alone.gradient()(params, whole)[0])
    with pytest.raises(Refused, match="class weights cannot be shared"):
        both(fisher_rank(), rank, recognise(nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 2.0]))))


def test_class_weights_count_over_the_union(ranks):
    ranks(weighted)


def transposes(rank):
    """⟨total(x), y⟩ = Σ_r ⟨x_r, spread(y)_r⟩, and jvp is the linear map itself."""
    x, y = torch.randn(4, generator=stream(rank)), torch.randn(4, generator=stream("y"))
    left = total({"x": x})["x"] @ y
    right = x @ spread({"x": y})["x"]
    distributed.all_reduce(right)
    torch.testing.assert_close(left, right)
    for f in (spread, total):
        _, along = jvp(lambda t, f=f: f({"t": t})["t"], (x,), (y,))
        torch.testing.assert_close(along, f({"t": y})["t"])
    stacked = torch.func.vmap(lambda t: total({"t": t})["t"])(torch.stack([x, 2 * x]))
    torch.testing.assert_close(stacked[1], 2 * total({"x": x})["x"])


def test_spread_and_total_are_transposes(ranks):
    ranks(transposes)


def trained(rule, ranks, penalties=(), batch_size=10, steps=2):
    model, dataset = mlp(widths=(4,)), digits(train=20, test=5)
    splits = [dataset(s) for s in (1, 2)]
    module = model.build(splits[0]).double()
    starts = [model.start(module, s, stream(k)) for k, s in enumerate(splits)]
    seeds = Seeds([1, 2], [s.train_x.double() for s in splits], [s.train_y for s in splits], starts, [{}, {}])
    objective = build(module, cross_entropy, penalties, ranks=ranks)
    context = {"outputs": objective.outputs, "losses": objective.losses, "criterion": cross_entropy}
    chosen = catalog.build(catalog.choose(catalog.RULES, {rule: ARGUMENTS.get(rule, {})}, "test"), **context)
    optimizer = catalog.build(catalog.choose(catalog.OPTIMIZERS, {"sgd": {"lr": 0.3}}, "t"))
    made = stacked_trainer(objective, chosen, optimizer, batch_size, seeds, ranks=ranks)
    state = made.init()
    while state.step < steps:
        state = made.advance(state, steps)
    return state.params, made.backend


def rules(rank):
    for name in sorted(set(catalog.RULES) - set(OF_ROWS) - {"label_noise"}):
        found, backend = trained(name, joined())
        assert "under vmap" in backend and "each batch shared by 2 processes" in backend
        try:
            # One process alone takes the whole batch; the other is to have the same bits.
            close(found, found if rank else trained(name, Ranks())[0])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def test_every_rule_on_shares_is_that_on_the_whole(ranks):
    ranks(rules)


def with_noise_per_example(rank):
    for size in (9, 20):  # picked examples, and all of them
        penalty = [Penalty(soft_rank(columns="sketch"), 0.1)]
        close(trained("sam", joined(), penalty, size)[0], trained("sam", Ranks(), penalty, size)[0])


def test_noise_with_a_row_per_example_goes_with_the_example(ranks):
    ranks(with_noise_per_example)


def measures(rank):
    net, (x, y) = small_net(), data(n=COUNT)
    network = Network(net, cross_entropy, {k: p.detach() for k, p in net.named_parameters()}, {})
    for size in (4, COUNT):  # four batches, and one that a process has alone
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module_of_chunks, "CHUNK", size)
            for name in MEASURED:
                choice = catalog.choose(catalog.MEASURES, {name: {}}, "test")
                measure = catalog.build(choice, probes=2)
                found = evaluate_together(measure, network, x, y, ("k",), joined())
                wanted = evaluate(measure, network, x, y, ("k",))
                for mine, its in zip(found, wanted, strict=True):
                    assert float(mine) == pytest.approx(float(its), rel=1e-9, abs=1e-12), (name, size)
    return float(found.value)


def test_measures_by_two_processes_are_those_by_one(ranks):
    one, other = ranks(measures)
    assert one == other
