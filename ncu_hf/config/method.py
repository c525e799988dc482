"""Settings of the method."""

from __future__ import annotations

from dataclasses import dataclass, field

from ncu_hf.errors import InputError, one_of

FORMULATIONS = ("released", "paper")
FORGET_TARGETS = ("negative", "none")


@dataclass
class MethodArguments:
    """What is minimised. Defaults: paper, section 4 and 5.1, and the released code where the paper is silent."""

    method: str = field(
        default="ncu",
        metadata={
            "help": "ncu; for comparison clip (symmetric InfoNCE), clip_retained, gradient_ascent or softclip; ncu "
            "with a part replaced, as in the paper's V1 to V4: ncu_text_negation, ncu_max_distance, "
            "ncu_false_negatives_only or ncu_false_positives_only; sdd (self-drop and dual weights)."
        },
    )
    formulation: str = field(
        default="released", metadata={"help": "released (the authors' code) or paper (the printed equations)."}
    )
    forget_ratio: float = field(default=0.1, metadata={"help": "P, share of a batch to forget (released: 0.1)."})
    forget_window: int = field(
        default=1,
        metadata={
            "help": "Batches whose clean confidences are ranked together, the last of them being the one to split; 1 "
            "ranks a batch by itself (paper)."
        },
    )
    forget_target: str = field(
        default="negative",
        metadata={
            "help": "What phase 2 aligns forgotten pairs with: negative (images with their negative captions, captions "
            "with the plan; paper), or none (they only stay as negatives of the others)."
        },
    )
    plan_weight: float = field(default=0.7, metadata={"help": "γ, weight of the transport plan in the target."})
    entropy: float = field(default=0.03, metadata={"help": "ε, entropic regularisation of the transport."})
    margin_low: float = field(default=-0.7, metadata={"help": "α, lower end of the separation band."})
    margin_high: float = field(default=-0.2, metadata={"help": "β, upper end of the separation band."})
    relation_weight: float = field(default=10.0, metadata={"help": "λ, weight of separation + relation in phase 1."})
    negative_rank: int = field(
        default=0,
        metadata={
            "help": "Rank of low-rank updates of the text tower that are active in the negative pass alone: phase 1 "
            "then trains them and the prompt, and leaves the model as it is. 0: none, the tower itself trains (paper)."
        },
    )
    frozen_text_blocks: int | None = field(
        default=None,
        metadata={
            "help": "Lower text blocks frozen in phase 2: 5 (released), or 5/12 of a tower that has no more than five."
        },
    )
    freeze_token_embedding: bool = field(
        default=True, metadata={"help": "Freeze the token embedding in phase 2 (meant by the released code)."}
    )
    label_smoothing: float = field(
        default=0.1, metadata={"help": "Of gradient_ascent: label smoothing on the retained pairs (Szegedy et al.)."}
    )
    soft_weight: float = field(
        default=0.5, metadata={"help": "Of softclip: share of the self-similarity in the targets (own choice)."}
    )
    soft_temperature: float = field(
        default=0.07, metadata={"help": "Of softclip: temperature of the self-similarity (CLIP's initial 0.07)."}
    )
    sdd_clean_threshold: float = field(
        default=0.30,
        metadata={"help": "Of sdd: paired cosine above which the memory bank takes a pair (its authors' release)."},
    )
    sdd_drop_threshold: float = field(
        default=0.20,
        metadata={"help": "Of sdd: paired cosine up to which an epoch drops a pair (its authors' release)."},
    )

    def __post_init__(self):
        one_of("--formulation", self.formulation, FORMULATIONS)
        one_of("--forget_target", self.forget_target, FORGET_TARGETS)
        if not 0 <= self.forget_ratio < 1:
            raise InputError(f"--forget_ratio is a share in [0, 1), got {self.forget_ratio}.")
        for name in ("plan_weight", "label_smoothing", "soft_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} is a share between 0 and 1, got {getattr(self, name)}.")
        for name in ("sdd_clean_threshold", "sdd_drop_threshold"):
            if not -1 <= getattr(self, name) < 1:
                raise InputError(f"--{name} is a cosine in [-1, 1), got {getattr(self, name)}.")
        for name in ("entropy", "soft_temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} must be positive, got {getattr(self, name)}.")
        if self.forget_window < 1:
            raise InputError(f"--forget_window must be at least 1, got {self.forget_window}.")
        if self.negative_rank < 0:
            raise InputError(f"--negative_rank must be 0 (off) or positive, got {self.negative_rank}.")
        if not -1 <= self.margin_low <= self.margin_high <= 1:
            raise InputError(
                f"--margin_low and --margin_high are cosines in order, got {self.margin_low} and {self.margin_high}."
            )

    def text_blocks_to_freeze(self, text_layers: int) -> int:
        """Number of lower text blocks that phase 2 freezes in a tower of `text_layers` blocks."""
        if self.frozen_text_blocks is not None:
            return self.frozen_text_blocks
        return 5 if text_layers > 5 else 5 * text_layers // 12
