"""Loss, statistics and gradients of sharded objectives, each process with its rows of one batch.

    shards.py INPUT.safetensors OUTPUT.safetensors SIZE[,SIZE...] METHOD...

INPUT holds `image`, `text`, `negative` (N, D) and `log_scale`; SIZEs are the rows of each process. OUTPUT (rank 0)
holds, of every phase of the methods in each formulation and with each of `OPTIONS`, what the objective returns, and the
gradient with respect to each input; `peak.<formulation>`, the most bytes that phase 2 of `ncu` takes on a process; and
the iterations of its `released` plan, and how many vectors were all-reduced.
"""

import itertools
import sys
from collections import Counter

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from ncu_hf.config import FORMULATIONS, MethodArguments
from ncu_hf.distributed import Shard, leave, world
from ncu_hf.objectives import METHODS
from ncu_hf.planning.memory import LiveBytes
from ncu_hf.step import total_loss

OPTIONS = {
    "": {},
    "none": {"forget_target": "none", "forget_window": 3},
    "all_kept": {"forget_ratio": 0.0},
}


def outputs(objective, inputs: dict[str, torch.Tensor], shard: Shard) -> dict[str, torch.Tensor]:
    """What the objective returns, and its gradients with respect to all rows."""
    found, (*rows, scale_gradient) = objective_gradients(objective, *own_rows(inputs, shard), shard)
    gradients = {name: shard.all_rows(gradient) for name, gradient in zip("vtn", rows, strict=True)}
    statistics = {key: value.detach().clone() for key, value in found.items()}
    return statistics | gradients | {"s": shard.sum(scale_gradient).clone()}


def own_rows(inputs: dict[str, torch.Tensor], shard: Shard) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What an objective takes: embeddings of this process, and the scale."""
    leaves = [inputs[name][shard.rows].clone().requires_grad_() for name in ("image", "text", "negative")]
    return leaves, inputs["log_scale"].clone().requires_grad_()


def objective_gradients(objective, leaves: list[torch.Tensor], scale: torch.Tensor, shard: Shard) -> tuple:
    found = objective(*leaves, scale, shard)
    options = {"allow_unused": True, "materialize_grads": True}
    return found, torch.autograd.grad(total_loss(found), [*leaves, scale], **options)


def peak(formulation: str, inputs: dict[str, torch.Tensor], shard: Shard) -> torch.Tensor:
    leaves, scale = own_rows(inputs, shard)
    with LiveBytes(leaves) as live:
        objective_gradients(phase_2(formulation), leaves, scale, shard)
    return shard.largest(torch.tensor(float(live.peak)))


def phase_2(formulation: str):
    return METHODS["ncu"][1](MethodArguments(formulation=formulation, forget_ratio=0.3))


def main() -> None:
    inputs, sizes = load_file(sys.argv[1]), tuple(map(int, sys.argv[3].split(",")))
    if len(sizes) > 1:
        dist.init_process_group("gloo")
    shard, found = Shard(sizes, world()[0]), {}
    for method, formulation, option in itertools.product(sys.argv[4:], FORMULATIONS, OPTIONS):
        arguments = MethodArguments(**{"formulation": formulation, "forget_ratio": 0.3} | OPTIONS[option])
        for phase, kind in enumerate(METHODS[method]):
            objective = kind(arguments)
            if arguments.forget_window > 1:
                outputs(objective, inputs, shard)  # the window remembers this batch
            for key, value in outputs(objective, inputs, shard).items():
                found[f"{method}.{phase}.{formulation}.{option}.{key}"] = value
    found |= {f"peak.{formulation}": peak(formulation, inputs, shard) for formulation in FORMULATIONS}
    reduced = Counter()
    if len(sizes) > 1:
        all_reduce = dist.all_reduce

        def counted(tensor: torch.Tensor, *rest, **options):
            reduced[tensor.shape[-1] if tensor.dim() else 1] += 1
            return all_reduce(tensor, *rest, **options)

        dist.all_reduce = counted
    found["plan_iterations"] = outputs(phase_2("released"), inputs, shard)["plan_iterations"]
    found["reduced_vectors"] = torch.tensor(reduced[shard.n + 1])
    if world()[0] == 0:
        save_file(found, sys.argv[2])


main()
leave()
