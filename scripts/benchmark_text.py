"""`benchmark.py text`: both text passes of a step against the same passes with padding."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from benchmark_models import MODELS, make_clip
from benchmark_timing import Benchmark, Row, Tables, medians
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel

from ncu_hf.modeling import NCUModel, NegativePrompt, NegativePromptConfig
from ncu_hf.text_batches import caption_lengths, sub_batch_overhead

# Of the number of words of a caption, in units of its mean; of CC3M: 4.5 to 10.3 (Sharma et al. 2018, "Conceptual
# Captions: A Cleaned, Hypernymed, Image Alt-text Dataset For Automatic Image Captioning").
_DEVIATION = 0.44
_TOKENS_A_WORD = 1.2
_PROMPT = 8  # m, as in the released code
# Shape of the batch on which the cost of a sub-batch is measured, and the number of parts that it is cut into.
_ALIKE, _PARTS = 16, 8

Pass = Callable[[], Tensor]


def word_counts(rows: int, mean: float, generator: torch.Generator) -> Tensor:
    """(rows,) int64: log-normal, so that the longest of a batch is far above the mean; at least 2."""
    variance = math.log(1 + _DEVIATION**2)
    logarithms = math.log(mean) - variance / 2 + math.sqrt(variance) * torch.randn(rows, generator=generator)
    return logarithms.exp().round().long().clamp(min=2)


def random_captions(words: Tensor, clip: CLIPModel, generator: torch.Generator) -> Tensor:
    """(B, L) ids for captions of so many words: a start token, random ids, end tokens up to the longest."""
    text = clip.config.text_config
    end = text.vocab_size - 1  # as in CLIP's vocabulary: the largest id, behind that of the start token
    tokens = (_TOKENS_A_WORD * words).round().long().clamp(max=text.max_position_embeddings - 2)
    ids = torch.randint(1, end - 1, (len(words), int(tokens.max()) + 2), generator=generator)
    ids[:, 0] = end - 1
    return torch.where(torch.arange(ids.shape[1]) > tokens[:, None], end, ids)


def padded_text(clip: CLIPModel, input_ids: Tensor) -> Tensor:
    """(B, L) -> unit embeddings (B, D), whole rows of length L: the stock model."""
    return F.normalize(clip.text_projection(clip.text_model(input_ids=input_ids).pooler_output), dim=-1)


def padded_negative(model: NCUModel, input_ids: Tensor, width: int) -> Tensor:
    """(B, L) -> unit embeddings (B, D) of the negatives, whole rows of `width` tokens in the stock model.

    The prompt takes the place of placeholders in every row. A caption that is too long loses words, not its end token.
    """
    clip, vectors = model.clip, model.negative_prompt.vectors
    m = len(vectors)
    ids = torch.cat([input_ids[:, :1].expand(-1, 1 + m), input_ids[:, 1:]], dim=1)[:, :width]
    end = clip.config.text_config.vocab_size - 1
    ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], end)], dim=1)

    def with_prompt(_module: object, _args: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], vectors.expand(len(output), -1, -1), output[:, 1 + m :]], dim=1)

    handle = clip.text_model.embeddings.token_embedding.register_forward_hook(with_prompt)
    try:
        return padded_text(clip, ids)
    finally:
        handle.remove()


def passes(model: NCUModel, ids: Tensor, device: torch.device) -> dict[str, tuple[Pass, Pass]]:
    """Caption and negative pass of each variant; `ids` (B, L) are on the CPU, as in a step."""
    context, end = model.context_length, model.clip.config.text_config.vocab_size - 1
    eos_token_id = model.clip.config.text_config.eos_token_id
    longest = ids.to(device)
    full = F.pad(longest, (0, context - ids.shape[1]), value=end)
    width = min(ids.shape[1] + _PROMPT, context)
    return {
        "ours": (
            lambda: model.encode_text(longest, caption_lengths(ids, eos_token_id)),
            lambda: model.encode_negative_text(longest, caption_lengths(ids, eos_token_id)),
        ),
        "longest": (
            lambda: padded_text(model.clip, longest),
            lambda: padded_negative(model, longest, width),
        ),
        "padded_77": (
            lambda: padded_text(model.clip, full),
            lambda: padded_negative(model, full, context),
        ),
    }


def forward_backward(model: NCUModel, encoders: tuple[Pass, ...], weights: Tensor) -> list[Tensor]:
    """The embeddings; the passes run one after the other, so that the activations of one are alive at a time."""
    model.zero_grad()
    found = []
    for encode in encoders:
        embeds = encode()
        (embeds * weights[: len(embeds)]).sum().backward()
        found.append(embeds.detach())
    return found


@contextmanager
def counted_tokens(clip: CLIPModel) -> Iterator[list[int]]:
    """Tokens of every forward pass of the text tower, padding included."""
    counts: list[int] = []
    handle = clip.text_model.encoder.layers[-1].register_forward_hook(
        lambda _module, args, _output: counts.append(args[0].shape[:2].numel())
    )
    try:
        yield counts
    finally:
        handle.remove()


def _text_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=256, help="B, captions (default: 256)")
    parser.add_argument("--model", choices=MODELS, default="vit-b-32", help="shape of the towers (default: vit-b-32)")
    parser.add_argument("--words", type=float, default=10, help="mean number of words of a caption (default: 10)")


def benchmark_text(options: argparse.Namespace) -> Tables:
    """Both passes, forward and backward: in sub-batches by length behind a shared prompt, and padded."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    clip = make_clip(options.model)
    model = NCUModel(clip, NegativePrompt(NegativePromptConfig.of(clip.config.text_config, _PROMPT)))
    model = model.to(options.device)
    words = word_counts(options.batch, options.words, generator)
    ids = random_captions(words, clip, generator)
    weights = torch.randn(options.batch, clip.config.projection_dim, generator=generator).to(options.device)
    row = {
        "model": options.model,
        "batch": options.batch,
        "mean_words": words.double().mean().item(),
        "longest_words": int(words.max()),
        **_compare(model, passes(model, ids, options.device), weights, options),
        "overhead": sub_batch_overhead(options.device),
        "tokens_a_sub_batch": _tokens_a_sub_batch(model, ids, weights, options),
    }
    return {"rows": [row]}


