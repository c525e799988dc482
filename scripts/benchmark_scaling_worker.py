"""One process of `benchmark.py scaling`; started by it, with its settings as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from benchmark_embeds import clip_like_embeds  # noqa: E402
from benchmark_objective import peak_bytes, reference  # noqa: E402
from benchmark_step import make_setting  # noqa: E402
from benchmark_timing import Row, medians  # noqa: E402
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from ncu_hf.config import MethodArguments  # noqa: E402
from ncu_hf.distributed import Shard, leave, world  # noqa: E402
from ncu_hf.objectives.unlearning import UnlearningObjective  # noqa: E402
from ncu_hf.step import split_rows, total_loss, two_stage_backward  # noqa: E402

_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")


@contextmanager
def timed_collectives(device: torch.device) -> Iterator[list[float]]:
    """Seconds of each collective that the losses call meanwhile. On a GPU it is waited for before and after."""
    seconds: list[float] = []
    originals = {name: getattr(dist, name) for name in _COLLECTIVES}

    def timed(call: Callable) -> Callable:
        def run(*args, **kwargs):
            wait(device)
            started = time.perf_counter()
            result = call(*args, **kwargs)
            wait(device)
            seconds.append(time.perf_counter() - started)
            return result

        return run

    for name, call in originals.items():
        setattr(dist, name, timed(call))
    try:
        yield seconds
    finally:
        for name, call in originals.items():
            setattr(dist, name, call)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_step(options: argparse.Namespace) -> Row:
    """A whole step of phase 2 under `DistributedDataParallel`, with and without the exchange of gradients."""
    setting = make_setting(options, options.rows)
    objective = setting.objective()
    model = setting.lean_model(objective)
    ids = [options.device] if options.device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=ids)
    reduced: list[int] = []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def exchange(_state, bucket):  # without annotations, which DistributedDataParallel would compare with its own
        reduced.append(bucket.buffer().numel())
        return default_hooks.allreduce_hook(None, bucket)

    wrapped.register_comm_hook(None, exchange)

    def step(context: Callable[[], AbstractContextManager]) -> None:
        chunks = split_rows(setting.batch, options.chunk, setting.lengths(setting.batch))
        with context():
            two_stage_backward(
                lambda chunk: setting.encode(wrapped, chunk),
                chunks,
                objective,
                backward=lambda loss: loss.backward(),
                check=lambda loss: None,
                no_sync=wrapped.no_sync,
                shard=Shard.of(len(setting.batch["input_ids"]), options.device),
                sharded=objective.sharded,
            )
        optimizer.step()
        optimizer.zero_grad()

    step(nullcontext)
    reduced.clear()
    step(nullcontext)
    all_reduces = sum(reduced) / sum(parameter.numel() for parameter in trained)
    calls = {"with": lambda: step(nullcontext), "without": lambda: step(wrapped.no_sync)}
    seconds = medians(calls, options.repeats, options.device)
    with timed_collectives(options.device) as collectives:
        step(wrapped.no_sync)
    return {
        "ms": 1e3 * seconds["with"],
        "without_gradient_exchange_ms": 1e3 * seconds["without"],
        "collectives_ms": 1e3 * sum(collectives),
        "gradient_all_reduces": all_reduces,
    }


def measure_losses(options: argparse.Namespace) -> Row:
    """The losses of phase 2 and their gradient, each process with its rows of one batch."""
    rank, processes = world()
    shard = Shard((options.rows,) * processes, rank)
    objective = UnlearningObjective(MethodArguments())
    leaves = [rows[shard.rows].to(options.device).requires_grad_() for rows in clip_like_embeds(shard.n)]
    leaves.append(torch.tensor(100.0, device=options.device).log().requires_grad_())

    def losses() -> None:
        torch.autograd.grad(total_loss(objective(*leaves, shard)), leaves)

    seconds = medians({"losses": losses}, options.repeats, options.device)
    with timed_collectives(options.device) as collectives:
        losses()
    return {
        "ms": 1e3 * seconds["losses"],
        "collectives_ms": 1e3 * sum(collectives),
        "peak_bytes": peak_bytes(losses, leaves),
    }


def measure_reference(options: argparse.Namespace) -> Row:
    """Memory of the released structure, which every process needs in full."""
    leaves = [rows.to(options.device).requires_grad_() for rows in clip_like_embeds(options.rows)]
    leaves.append(torch.tensor(100.0, device=options.device).log().requires_grad_())
    return {"peak_bytes": peak_bytes(lambda: reference(leaves, MethodArguments().forget_ratio), leaves)}


def main() -> None:
    options = argparse.Namespace(**json.loads(sys.argv[1]))
    cuda = options.device == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo")
    options.device = torch.device("cuda", dist.get_rank()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(options.device)
    parts = {"step": measure_step, "losses": measure_losses, "reference": measure_reference}
    found = parts[options.part](options)
    if dist.get_rank() == 0:
        Path(options.report).write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
