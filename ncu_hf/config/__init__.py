"""Every setting of a run, with its default and the source of the default. Stated here and nowhere else."""

from ncu_hf.config.data import DataArguments
from ncu_hf.config.method import FORGET_TARGETS, FORMULATIONS, MethodArguments
from ncu_hf.config.model import TOWERS, ModelArguments
from ncu_hf.config.training import GLOBAL_BATCH_SIZE, NCUTrainingArguments, share_batch

__all__ = [
    "FORGET_TARGETS",
    "FORMULATIONS",
    "GLOBAL_BATCH_SIZE",
    "TOWERS",
    "DataArguments",
    "MethodArguments",
    "ModelArguments",
    "NCUTrainingArguments",
    "share_batch",
]
