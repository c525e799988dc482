"""Gradients of a step with whole and with sharded weights, where the processes cut their captions in unlike ways.

    sharded_step.py OUTPUT.json

OUTPUT (rank 0) holds, for each phase and chunk size, the largest difference of a gradient over the largest of its
entries, the bytes of weights that each process holds between two steps over those of the model, and how many batches of
captions each process encodes.
"""

import json
import sys
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import CLIPConfig, CLIPModel

from ncu_hf.config import MethodArguments
from ncu_hf.distributed import Shard, gather_json, leave, world
from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.objectives import build_objectives
from ncu_hf.parameters import freeze
from ncu_hf.sharding import ShardedWeights, full
from ncu_hf.step import split_rows, two_stage_backward
from ncu_hf.text_batches import caption_lengths

START, END, ROWS, LONGEST = 118, 119, 96, 24


def make_model(phase: int) -> tuple[NCUModel, object]:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {"num_hidden_layers": 3, "vocab_size": 120, "max_position_embeddings": 40}
    vision = {"num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    ends = {"eos_token_id": END, "bos_token_id": START}
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=tower | text | ends, vision_config=tower | vision, projection_dim=16))
    prompt = NegativePrompt(NegativePromptConfig.of(clip.config.text_config, 4, 2))
    objective = build_objectives(MethodArguments(negative_rank=2, forget_ratio=0.3))[phase]
    model = NCUModel(clip, prompt).train()
    freeze(model, objective)
    return model, objective


def make_batch(rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(1, START, (ROWS, LONGEST), generator=generator)
    # All captions of the first process are short; those of the others have all lengths.
    lengths = torch.randint(3, LONGEST + 1, (ROWS,), generator=generator) if rank else torch.full((ROWS,), 4)
    ids[torch.arange(LONGEST) >= lengths[:, None] - 1] = END
    ids[:, 0] = START
    return {"pixel_values": torch.randn(ROWS, 3, 16, 16, generator=generator), "input_ids": ids}


def gradients(phase: int, chunk_size: int | None, sharded: bool) -> tuple[dict[str, torch.Tensor], float, int]:
    model, objective = make_model(phase)
    weights = ShardedWeights(model, torch.device("cpu")) if sharded else None
    calls = []
    model.clip.text_model.register_forward_hook(lambda *_: calls.append(1))

    def encode(chunk: dict[str, torch.Tensor]):
        ids = chunk.get("input_ids")
        lengths = None if ids is None else caption_lengths(ids, END)
        return model(chunk["pixel_values"], ids, ids, lengths, lengths)

    batch = make_batch(world()[0])
    # In chunks, those of the first process all have captions, and the last one of the others has none.
    chunks = split_rows(batch, chunk_size, caption_lengths(batch["input_ids"], END))
    assert chunk_size is None or ("input_ids" in chunks.parts[-1]) == (world()[0] == 0)
    two_stage_backward(
        encode,
        chunks,
        objective,
        backward=lambda loss: loss.backward(),
        check=lambda loss: None,
        shard=Shard.of(len(batch["input_ids"]), torch.device("cpu")),
        sharded=True,
        **({"no_sync": weights.no_sync} if sharded else {}),
    )
    if weights is not None:
        weights.release()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[name] = full(parameter.grad)
            if not sharded:
                dist.all_reduce(found[name])
                found[name] /= world()[1]
    local = (p.to_local() if isinstance(p, DTensor) else p for p in chain(model.parameters(), model.buffers()))
    return found, sum(tensor.nbytes for tensor in local), len(calls)


def main() -> None:
    dist.init_process_group("gloo")
    results = {}
    for phase in (0, 1):
        for chunk_size in (None, 64):
            expected, whole, _ = gradients(phase, chunk_size, sharded=False)
            found, held, calls = gradients(phase, chunk_size, sharded=True)
            assert found.keys() == expected.keys()
            worst = max(
                ((found[n] - g).abs().max() / g.abs().max().clamp(min=1e-8)).item() for n, g in expected.items()
            )
            numbers = {"held": held / whole, "calls": calls}
            results[f"{phase}.{chunk_size}"] = {
                "difference": worst,
                "processes": gather_json(numbers, torch.device("cpu")),
            }
    if world()[0] == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))


main()
leave()
