"""What a card may say about a method: each sentence is true of every run of it, and nothing else is claimed."""

from __future__ import annotations

from typing import NamedTuple

from ncu_hf.citations import CLIP_BIBTEX, NCU_BIBTEX, NCU_URL, SDD_BIBTEX, SOFTCLIP_BIBTEX
from ncu_hf.reporting.results import SET_GROUPS

NCU = "Noisy Correspondence Unlearning (NCU)"
FORMULATIONS = {
    "released": "the losses follow the authors' released code where it differs from the printed equations",
    "paper": "the losses follow the printed equations where the authors' released code differs from them",
}
CONFIDENCES = {
    "released": "the softmax over the captions of the batch, at the pair's own",
    "paper": "the mean of the softmax over the captions and of the softmax over the images of the batch, both at the"
    " pair's own",
}
CONFIDENCE = "clean confidence (how sure the model is of a pair, against the other pairs of the batch)"
NCU_PROCEDURE = (
    "Two phases, each a short fine-tune on image-text pairs. First a negative prompt is learned: vectors placed before"
    " a caption that turn it into its hardest negative; {phase1}."
    f" Then the model unlearns: in each batch the pairs of lowest {CONFIDENCE} form the"
    " forget set{forgotten}. Soft targets between images and captions come from masked entropic optimal transport. The"
    " prompt is frozen in this phase."
)
# What becomes of the pairs of the forget set, by `forget_target`.
FORGOTTEN = {
    "negative": ", and their images are aligned with negative captions instead",
    "none": ", which are aligned with nothing and stay as negatives of the others",
}
SHARED_PARAMETERS = "the text tower and both projections train along with it, the vision tower is frozen"
OWN_PARAMETERS = (
    "low-rank updates of the text tower train along with it, which are active where a caption is turned into its"
    " negative and nowhere else, so that the model itself stays as it is"
)
CLIP_PROCEDURE = (
    "The symmetric contrastive loss of CLIP (image to text and text to image, over the whole batch), on all pairs as"
    " they are: no pair is filtered, weighted or forgotten."
)
NEGATIVE_PROMPT_PHASE = (
    "Two phases. The first is that of NCU: a negative prompt is learned, vectors placed before a caption that turn it"
    " into its hardest negative, while the text tower and both projections train along and the vision tower is frozen."
)
CONTROL_LIMIT = "This model is a point of comparison in a study; nothing says that it is the one to use."
FORGET_LIMIT = (
    "Forgetting rests on the model's own confidence: correct pairs that it finds hard are forgotten too, and mismatched"
    " pairs that it fits well are kept."
)
RESULT_LIMITS = [
    "The intervals cover the choice of evaluation items, not the randomness of training: another seed gives another"
    " model.",
    "The numbers hold for the data that they were measured on; other data, above all other kinds of images, can"
    " differ.",
]
NOT_MEASURED = "The model was not measured on evaluation data: nothing is known about its quality."
INHERITED_LIMIT = (
    "The model inherits what its training pairs contain, social biases and wrong descriptions included. Check it on"
    " your own data before you rely on it."
)


class Comparison(NamedTuple):
    """A method that NCU is compared with, or NCU with a part replaced or left out.

    Args:
        summary (`str`): What it is, in one clause.
        procedure (`str`): What was done. All of it holds for any setting of the hyperparameters.
        detail (`dict[str, str]`): What the formulation of the run decides, by formulation, said as `detail_of`.
        detail_of (`str`): Begins the sentence on that.
        forgets (`bool`): Whether pairs are forgotten or dropped.
        source (`str`): What the method is cited by.
        tags (`tuple[str, ...]`): Further tags.
        limits (`tuple[str, ...]`): Further limits.
    """

    summary: str
    procedure: str
    detail: dict[str, str]
    detail_of: str
    forgets: bool = True
    source: str = NCU_BIBTEX
    tags: tuple[str, ...] = ("machine-unlearning",)
    limits: tuple[str, ...] = ()


