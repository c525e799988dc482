"""NCU with one part replaced or left out: the variants V1 to V4 of the paper (section 5.4, Table 5)."""

from __future__ import annotations

from torch import Tensor

from ncu_hf.distributed import Shard
from ncu_hf.losses import distance_losses
from ncu_hf.objectives.alignment import RefinedAlignment, hard_alignment
from ncu_hf.objectives.forgetting import ForgettingObjective
from ncu_hf.objectives.negative_prompt import NegativePromptObjective
from ncu_hf.objectives.unlearning import UnlearningObjective
from ncu_hf.selection import split_batch

# The first two are the paper's examples; the others say the same in other words.
NEGATING_PREFIXES = (
    "the image has no",
    "this picture lacks",
    "there is no",
    "a photo without",
    "the photo does not show",
    "this is not a picture of",
)


class TextNegationObjective(UnlearningObjective):
    """V1, `ncu_text_negation`: hand-written prefixes in place of the learned prompt, hence no phase 1.

    The negative of a caption is the caption behind one of `NEGATING_PREFIXES`, drawn anew each time that the pair is
    seen, and encoded as any caption.
    """

    negative_prefixes = NEGATING_PREFIXES


class MaxDistancePromptObjective(NegativePromptObjective):
    """V2, `ncu_max_distance`, phase 1: λ L_dist + L_itm, where L_dist pushes ‖t_i - n_i‖ to 2."""

    settings = (*ForgettingObjective.settings, "relation_weight", "negative_rank")

    def opposition(self, text: Tensor, negative: Tensor, shard: Shard) -> dict[str, Tensor]:
        return {"distance_loss": self.arguments.relation_weight * shard.mean(distance_losses(text, negative))}


class MaxDistanceUnlearningObjective(UnlearningObjective):
    """V2, phase 2: L_otr + L_dist. (L_sep would draw the negatives back from where phase 1 brought them.)"""

    settings = tuple(name for name in UnlearningObjective.settings if not name.startswith("margin_"))

    def opposition(self, text: Tensor, negative: Tensor, shard: Shard) -> dict[str, Tensor]:
        return {"distance_loss": shard.mean(distance_losses(text, negative))}


class FalseNegativesObjective(UnlearningObjective):
    """V3, `ncu_false_negatives_only`, phase 2: no pair is forgotten, and no image is aligned with a negative caption.

    Plan, targets and predictions are over the N captions of the batch. Negatives remain in L_sep; phase 1 is that of
    `ncu`, as the paper intervenes in the refined alignment alone.
    """

    settings = tuple(name for name in UnlearningObjective.settings if not name.startswith("forget_"))

    def split(self, confidence: Tensor) -> tuple[Tensor, Tensor]:
        return split_batch(confidence, 0.0)

    def similarity(self, image: Tensor, texts: Tensor, negative: Tensor) -> Tensor:
        return image @ texts.T


class FalsePositivesObjective(UnlearningObjective):
    """V4, `ncu_false_positives_only`, phase 2: γ = 0. The targets are hard, and no plan is solved."""

    settings = tuple(name for name in UnlearningObjective.settings if name not in ("plan_weight", "entropy"))

    def align(self, similarity: Tensor, forget: Tensor, shard: Shard) -> RefinedAlignment:
        return hard_alignment(similarity, forget, self.arguments.formulation, shard)
