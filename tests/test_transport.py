"""The transport solver against a naive log-domain loop, POT, reference tensors, and its own properties."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ncu_hf.distributed import Shard
from ncu_hf.transport import TransportPlan, iterations, solve_transport, solve_transport_both_ways

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def naive_sinkhorn(cost, mask, entropy, *, steps, stop=None):
    """Textbook log-domain loop from zero potentials, in float64; returns the plan and the iterations done."""
    rows, columns = cost.shape
    logits = torch.where(mask.bool(), -cost.double() / entropy, -torch.inf)
    u, v = torch.zeros(rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
    log_a, log_b = -torch.log(torch.tensor(float(rows)).double()), -torch.log(torch.tensor(float(columns)).double())
    for done in range(1, steps + 1):
        before = u
        u = log_a - torch.logsumexp(logits + v, 1)
        v = log_b - torch.logsumexp(logits + u[:, None], 0)
        if done == steps or (stop is not None and entropy * (u - before).abs().sum() < stop):
            return torch.exp(logits + u[:, None] + v), done


def batch_cost(n, forget, seed=0, width=16):
    """Cost (N, N+1) of random unit embeddings, pairs pulled together, and the mask of the unlearning phase."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.nn.functional.normalize(  # noqa: E731
        torch.randn(n, width, generator=generator, dtype=torch.float64), dim=1
    )
    image, negative = draw(), draw()
    text = torch.nn.functional.normalize(0.5 * image + draw(), dim=1)
    similarity = torch.cat([image @ text.T, (image * negative).sum(1, keepdim=True)], 1)
    mask = torch.ones(n, n + 1, dtype=torch.bool)
    mask[:, n] = False
    mask[forget, n] = True
    mask[forget, forget] = False
    return 1 - similarity, mask


def over(limit):
    return lambda kernel, u, v: torch.maximum(u.amax(-1), v.amax(-1)) > limit


def l1(a, b):
    return (a - b).abs().sum().item()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "forget"), [(3, [1]), (37, [0, 5, 36]), (64, list(range(25)))])
def test_released_rule_follows_the_textbook_loop(n, forget, transposed):
    cost, mask = batch_cost(n, forget)
    cost = cost / cost.max()
    if transposed:
        cost, mask = cost.T, mask.T
    expected, done = naive_sinkhorn(cost, mask, 0.03, steps=100, stop=1e-4)
    result = solve_transport(cost, mask)
    assert result.iterations == done
    assert result.converged == (done < 100)
    torch.testing.assert_close(result.plan, expected, rtol=1e-9, atol=1e-14)
    single = solve_transport(cost.float(), mask)
    assert single.plan.dtype == torch.float32
    torch.testing.assert_close(single.plan.double(), expected, rtol=1e-4, atol=3e-6 * expected.max().item())


