"""What a card may say about a method: each sentence is true of every run of it, and nothing else is claimed."""

from __future__ import annotations

NCU = "Noisy Correspondence Unlearning (NCU)"
NCU_URL = "https://arxiv.org/abs/2507.03434"
NCU_BIBTEX = """@misc{han2025unlearning,
  title         = {Unlearning the Noisy Correspondence Makes CLIP More Robust},
  author        = {Haochen Han and Alex Jinpeng Wang and Peijun Ye and Fangming Liu},
  year          = {2025},
  eprint        = {2507.03434},
  archivePrefix = {arXiv},
  primaryClass  = {cs.CV},
  url           = {https://arxiv.org/abs/2507.03434}
}"""
CLIP_BIBTEX = """@inproceedings{radford2021learning,
  title     = {Learning transferable visual models from natural language supervision},
  author    = {Alec Radford and Jong Wook Kim and Chris Hallacy and Aditya Ramesh and Gabriel Goh and
               Sandhini Agarwal and Girish Sastry and Amanda Askell and Pamela Mishkin and Jack Clark and others},
  booktitle = {International conference on machine learning},
  pages     = {8748--8763},
  year      = {2021},
  publisher = {PMLR}
}"""
FORMULATIONS = {
    "released": "the losses follow the authors' released code where it differs from the printed equations",
    "paper": "the losses follow the printed equations where the authors' released code differs from them",
}
NCU_PROCEDURE = (
    "Two phases, each a short fine-tune on image-text pairs. First a negative prompt is learned: vectors placed before"
    " a caption that turn it into its hardest negative; the text tower and both projections train along with it, the"
    " vision tower is frozen. Then the model unlearns: in each batch the pairs of lowest clean confidence form the"
    " forget set, their images are aligned with the negative captions instead, and soft targets between all images and"
    " captions come from one masked entropic optimal transport problem. The prompt is frozen in this phase."
)
CLIP_PROCEDURE = (
    "The symmetric contrastive loss of CLIP (image to text and text to image, over the whole batch), on all pairs as"
    " they are: no pair is filtered, weighted or forgotten."
)
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
NOT_MEASURED = "This run did not measure the model: nothing is known about its quality."
INHERITED_LIMIT = (
    "The model inherits what its training pairs contain, social biases and wrong descriptions included. Check it on"
    " your own data before you rely on it."
)


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
    return _other(run, method)


def _ncu(run: dict) -> dict:
    procedure = NCU_PROCEDURE
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


def _other(run: dict, method: str) -> dict:
    return {
        "summary": f"{_start(run)}, fine-tuned with `{method}`, a point of comparison for [{NCU}]({NCU_URL}).",
        "procedure": f"Method `{method}`; the hyperparameters below define it." + _adapters(run),
        "limits": _limits(run),
        "tags": ["clip", "noisy-correspondence"],
        "citation_note": "The study that compares such methods:",
        "bibtex": NCU_BIBTEX,
    }


def _limits(run: dict) -> list[str]:
    measured = any(run.get(group) for group in ("retrieval", "zero_shot", "similarity", "forget_set"))
    return [*(RESULT_LIMITS if measured else [NOT_MEASURED]), INHERITED_LIMIT]


def _adapters(run: dict) -> str:
    rank = run.get("hyperparameters", {}).get("lora_rank", 0)
    return f" Training changed LoRA adapters of rank {rank}, which are merged into the weights." if rank else ""


def _start(run: dict) -> str:
    base = run["base_model"]
    if base["kind"] == "hub":
        revision = f" at revision `{base['revision']}`" if "revision" in base else ""
        return f"[{base['name']}](https://huggingface.co/{base['name']}){revision}"
    return f"A CLIP from a local checkpoint (`{base['name']}`)" if "name" in base else "A CLIP from a local checkpoint"