def _compare(
    model: NCUModel, variants: dict[str, tuple[Pass, Pass]], weights: Tensor, options: argparse.Namespace
) -> Row:
    """Times and counts. The operations are those of torch's counter, which does not know attention on a CPU."""

    def call(name: str) -> list[Tensor]:
        return forward_backward(model, variants[name], weights)

    tokens, operations, embeds = {}, {}, {}
    for name in variants:
        with counted_tokens(model.clip) as counts, FlopCounterMode(display=False) as counter:
            embeds[name] = torch.cat(call(name))
        tokens[name], operations[name] = counts, counter.get_total_flops()
    seconds = medians({name: lambda name=name: call(name) for name in variants}, options.repeats, options.device)
    total = {name: sum(counts) for name, counts in tokens.items()}
    row: Row = {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
    row |= {f"{name}_tokens": value for name, value in total.items()}
    row |= {f"{name}_operations": value for name, value in operations.items()}
    row["forward_passes"] = len(tokens["ours"])
    for other in ("longest", "padded_77"):
        row[f"{other}_over_ours"] = seconds[other] / seconds["ours"]
        row[f"{other}_over_ours_tokens"] = total[other] / total["ours"]
        row[f"{other}_over_ours_operations"] = operations[other] / operations["ours"]
        row[f"{other}_difference"] = (embeds["ours"] - embeds[other]).abs().max().item()
    return row


def _tokens_a_sub_batch(model: NCUModel, ids: Tensor, weights: Tensor, options: argparse.Namespace) -> float:
    """What one more sub-batch costs, in tokens: rows of one length, in one forward pass and in several."""
    alike = F.pad(ids, (0, _ALIKE), mode="replicate")[:, :_ALIKE].to(options.device)
    parts = alike.tensor_split(_PARTS)
    seconds = medians(
        {
            "one": lambda: forward_backward(model, (lambda: model.encode_text(alike),), weights),
            "parts": lambda: forward_backward(
                model, (lambda: torch.cat([model.encode_text(part) for part in parts]),), weights
            ),
        },
        options.repeats,
        options.device,
    )
    return (seconds["parts"] / seconds["one"] - 1) * alike.numel() / (_PARTS - 1)


TEXT = Benchmark("both text passes against padded ones", _text_flags, benchmark_text)