@pytest.mark.parametrize("entropy", [0.03, 0.003])
def test_plain_iterations_survive_absorption_and_blocks(entropy, monkeypatch):
    cost, mask = batch_cost(41, [0, 3, 9])
    expected, _ = naive_sinkhorn(cost, mask, entropy, steps=57)
    options = {"entropy": entropy, "tolerance": 0.0, "max_iterations": 57}
    ordinary = solve_transport(cost, mask, **options)
    torch.testing.assert_close(ordinary.plan, expected, rtol=1e-8, atol=1e-14)
    single = solve_transport(cost.float(), mask, **options)
    assert l1(single.plan.double(), expected) < 1e-3
    # A limit so low that the kernel absorbs all the time must not change the iterates.
    absorbed, absorb = [], iterations.ScaledKernel.absorb
    monkeypatch.setattr(iterations.ScaledKernel, "absorb", lambda kernel: absorbed.append(1) or absorb(kernel))
    monkeypatch.setattr(iterations.ScaledKernel, "over_limit", over(1.5))
    eager = solve_transport(cost, mask, **options)
    assert len(absorbed) > 3
    assert eager.iterations == 57
    torch.testing.assert_close(eager.plan, expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("limit", [None, 30.0, 1.5], ids=["", "apart", "absorbing"])
@pytest.mark.parametrize("entropy", [0.2, 0.03, 0.003])
def test_both_ways_are_two_solutions(entropy, limit, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(iterations.ScaledKernel, "over_limit", over(limit))
    cost, mask = batch_cost(41, [0, 3, 9])
    rows_first, columns_first = solve_transport_both_ways(cost, mask, entropy=entropy)
    for result, expected in (
        (rows_first, solve_transport(cost, mask, entropy=entropy)),
        (columns_first, solve_transport(cost.T, mask.T, entropy=entropy)),
    ):
        plan = expected.plan if result is rows_first else expected.plan.T
        torch.testing.assert_close(result.plan, plan, rtol=1e-8, atol=1e-14)
        assert (result.iterations, result.converged) == (expected.iterations, expected.converged)
    assert entropy != 0.2 or 1 < columns_first.iterations != rows_first.iterations < 100
    torch.testing.assert_close(columns_first.row_error, solve_transport(cost.T, mask.T, entropy=entropy).column_error)


@pytest.mark.parametrize("stop", ["potential", "marginal"])
def test_result_does_not_depend_on_how_often_the_host_looks(stop, monkeypatch):
    cost, mask = batch_cost(33, [2, 4])
    one = solve_transport(cost, mask, stop=stop, tolerance=1e-3)
    original = iterations._until_flagged
    monkeypatch.setattr(
        iterations, "_until_flagged", lambda step, limit, *_, **__: original(step, limit, torch.device("meta"), 7)
    )
    blocks = solve_transport(cost, mask, stop=stop, tolerance=1e-3)
    assert torch.equal(one.plan, blocks.plan)
    assert one.iterations == blocks.iterations or stop == "marginal"  # the work of frozen steps counts there


@pytest.mark.parametrize("entropy", [0.2, 0.03])
@pytest.mark.parametrize("limit", [None, 1.5], ids=["", "absorbing"])
def test_result_does_not_depend_on_how_many_iterations_are_judged_at_once(entropy, limit, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(iterations.ScaledKernel, "over_limit", over(limit))
    cost, mask = batch_cost(33, [2, 4])
    found = []
    for block in (1, 3, 10, 1000):
        monkeypatch.setattr(iterations, "_BLOCK", block)
        found.append(solve_transport_both_ways(cost, mask, entropy=entropy))
    for result, *others in zip(*found, strict=True):
        for other in others:
            assert torch.equal(other.plan, result.plan) and other.iterations == result.iterations


def test_an_iteration_of_both_solutions_is_one_sum_over_the_processes():
    class Counting(Shard):
        def sum(self, value):
            calls.append("sum")
            return value

        def largest(self, value):
            calls.append("largest")
            return value

    calls, (cost, mask) = [], batch_cost(33, [2, 4])
    assert [result.iterations for result in solve_transport_both_ways(cost, mask, shard=Counting((33,)))] == [100, 100]
    # Beside them one sum and one maximum a block of ten, and a few to begin and to end with.
    assert calls.count("sum") <= 100 + 10 + 12 and calls.count("largest") <= 10 + 3


def test_an_accelerator_is_asked_for_the_flag_of_a_block_when_the_next_is_on_its_way(monkeypatch):
    steps, waits = [], []

    def look(flag):
        asked = len(steps)
        return lambda: waits.append((asked, len(steps))) or bool(flag)

    def step():
        steps.append(len(steps) + 1)
        return torch.tensor(steps[-1] > 23)

    monkeypatch.setattr(iterations, "_look", look)
    iterations._until_flagged(step, 100, torch.device("meta"), 10)
    assert waits == [(10, 20), (20, 30), (30, 40)]
    steps.clear(), waits.clear()
    iterations._until_flagged(step, 100, torch.device("cpu"))
    assert len(steps) == 24 and waits == [(n, n) for n in range(1, 25)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [5, 65])
def test_marginal_rule_converges_and_says_so(n, dtype):
    cost, mask = batch_cost(n, [0, 1])
    result = solve_transport(cost.to(dtype), mask, stop="marginal")
    assert result.converged
    plan = result.plan.double()
    assert l1(plan.sum(1), torch.full((n,), 1 / n)) <= 1.2e-6
    assert l1(plan.sum(0), torch.full((n + 1,), 1 / (n + 1))) <= 1.2e-6
    assert result.row_error <= 1e-6
    assert result.column_error <= 1e-6
    assert (result.plan[~mask] == 0).all()
    exact = solve_transport(cost, mask, stop="marginal", tolerance=1e-12)
    assert exact.converged
    expected, _ = naive_sinkhorn(cost, mask, 0.03, steps=12000)
    torch.testing.assert_close(exact.plan, expected, rtol=1e-8, atol=1e-13)


def test_marginal_rule_needs_less_work_than_plain_iterations():
    cost, mask = batch_cost(200, range(20))
    fast = solve_transport(cost, mask, stop="marginal")
    plain = solve_transport(cost, mask, tolerance=0.0, max_iterations=2 * fast.iterations)
    assert fast.converged
    assert plain.row_error > 1e-6 >= fast.row_error


def test_gives_up_honestly():
    cost, mask = batch_cost(64, range(6))
    short = solve_transport(cost, mask, stop="marginal", max_iterations=5)
    assert not short.converged
    assert short.row_error > 1e-6
    torch.testing.assert_close(short.row_error, (short.plan.sum(1) - 1 / 64).abs().sum())
    impossible = solve_transport(cost.float(), mask, stop="marginal", tolerance=1e-12)
    assert not impossible.converged
    assert impossible.row_error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entropy", [0.03, 0.001])
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_pot(entropy, masked, dtype):
    ot = pytest.importorskip("ot", reason="POT is a test-only dependency")
    generator = torch.Generator().manual_seed(3)
    cost = 2 * torch.rand(24, 25, generator=generator, dtype=torch.float64)
    mask = torch.rand(24, 25, generator=generator) > (0.2 if masked else -1.0)
    expected = ot.bregman.sinkhorn_log(
        [], [], torch.where(mask, cost, 1e4).numpy(), entropy, numItermax=300_000, stopThr=1e-10, warn=False
    )
    result = solve_transport(
        cost.to(dtype), mask, entropy=entropy, stop="marginal", tolerance=1e-11 if dtype == torch.float64 else 1e-6
    )
    assert result.converged
    bound = 1e-7 if dtype == torch.float64 else 1e-3 if entropy < 0.01 else 2e-5
    assert l1(result.plan.double(), torch.from_numpy(expected)) < bound


def test_own_marginals_are_met_and_rescaled():
    cost, mask = batch_cost(30, range(5))
    generator = torch.Generator().manual_seed(1)
    # Near uniform: the last column must stay within what the five open rows can supply.
    a = 1 + 0.1 * torch.rand(30, generator=generator, dtype=torch.float64)
    b = 1 + 0.1 * torch.rand(31, generator=generator, dtype=torch.float64)
    result = solve_transport(cost, mask, row_marginals=7 * a, column_marginals=b, stop="marginal", tolerance=1e-10)
    assert result.converged
    assert l1(result.plan.sum(1), a / a.sum()) < 1e-9
    assert l1(result.plan.sum(0), b / b.sum()) < 1e-9


def test_permuting_the_batch_permutes_the_plan():
    cost, mask = batch_cost(29, [1, 2])
    order, columns = torch.randperm(29), torch.randperm(30)
    plan = solve_transport(cost, mask, stop="marginal", tolerance=1e-11).plan
    permuted = solve_transport(cost[order][:, columns], mask[order][:, columns], stop="marginal", tolerance=1e-11).plan
    torch.testing.assert_close(permuted, plan[order][:, columns], rtol=1e-7, atol=1e-12)


def test_transposing_the_problem_transposes_the_converged_plan():
    cost, mask = batch_cost(29, [1, 2])
    plan = solve_transport(cost, mask, stop="marginal", tolerance=1e-12).plan
    transposed = solve_transport(cost.T, mask.T, stop="marginal", tolerance=1e-12).plan
    torch.testing.assert_close(transposed.T, plan, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("stop", ["potential", "marginal"])
def test_a_constant_added_to_the_cost_changes_nothing_converged(stop):
    cost, mask = batch_cost(20, [1, 2])
    low = solve_transport(cost - 1.3, mask, stop=stop, max_iterations=1000, tolerance=1e-10)
    high = solve_transport(cost + 1.3, mask, stop=stop, max_iterations=1000, tolerance=1e-10)
    torch.testing.assert_close(low.plan, high.plan, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("stop", ["potential", "marginal"])
def test_nothing_to_forget_solves_over_the_first_columns(stop):
    cost, mask = batch_cost(17, [])
    result = solve_transport(cost, mask, stop=stop)
    inner = solve_transport(cost[:, :17], stop=stop)
    assert (result.plan[:, 17] == 0).all()
    torch.testing.assert_close(result.plan[:, :17], inner.plan, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.plan.sum(0)[:17], torch.full((17,), 1 / 17).double(), atol=1e-6, rtol=0)
    assert result.column_error < 1e-6


@pytest.mark.parametrize("stop", ["potential", "marginal"])
def test_closed_rows_are_dropped_too(stop):
    cost, mask = batch_cost(17, [3])
    mask[4] = False
    result = solve_transport(cost, mask, stop=stop)
    keep = torch.arange(17) != 4
    inner = solve_transport(cost[keep], mask[keep], stop=stop)
    assert (result.plan[4] == 0).all()
    torch.testing.assert_close(result.plan[keep], inner.plan, rtol=1e-9, atol=1e-12)
    assert result.converged == inner.converged


@pytest.mark.parametrize("stop", ["potential", "marginal"])
@pytest.mark.parametrize(("forget", "expected"), [([], [[1.0, 0.0]]), ([0], [[0.0, 1.0]])])
def test_batch_of_one(forget, expected, stop):
    cost, mask = batch_cost(1, forget)
    result = solve_transport(cost, mask, stop=stop)
    assert result.plan.tolist() == [pytest.approx(row) for row in expected]
    assert result.converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_pair_forgotten(dtype):
    cost, mask = batch_cost(23, range(23))
    result = solve_transport(cost.to(dtype), mask, stop="marginal")
    assert result.converged
    assert (result.plan.diagonal() == 0).all()
    assert result.plan[:, 23].sum().item() == pytest.approx(1 / 24, abs=1e-6)


@pytest.mark.parametrize("stop", ["potential", "marginal"])
def test_duplicates_and_extreme_similarities_get_equal_shares(stop):
    cost, mask = batch_cost(12, [11])
    cost[1], cost[:, 1] = cost[0], cost[:, 0]
    cost[1, 1] = cost[0, 1] = cost[1, 0] = cost[0, 0]
    cost[5, 5], cost[6, 6] = 0.0, 2.0  # similarity 1 and -1
    result = solve_transport(cost.float(), mask, stop=stop)
    assert result.plan.isfinite().all()
    torch.testing.assert_close(result.plan[0], result.plan[1])
    torch.testing.assert_close(result.plan[:, 0], result.plan[:, 1])
    assert result.plan[5].argmax() == 5
    constant = solve_transport(torch.full((6, 4), 0.7), stop=stop)
    torch.testing.assert_close(constant.plan, torch.full((6, 4), 1 / 24))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stop", ["potential", "marginal"])
@pytest.mark.parametrize("entropy", [0.03, 0.001])
def test_infeasible_masks_are_reported_not_hidden(entropy, stop, dtype):
    cost, _ = batch_cost(6, [])
    mask = torch.ones(6, 7, dtype=torch.bool)
    mask[1:, :2] = False  # row 0 holds 1/6, but columns 0 and 1 ask it for 2/7
    result = solve_transport(cost.to(dtype), mask, stop=stop, entropy=entropy, max_iterations=400)
    assert result.plan.isfinite().all()
    assert (result.plan[~mask] == 0).all()
    assert not result.converged
    assert max(result.row_error, result.column_error) > 0.05
    torch.testing.assert_close(result.row_error, (result.plan.sum(1) - 1 / 6).abs().sum())
    torch.testing.assert_close(result.column_error, (result.plan.sum(0) - 1 / 7).abs().sum(), atol=1e-6, rtol=1e-4)


def test_a_cell_that_is_open_but_can_hold_nothing():
    # Row 1 has to fill column 0 alone, so the open cell (0, 0) must end at 0: no finite potentials exist.
    result = solve_transport(torch.zeros(2, 2), torch.tensor([[1, 1], [1, 0]]), stop="marginal")
    assert result.converged
    torch.testing.assert_close(result.plan, torch.tensor([[0.0, 0.5], [0.5, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(dtype):
    cost, mask = batch_cost(20, [3])
    result = solve_transport(cost.to(dtype), mask)
    assert result.plan.dtype == torch.float32
    assert torch.equal(result.plan, solve_transport(cost.to(dtype).float(), mask).plan)


@pytest.mark.parametrize("stop", ["potential", "marginal"])
def test_autocast_does_not_lower_the_precision(stop):
    cost, mask = batch_cost(20, [3])
    expected = solve_transport(cost.float(), mask, stop=stop)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = solve_transport(cost.float(), mask, stop=stop)
    assert torch.equal(result.plan, expected.plan)


def test_is_detached_and_leaves_its_inputs_alone():
    cost, mask = batch_cost(9, [3])
    cost.requires_grad_()
    before = cost.detach().clone()
    result = solve_transport(cost, mask.double())
    assert isinstance(result, TransportPlan)
    assert not result.plan.requires_grad
    assert torch.equal(cost, before)
    assert torch.equal(result.plan, solve_transport(cost, mask).plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entropy": 0.0}, "entropy"),
        ({"entropy": -0.03}, "entropy"),
        ({"entropy": float("nan")}, "entropy"),
        ({"tolerance": -1e-6}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"stop": "marginals"}, "marginal"),
        ({"cost": torch.zeros(3)}, "matrix"),
        ({"cost": torch.zeros(0, 1)}, "matrix"),
        ({"cost": torch.zeros(3, 4, dtype=torch.long)}, "float"),
        ({"cost": torch.tensor([[0.0, float("nan")]])}, "finite"),
        ({"cost": torch.tensor([[0.0, float("inf")]])}, "finite"),
        ({"cost": torch.tensor([[0.0, float("-inf")]])}, "finite"),
        ({"mask": torch.ones(4, 3)}, "mask has shape"),
        ({"mask": torch.full((3, 4), 0.5)}, "0 .* and 1"),
        ({"mask": torch.zeros(3, 4)}, "closes every cell"),
        ({"row_marginals": torch.ones(4)}, "row_marginals has shape"),
        ({"column_marginals": torch.ones(3)}, "column_marginals has shape"),
        ({"row_marginals": torch.tensor([1.0, 0.0, 1.0])}, "row_marginals must be positive"),
        ({"column_marginals": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "column_marginals must be positive"),
        ({"row_marginals": torch.tensor([1.0, float("nan"), 1.0])}, "row_marginals must be positive"),
    ],
)
def test_rejects_what_cannot_work(change, message):
    with pytest.raises(ValueError, match=message):
        solve_transport(**({"cost": torch.zeros(3, 4)} | change))


@pytest.mark.slow
@pytest.mark.parametrize("entropy", [0.03, 0.01])
def test_float32_at_full_size(entropy):
    cost, mask = batch_cost(4096, range(400), width=256)
    result = solve_transport(cost.float(), mask, entropy=entropy, stop="marginal")
    assert result.converged
    assert l1(result.plan.double().sum(1), torch.full((4096,), 1 / 4096)) < 1.5e-6
    exact = solve_transport(cost, mask, entropy=entropy, stop="marginal", tolerance=1e-10)
    assert l1(result.plan.double(), exact.plan) < 1e-4


def golden(name, formulation):
    """A reference case: cost, mask and the stored tensors."""
    path = GOLDEN / f"{formulation}_losses.safetensors"
    if not path.exists():
        pytest.skip("the reference tensors are not beside this clone")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert name in json.loads(file.metadata()["cases"])
        keys = [key for key in file.keys() if key.startswith(f"{name}.")]  # noqa: SIM118 (the file is no mapping)
        stored = {key.removeprefix(f"{name}."): file.get_tensor(key) for key in keys}
    similarity = torch.cat(
        [stored["image"] @ stored["text"].T, (stored["image"] * stored["negative"]).sum(1, keepdim=True)], 1
    )
    forget, n = stored["hn.forget_ids"], len(similarity)
    mask = torch.ones(n, n + 1, dtype=torch.bool)
    mask[:, n] = False
    mask[forget, n] = True
    mask[forget, forget] = False
    return 1 - similarity, mask, stored


@pytest.mark.parametrize("name", ["small", "odd", "cold"])
def test_reproduces_the_released_plans(name):
    cost, mask, stored = golden(name, "released")
    cost = cost / cost.max()
    for plan, key in [
        (solve_transport(cost, mask).plan, "ul.plan_v2t"),
        (solve_transport(cost.T, mask.T).plan, "ul.plan_t2v"),
    ]:
        assert ((plan - stored[key]).abs().max() / stored[key].max()).item() < 1e-9


@pytest.mark.parametrize("name", ["small", "odd", "cold"])
def test_reproduces_the_converged_plan(name):
    cost, mask, stored = golden(name, "paper")
    result = solve_transport(cost, mask, stop="marginal", tolerance=1e-12)
    assert result.converged
    torch.testing.assert_close(result.plan, stored["ul.plan"], rtol=1e-8, atol=1e-14)
