"""Gradient of the first step of every phase of a method, as the trainer hands it to the optimizer.

    gradients.py OUTPUT_FOLDER CHUNK_SIZE[,CHUNK_SIZE...] [flags of a recipe ...]

Writes OUTPUT_FOLDER/<phase>.<dtype>.<chunk size>.safetensors (rank 0): the gradient of every parameter that trains; and
with several processes <...>.json: how many numbers `DistributedDataParallel` has reduced, and how many train.
"""

import copy
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from ncu_hf.cli import parse_arguments
from ncu_hf.data import DataHealth, open_pairs
from ncu_hf.distributed import leave
from ncu_hf.loading import load_reference
from ncu_hf.objectives import build_objectives
from ncu_hf.phases import build_model, load_pairs, phase_arguments, sample_state
from ncu_hf.run import Run
from ncu_hf.trainer import NCUTrainer
from ncu_hf.workspace import Workspace


class Counted(DistributedDataParallel):
    """Counts what it reduces."""

    reduced = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Counted.reduced = 0
        self.register_comm_hook(None, Counted.count)

    @staticmethod
    def count(state, bucket):
        Counted.reduced += bucket.buffer().numel()
        return default_hooks.allreduce_hook(None, bucket)


class Capture(TrainerCallback):
    def __init__(self, path: Path):
        self.path = path

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        if args.process_index == 0:
            save_file(gradients, self.path)
        if args.process_index == 0 and args.world_size > 1:
            trained = sum(gradient.numel() for gradient in gradients.values())
            self.path.with_suffix(".json").write_text(json.dumps({"reduced": Counted.reduced, "trained": trained}))


def main() -> None:
    torch.nn.parallel.DistributedDataParallel = Counted  # the one that accelerate wraps the model in
    output, chunk_sizes = Path(sys.argv[1]), sys.argv[2].split(",")
    arguments, _ = parse_arguments(sys.argv[3:])
    arguments.training.disable_tqdm = True
    arguments.training.device  # noqa: B018 (starts the process group)
    data = arguments.data
    source = open_pairs(data.train_data, image_column=data.image_column, caption_column=data.caption_column)
    reference = load_reference(arguments.model, list, 0, Path("unused"))
    run = Run(arguments, Workspace(output / "work"), source, reference)
    for objective, dtype, chunk_size in itertools.product(
        build_objectives(arguments.method), ("float32", "float64"), chunk_sizes
    ):
        torch.manual_seed(0)
        model = build_model(run, objective, copy.deepcopy(reference.clip), None).to(getattr(torch, dtype))
        settings = phase_arguments(run, objective, output / "work" / objective.phase)
        settings.max_steps, settings.save_strategy, settings.chunk_size = 1, "no", int(chunk_size) or None
        samples = sample_state(run, objective)
        trainer = NCUTrainer(
            model,
            settings,
            objective,
            partial(load_pairs, run, objective, samples),
            None,
            run.batches_per_epoch(),
            reference.processor,
            DataHealth(),
            arguments.model.adapted_towers,
            samples,
            callbacks=[Capture(output / f"{objective.phase}.{dtype}.{chunk_size}.safetensors")],
        )
        trainer.train()


main()
leave()