COMPARISONS = {
    "clip_retained": Comparison(
        summary="the contrastive loss of CLIP on the pairs that are left when those of lowest clean confidence are"
        " dropped from each batch",
        procedure="In each batch the pairs of lowest clean confidence are dropped. The others are trained with the"
        " symmetric contrastive loss of CLIP, with each other as the only negatives. Nothing is unlearned: this is the"
        " control for what comes from dropping pairs alone.",
        detail=CONFIDENCES,
        detail_of="Clean confidence of a pair",
        tags=("contrastive-learning",),
    ),
    "gradient_ascent": Comparison(
        summary="gradient ascent on the pairs of lowest clean confidence, and the contrastive loss with label smoothing"
        " on the others",
        procedure="In each batch the pairs of lowest clean confidence form the forget set. Minimised is the negative of"
        " CLIP's symmetric contrastive loss on the forget set plus that loss with label smoothing on the other pairs."
        " Each of the two sets is contrasted with itself alone.",
        detail=CONFIDENCES,
        detail_of="Clean confidence of a pair",
    ),
    "softclip": Comparison(
        summary="a contrastive loss with targets that are softened by the similarities inside each modality, after"
        " SoftCLIP",
        procedure="The target of an image over the captions of the batch is a mix of its own caption and of the softmax"
        " of its similarities to the other images; the target of a caption over the images is made in the same way from"
        " the captions. The similarities are those of the frozen model that the training started from. SoftCLIP as"
        " published takes them from features of detected regions instead, and has a further term for the relations"
        " among negatives.",
        detail={},
        detail_of="",
        forgets=False,
        source=SOFTCLIP_BIBTEX,
        tags=("contrastive-learning",),
    ),
    "ncu_text_negation": Comparison(
        summary="NCU with hand-written negating words in place of the learned negative prompt",
        procedure=f"One phase, the second of NCU: in each batch the pairs of lowest {CONFIDENCE} form the forget set"
        "{forgotten}. Soft targets between images and captions"
        " come from masked entropic optimal transport. The negative of a caption is the caption behind a"
        " fixed phrase that negates it, such as 'the image has no', drawn at random from a short list; there is no"
        " prompt to learn.",
        detail=FORMULATIONS,
        detail_of="Formulation",
    ),
    "ncu_max_distance": Comparison(
        summary="NCU that pushes each negative caption as far from its caption as it can be",
        procedure=f"{NEGATIVE_PROMPT_PHASE} Then the model unlearns as with NCU, under targets that come from optimal"
        " transport, the prompt being frozen. In both phases the losses of NCU on captions and their negatives (a band"
        " of similarity and, in the first phase, equal relations) are replaced by one that pushes their Euclidean"
        " distance to 2, where they are opposite.",
        detail=FORMULATIONS,
        detail_of="Formulation",
    ),
    "ncu_false_negatives_only": Comparison(
        summary="NCU that unlearns false negatives alone: no pair is forgotten",
        procedure=f"{NEGATIVE_PROMPT_PHASE} In the second phase soft targets between all images and captions of a batch"
        " come from entropic optimal transport. No pair is forgotten and no image is aligned with a"
        " negative caption; captions and their negatives are only held apart. The prompt is frozen.",
        detail=FORMULATIONS,
        detail_of="Formulation",
        forgets=False,
    ),
    "ncu_false_positives_only": Comparison(
        summary="NCU that unlearns false positives alone: its targets are hard",
        procedure=f"{NEGATIVE_PROMPT_PHASE} In the second phase the pairs of lowest {CONFIDENCE} form the forget set of"
        " each batch{forgotten}. The only target of the other images is their own caption. No transport problem is"
        " solved. The prompt is frozen.",
        detail=FORMULATIONS,
        detail_of="Formulation",
    ),
    "sdd": Comparison(
        summary="Self-Drop and Dual-Weight (SDD), which drops the pairs of low similarity and weights the others",
        procedure="At the start of every epoch the similarity of each training pair's image and caption is computed;"
        " pairs below a threshold take no part in the epoch. The others are trained with the symmetric contrastive loss"
        " of CLIP, each pair with two weights. Confidence is the posterior of the upper of two Gaussians that are"
        " fitted to the similarities of all pairs. Significance tells whether a trial step on the batch lowers the loss"
        " of clean pairs that resemble the pair; those come from a memory bank that was made once, with the model that"
        " the training started from, out of the pairs above a higher threshold.",
        detail={},
        detail_of="",
        forgets=False,
        source=SDD_BIBTEX,
        tags=("contrastive-learning",),
        limits=(
            "What is dropped rests on the model's own similarities: correct pairs that it finds unlike are dropped too,"
            " and mismatched pairs that it finds alike are kept.",
        ),
    ),
}


