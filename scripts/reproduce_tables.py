"""What each table and figure of the paper is made of: which models, measured on which sets. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from ncu_hf.errors import InputError

DATA_LABELS = {"cc3m": "CC3M", "cc12m": "CC12M", "yfcc15m-r": "YFCC15M-R"}
ARCHITECTURE_LABELS = {"vit-b-16": "ViT-B/16", "vit-b-32": "ViT-B/32"}

REFERENCE, NCU = "clip", "ncu"
# Epochs where they are not the recipe's 8: the baselines have one phase, and get as many steps as NCU's 2 + 8.
EPOCHS = {"gradient_ascent": 10, "softclip": 10}
# Pairs of CC3M. The end of the curve, 3 M in the paper, is the whole set, hence the model of the tables.
SUBSETS = (500_000, 1_000_000, 1_500_000, 2_000_000, 2_500_000)
# Where Figure 4 gets its two curves from.
ACCURACY_SET, RECALL_SET = "imagenet1k", "mscoco_5k"
# What Figure 5 is drawn from: no set of the registry, its tars are fetched.
VALIDATION = "cc3m-validation"

# Training data and architecture of a reference model.
Row = tuple[str, str]


@dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Args:
        shows (`str`): What it shows.
        rows (`tuple[Row, ...]`): Its reference models.
        suite (`tuple[str, ...]`): Suites or sets that all models are measured on, by name.
        methods (`tuple[str, ...]`): What each reference is fine-tuned with.
        subsets (`tuple[int, ...]`): Numbers of pairs to run NCU on besides all.
        similarities (`bool`): Draw the similarities of pairs and non-pairs.
    """

    shows: str
    rows: tuple[Row, ...]
    suite: tuple[str, ...]
    methods: tuple[str, ...] = (NCU,)
    subsets: tuple[int, ...] = ()
    similarities: bool = False


_B16, _B32 = ARCHITECTURE_LABELS
_CC3M, _CC12M, _YFCC = DATA_LABELS

EXPERIMENTS = {
    "table1": Experiment(
        "zero-shot accuracy on 16 sets",
        ((_CC3M, _B16), (_CC12M, _B16), (_CC3M, _B32), (_CC12M, _B32), (_YFCC, _B32)),
        ("paper",),
    ),
    "table2": Experiment(
        "zero-shot retrieval on Flickr30k 1K and MSCOCO 5K",
        ((_CC3M, _B16), (_CC3M, _B32), (_CC12M, _B32), (_YFCC, _B32)),
        ("retrieval",),
    ),
    "table3": Experiment(
        "linear probes on 4 sets",
        ((_CC3M, _B16), (_CC3M, _B32), (_CC12M, _B16), (_CC12M, _B32), (_YFCC, _B32)),
        ("probe",),
    ),
    "table4": Experiment(
        "ImageNet accuracy of robust methods",
        ((_CC3M, _B16), (_CC3M, _B32), (_CC12M, _B16), (_CC12M, _B32)),
        (ACCURACY_SET,),
        ("gradient_ascent", "softclip", NCU),
    ),
    "table5": Experiment(
        "ablations of NCU, ImageNet accuracy",
        ((_CC3M, _B16), (_CC3M, _B32)),
        (ACCURACY_SET,),
        (NCU, "ncu_text_negation", "ncu_max_distance", "ncu_false_negatives_only", "ncu_false_positives_only"),
    ),
    "figure4": Experiment(
        "NCU on parts of CC3M: ImageNet accuracy and MSCOCO recall",
        ((_CC3M, _B16), (_CC3M, _B32)),
        (ACCURACY_SET, RECALL_SET),
        subsets=SUBSETS,
    ),
    "figure5": Experiment(
        "similarities of pairs and non-pairs of the validation set of CC3M",
        ((_CC3M, _B16),),
        (VALIDATION,),
        similarities=True,
    ),
}


def label(row: Row) -> str:
    """E.g. `"CC3M, ViT-B/16"`."""
    return f"{DATA_LABELS[row[0]]}, {ARCHITECTURE_LABELS[row[1]]}"


def chosen_rows(name: str, training_data: str | None, architecture: str | None) -> list[Row]:
    """Rows of a table, narrowed to some training data or one architecture.

    Raises:
        InputError: the paper has no such row; names those that it has.
    """
    rows = [row for row in EXPERIMENTS[name].rows if training_data in (None, row[0]) and architecture in (None, row[1])]
    if not rows:
        known = "; ".join(f"{data} {model}" for data, model in EXPERIMENTS[name].rows)
        asked = " ".join(filter(None, (training_data, architecture)))
        raise InputError(f"{name}: the paper has no row for {asked}. Rows (--training_data --architecture): {known}.")
    return rows
