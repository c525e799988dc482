"""Ranks of a retrieval whose work all processes share.

    ranks.py INPUT.safetensors QUERY_CHUNK OUTPUT_FOLDER

Every process writes OUTPUT_FOLDER/<its rank>.safetensors: `ranks`, and `worked`, how many queries it took itself.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ncu_hf.distributed import leave, world
from ncu_hf.evaluation import retrieval

inputs, query_chunk, output = load_file(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
chunk_ranks, worked = retrieval._chunk_ranks, [0]


def counted(queries, *rest):
    worked[0] += len(queries[0])
    return chunk_ranks(queries, *rest)


retrieval._chunk_ranks = counted
ranks = retrieval.retrieval_ranks(**inputs, query_chunk=query_chunk, candidate_chunk=7, shared=True)
save_file({"ranks": ranks, "worked": torch.tensor(worked)}, output / f"{world()[0]}.safetensors")
leave()