def describe(run: dict) -> dict:
    """Sentences and tags of a card.

    Args:
        run (`dict`): See `ncu_hf.reporting.results`; `method`, `formulation` and `base_model` are read.

    Returns:
        `dict`: `summary`, `procedure`, `limits`, `tags`, `citation_note`, `bibtex`.
    """
    method = run["method"]
    if method == "clip":
        return _clip(run)
    if method == "ncu":
        return _ncu(run)
    if method in COMPARISONS:
        return _comparison(run, COMPARISONS[method])
    return _other(run)


def forgets(method: str) -> bool:
    """Whether pairs are forgotten or dropped while the model unlearns."""
    return COMPARISONS[method].forgets if method in COMPARISONS else method != "clip"


def _ncu(run: dict) -> dict:
    own = run.get("hyperparameters", {}).get("negative_rank", 0)
    procedure = NCU_PROCEDURE.format(phase1=OWN_PARAMETERS if own else SHARED_PARAMETERS, forgotten=_forgotten(run))
    if run.get("formulation") in FORMULATIONS:
        procedure += f" Formulation `{run['formulation']}`: {FORMULATIONS[run['formulation']]}."
    return {
        "summary": f"{_start(run)}, fine-tuned with [{NCU}]({NCU_URL}): the harm of image-text pairs that do not match,"
        " and of non-pairs that do, is to be unlearned without training again from the beginning.",
        "procedure": procedure + _adapters(run),
        "limits": [FORGET_LIMIT, *_limits(run)],
        "tags": ["clip", "noisy-correspondence", "machine-unlearning", "ncu"],
        "citation_note": "The method:",
        "bibtex": NCU_BIBTEX,
    }


def _clip(run: dict) -> dict:
    if run["base_model"]["kind"] == "scratch":
        summary = "A CLIP trained from random weights with the contrastive loss."
    else:
        summary = f"{_start(run)}, trained further with the contrastive loss of CLIP."
    return {
        "summary": summary,
        "procedure": CLIP_PROCEDURE + _adapters(run),
        "limits": _limits(run),
        "tags": ["clip", "contrastive-learning"],
        "citation_note": "The training objective:",
        "bibtex": CLIP_BIBTEX,
    }


def _comparison(run: dict, method: Comparison) -> dict:
    detail = method.detail.get(run.get("formulation"))
    return {
        "summary": f"{_start(run)}, fine-tuned with `{run['method']}`, a point of comparison for [{NCU}]({NCU_URL}):"
        f" {method.summary}.",
        "procedure": method.procedure.format(forgotten=_forgotten(run))
        + (f" {method.detail_of}: {detail}." if detail else "")
        + _adapters(run),
        "limits": [CONTROL_LIMIT, *([FORGET_LIMIT] if method.forgets else []), *method.limits, *_limits(run)],
        "tags": ["clip", "noisy-correspondence", *method.tags],
        "citation_note": "The method:" if method.source != NCU_BIBTEX else "The study that compares such methods:",
        "bibtex": method.source,
    }


def _other(run: dict) -> dict:
    """Of a method that nothing is written about here: what its objectives say of themselves."""
    return {
        "summary": f"{_start(run)}, fine-tuned with the method `{run['method']}`.",
        "procedure": " ".join(run.get("method_docs", [])) + _adapters(run),
        "limits": _limits(run),
        "tags": ["clip"],
        "citation_note": "The study that compares such methods:",
        "bibtex": NCU_BIBTEX,
    }


def _forgotten(run: dict) -> str:
    return FORGOTTEN[run.get("hyperparameters", {}).get("forget_target", "negative")]


def _limits(run: dict) -> list[str]:
    measured = any(run.get(group) for group in SET_GROUPS)  # the forget set says nothing of the model's quality
    return [*(RESULT_LIMITS if measured else [NOT_MEASURED]), INHERITED_LIMIT]


def _adapters(run: dict) -> str:
    settings = run.get("hyperparameters", {})
    rank, named = settings.get("lora_rank"), settings.get("lora_towers", "text,vision")
    towers = [tower for tower in ("text", "vision") if tower in named]
    changed = f"The {' and '.join(towers)} tower{'s' * (len(towers) > 1)} changed by LoRA adapters of rank {rank} alone"
    return f" {changed}, which are merged into the weights." if rank else ""


def _start(run: dict) -> str:
    base = run["base_model"]
    if base["kind"] == "hub":
        revision = f" at revision `{base['revision']}`" if "revision" in base else ""
        return f"[{base['name']}](https://huggingface.co/{base['name']}){revision}"
    return f"A CLIP from a local checkpoint (`{base['name']}`)" if "name" in base else "A CLIP from a local checkpoint"
