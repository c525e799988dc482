"""What a process that knows only the Hub makes of a published model, as one line of JSON.

    python -m ncu_hf.publishing.fresh_load me/clip-b32-ncu --revision COMMIT

prints the digest that the card tells, for whoever wants to check it; `--folder` compares with a local copy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from huggingface_hub import HfApi, hf_hub_download
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from ncu_hf.data.network.http_client import Fault
from ncu_hf.errors import one_line
from ncu_hf.modeling import PROMPT_FOLDER, NCUModel, NegativePrompt
from ncu_hf.publishing.attempts import CALL_ERRORS, Refused, insist
from ncu_hf.publishing.card import file_sha256

_WEIGHTS = "model.safetensors"
# (height, width) of the images; the texts are of several lengths, one of them longer than any context.
_SIZES = ((64, 48), (48, 64), (96, 96), (31, 57))
_TEXTS = (
    "a photo of a cat",
    "two small red squares above a blue circle",
    "ein Bild von einer Brücke",
    "12:30, 50 % off!",
    "a",
    "one word after the other " * 40,
)


class Differs(Exception):
    """The published model is another one, or not whole."""


class Loaded(NamedTuple):
    """What was computed with one copy of a model.

    Attributes:
        tensors (`dict[str, Tensor]`): Embeddings in float32: `image` (4, D), `text` (6, D), with a prompt also
            `negative` (6, D) and the vectors `prompt` (m, width) themselves.
        weights_sha256 (`str`): Of the file of its weights.
    """

    tensors: dict[str, Tensor]
    weights_sha256: str


def compare(repo_id: str, revision: str | None, folder: Path | None) -> dict[str, Any]:
    """Load, embed and compare.

    Args:
        repo_id (`str`): Repository.
        revision (`str`, *optional*): Branch or commit; `main` if not given.
        folder (`Path`, *optional*): Local copy.

    Returns:
        `dict`: `commit`, `embedding_digest`, `weights_sha256`, `max_difference` (`None` without a local copy),
            `torch`, `transformers`.

    Raises:
        Differs: see there.
        Refused or Fault: the Hub does not give it.
    """
    local = None if folder is None else load(folder, with_prompt=(folder / PROMPT_FOLDER).is_dir())
    info = insist(lambda: HfApi().model_info(repo_id, revision=revision))
    names = {file.rfilename for file in info.siblings or ()}
    if _WEIGHTS not in names:
        raise Differs(f"there is no {_WEIGHTS}.")
    with_prompt = f"{PROMPT_FOLDER}/config.json" in names
    published = insist(lambda: load(repo_id, with_prompt=with_prompt, revision=info.sha))
    return {
        "commit": info.sha,
        "embedding_digest": digest(published.tensors),
        "weights_sha256": published.weights_sha256,
        "max_difference": None if local is None else largest_difference(published, local),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def load(source: str | Path, *, with_prompt: bool, **where: Any) -> Loaded:
    """Load a model, its processor and its prompt by their own `from_pretrained`, and embed.

    Raises:
        Differs: a weight is missing, left over or of another shape, or an embedding is not finite.
    """
    options = {**where, "use_safetensors": True, "output_loading_info": True}
    clip, report = CLIPModel.from_pretrained(source, **options)
    _check_report(report, "the model")
    processor = CLIPProcessor.from_pretrained(source, trust_remote_code=False, **where)
    prompt = None
    if with_prompt:
        prompt, report = NegativePrompt.from_pretrained(source, subfolder=PROMPT_FOLDER, **options)
        _check_report(report, "the prompt")
    tensors = embed(NCUModel(clip, prompt).eval(), processor)
    for name, values in tensors.items():
        if not values.isfinite().all():
            raise Differs(f"its {name} embeddings are not finite.")
    path = Path(source) / _WEIGHTS if isinstance(source, Path) else hf_hub_download(source, _WEIGHTS, **where)
    return Loaded(tensors, file_sha256(Path(path)))


def _check_report(report: dict[str, Any], what: str) -> None:
    for kind, names in report.items():
        if names:
            raise Differs(f"{what} has {kind.replace('_', ' ')}: {', '.join(sorted(map(str, names))[:3])}.")


@torch.no_grad()
def embed(model: NCUModel, processor: CLIPProcessor) -> dict[str, Tensor]:
    """Embeddings of the fixed images and texts, see [`Loaded`]."""
    length = model.context_length
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": length}
    inputs = processor(text=list(_TEXTS), images=draw_images(), **options)
    ids = inputs["input_ids"]
    pixels = inputs["pixel_values"].to(model.clip.dtype)
    tensors = {"image": model.encode_image(pixels), "text": model.encode_text(ids)}
    if model.negative_prompt is not None:
        tensors |= {"negative": model.encode_negative_text(ids), "prompt": model.negative_prompt.vectors}
    return {name: values.detach().float() for name, values in tensors.items()}


def draw_images() -> list[Image.Image]:
    """Images of integer arithmetic alone, the same everywhere."""
    images = []
    for number, (height, width) in enumerate(_SIZES, start=1):
        y, x, channel = np.ogrid[:height, :width, :3]
        pixels = (number * x * x + 3 * y * (channel + 1) + 7 * x * y * number + 50 * channel) % 256
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    return images


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and little-endian values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].contiguous().numpy()
        found.update(f"{name}{values.shape}".encode())
        found.update(values.astype("<f4").tobytes())
    return found.hexdigest()


def largest_difference(published: Loaded, local: Loaded) -> float:
    """Of all embeddings.

    Raises:
        Differs: one has a prompt and the other none, shapes differ, or the files of weights do.
    """
    if published.tensors.keys() != local.tensors.keys():
        raise Differs("one of them has a negative prompt, the other none.")
    if published.weights_sha256 != local.weights_sha256:
        raise Differs(f"its {_WEIGHTS} is another file ({published.weights_sha256}, local {local.weights_sha256}).")
    differences = []
    for name, values in published.tensors.items():
        if values.shape != local.tensors[name].shape:
            raise Differs(f"its {name} embeddings have the shape {tuple(values.shape)}.")
        differences.append((values - local.tensors[name]).abs().max().item())
    return max(differences)


def main() -> int:
    """Print the answer, or `{"error", "refused"}`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id")
    parser.add_argument("--revision", help="branch or commit")
    parser.add_argument("--folder", type=Path, help="local copy to compare with")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # one order of summation
    try:
        answer = compare(arguments.repo_id, arguments.revision, arguments.folder)
    except (Differs, Fault) as error:
        answer = {"error": one_line(error), "refused": False}
    except Refused as error:
        answer = {"error": one_line(error) + (f" ({error.status})" if error.status else ""), "refused": True}
    except CALL_ERRORS as error:
        answer = {"error": one_line(error), "refused": True}
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
