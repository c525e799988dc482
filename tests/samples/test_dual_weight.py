"""Self-Drop and Dual-Weight in the trainer, against the method written out with plain autograd and a deep copy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from ncu_hf.config import MethodArguments
from ncu_hf.data import ImageTransform, PairCollator, normalize
from ncu_hf.data.records import Located
from ncu_hf.errors import InputError
from ncu_hf.modeling import NCUModel
from ncu_hf.objectives.sdd import SelfDropObjective, confidence_weights
from ncu_hf.parameters import parameter_groups
from ncu_hf.samples.dual_weight import FILE, DualWeightState
from ncu_hf.samples.encoding import PairEmbeds, PairEncoder
from ncu_hf.samples.siamese import Siamese
from ncu_hf.trainer import NCUTrainer

CLEAN, DROP = 0.2, 0.05
THRESHOLDS = {"sdd_clean_threshold": CLEAN, "sdd_drop_threshold": DROP}
# Two batches an epoch, so that the third step is in a new one.
SETTINGS = {"global_batch_size": 40, "max_steps": 3, "learning_rate": 3e-3, "lr_scheduler_type": "constant"}


class Oracle:
    """The method on its own: one process, one chunk, no hook, everything in float64."""

    def __init__(self, trainer: NCUTrainer):
        self.args, self.loader = trainer.args, trainer.make_loader
        self.encoder: PairEncoder = trainer.samples._encode_pairs
        self.model: NCUModel = copy.deepcopy(trainer.model)
        self.images = ImageTransform(trainer.processing_class.image_processor, train=False)
        self.collator = PairCollator(trainer.processing_class.tokenizer, self.images, context_length=32)
        self.source = self.encoder._source
        self.optimizer = self.new_optimizer(self.model)
        self.significance: list[Tensor] = []

    def new_optimizer(self, model: NCUModel) -> torch.optim.Optimizer:
        options = {"lr": self.args.learning_rate, "betas": (self.args.adam_beta1, self.args.adam_beta2)}
        return torch.optim.AdamW(parameter_groups(model, self.args), **options)

    def encode(self, model: NCUModel, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = normalize(pixels, self.images.mean, self.images.std, self.images.rescale)
        embeddings, log_scale = model(values.double(), ids)
        return embeddings.image, embeddings.text, log_scale

    def pairs(self, model: NCUModel, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        records = [Located(self.source[row], "", 0, (row,)) for row in rows]
        batch = self.collator(records, seed=0)
        return self.encode(model, batch["pixel_values"], batch["input_ids"])

    @torch.no_grad()
    def rate(self) -> tuple[Tensor, Tensor, Tensor]:
        image, text, log_scale = self.pairs(self.model, list(range(len(self.source))))
        cosine = (image * text).sum(dim=1)
        return image, text, torch.stack([cosine, confidence_weights(log_scale.exp() * cosine)])

    def train(self) -> None:
        image, text, rated = self.rate()
        clean = [i for i, cosine in enumerate(rated[0].tolist()) if cosine > CLEAN]
        bank = [[max(clean, key=lambda j: (e[i] @ e[j]).item()) for e in (image, text)] for i in range(len(image))]
        batches = iter(self.loader(None))
        for step in range(self.args.max_steps):
            batch = next(batches)
            if step and batch["epoch"] > epoch:  # noqa: F821 (that of the step before)
                rated = self.rate()[2]
            epoch = batch["epoch"]  # noqa: F841
            self.step(batch, rated, bank)

    def step(self, batch: dict[str, Any], rated: Tensor, bank: list[list[int]]) -> None:
        kept = [place for place, row in enumerate(batch["indices"].tolist()) if rated[0, row] > DROP]
        rows = batch["indices"][kept].tolist()
        pixels, ids = batch["pixel_values"][kept], batch["input_ids"][kept]
        siamese = copy.deepcopy(self.model)
        ahead = self.new_optimizer(siamese)
        ahead.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        before = self.bank_losses(siamese, rows, bank)
        self.descend(siamese, ahead, pixels, ids, rated[1, rows])
        after = self.bank_losses(siamese, rows, bank)
        ratio = [(a / b + c / d) / 2 for (a, c), (b, d) in zip(before, after, strict=True)]
        self.significance.append(torch.stack([r.tanh() if r < 1 else torch.ones_like(r) for r in ratio]))
        self.descend(self.model, self.optimizer, pixels, ids, rated[1, rows] * self.significance[-1])

    @torch.no_grad()
    def bank_losses(self, model: NCUModel, rows: list[int], bank: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
        losses = [self.losses(*self.pairs(model, [bank[row][side] for row in rows])) for side in (0, 1)]
        return list(zip(*losses, strict=True))

    def losses(self, image: Tensor, text: Tensor, log_scale: Tensor) -> list[Tensor]:
        logits = log_scale.exp() * image @ text.T
        return [-(logits.log_softmax(1)[i, i] + logits.log_softmax(0)[i, i]) / 2 for i in range(len(logits))]

    def descend(self, model: NCUModel, optimizer, pixels: Tensor, ids: Tensor, weights: Tensor) -> None:
        optimizer.zero_grad()
        (weights * torch.stack(self.losses(*self.encode(model, pixels, ids)))).mean().backward()
        if self.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            model.clip.logit_scale.clamp_(0, 4.605170185988092)


class Significance(TrainerCallback):
    """Keeps the mean significance of each step."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "significance_weight" in logs:
            self.means.append(logs["significance_weight"])


@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.05}, {"chunk_size": 7}], ids=str)
def test_three_steps_over_two_epochs_are_those_of_the_method(changes, trainers_of):
    (trainer,) = trainers_of("sdd", logging_steps=1, **THRESHOLDS, **SETTINGS, **{"max_grad_norm": 0, **changes})
    trainer.model.double()
    seen = Significance()
    trainer.add_callback(seen)
    start = copy.deepcopy(trainer.model.state_dict())
    oracle = Oracle(trainer)
    trainer.train()
    oracle.train()
    assert seen.means == pytest.approx([weights.mean().item() for weights in oracle.significance], abs=1e-6)
    assert min(weights.min().item() for weights in oracle.significance) < 0.9  # a step that harms some
    assert max(weights.max().item() for weights in oracle.significance) == 1
    found, expected = trainer.model.state_dict(), oracle.model.state_dict()
    for name, weight in found.items():
        if name.endswith("k_proj.bias"):  # no gradient but rounding, which AdamW makes large
            continue
        moved = (expected[name] - start[name]).norm().item()
        assert (weight - expected[name]).norm().item() <= 1e-5 * moved, name


# What is kept


def rated_state(similarity: list[float], **arguments) -> tuple[DualWeightState, list[int]]:
    """A state over pairs with these cosines, and a list that grows with every pass."""
    passes: list[int] = []
    image = F.normalize(torch.randn(len(similarity), 4, generator=torch.Generator().manual_seed(0)), dim=1)

    def encode_pairs(clip) -> PairEmbeds:
        passes.append(len(passes))
        return PairEmbeds(image, image.flip(0), torch.tensor(similarity), 10.0)

    return DualWeightState(SelfDropObjective(MethodArguments(**arguments)), encode_pairs), passes


def batch_of(rows: list[int], state: DualWeightState, epoch: int = 0) -> dict[str, Any]:
    partners, places = state.partners[rows].unique(return_inverse=True)
    return {
        "input_ids": torch.tensor([[row, row] for row in rows]),
        "keys": [str(row) for row in rows],
        "indices": torch.tensor(rows),
        "epoch": epoch,
        "partners": {"input_ids": partners[:, None]},
        "partner_places": places,
    }


class Clip:
    device = torch.device("cpu")


def test_a_batch_keeps_the_pairs_above_the_threshold_and_their_partners():
    state, _ = rated_state([0.5, 0.1, 0.4, torch.nan, 0.25, 0.6])
    state.start(Clip())
    batch = batch_of([5, 1, 4, 3], state)
    found = state.select(Clip(), batch)
    assert found["keys"] == ["5", "4"] and found["indices"].tolist() == [5, 4]
    assert found["input_ids"].tolist() == [[5, 5], [4, 4]]
    partners = found["partners"]["input_ids"][:, 0]
    assert partners[found["partner_places"]].equal(state.partners[[5, 4]])
    assert len(partners) == len(state.partners[[5, 4]].unique())
    nothing = state.select(Clip(), batch_of([1, 3], state))
    assert nothing["keys"] == [] and nothing["partner_places"].shape == (0, 2) and not len(nothing["input_ids"])


def test_each_epoch_has_one_pass_and_the_first_that_of_the_bank():
    state, passes = rated_state([0.5, 0.1, 0.4])
    state.start(Clip())
    for epoch, made in ((3, 1), (3, 1), (4, 2), (4, 2), (5, 3)):
        state.select(Clip(), batch_of([0, 1, 2], state, epoch))
        assert len(passes) == made


def test_a_loaded_state_goes_on_without_a_pass(tmp_path):
    state, _ = rated_state([0.5, 0.1, 0.4, 0.3])
    state.start(Clip())
    batch = batch_of([0, 1, 2, 3], state, epoch=2)
    chosen = state.select(Clip(), batch)
    state.save(tmp_path)
    other, passes = rated_state([0.9, 0.9, 0.9, 0.9])
    other.load(tmp_path)
    assert other.partners.equal(state.partners) and other._confidence.equal(state._confidence)
    assert other.select(Clip(), batch)["keys"] == chosen["keys"] and passes == []
    other.select(Clip(), {**batch, "epoch": 3})
    assert passes == [0]
    assert set(load_file(tmp_path / FILE)) == {"partners", "kept", "confidence", "epoch"}


def test_confidence_is_judged_among_all_usable_pairs():
    similarity = [0.5, 0.1, 0.45, torch.nan, 0.12, 0.6]
    state, _ = rated_state(similarity)
    state.start(Clip())
    known = torch.tensor(similarity)[[0, 1, 2, 4, 5]]
    assert state._confidence[[0, 1, 2, 4, 5]].tolist() == confidence_weights(10 * known).float().tolist()
    assert state._confidence[3] == 0 and state._confidence[5] > 0.9


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        ([0.29, 0.25, 0.1], r"--sdd_clean_threshold 0\.3: no pair .* at most 0\.290\..* lower it, for example to 0\.2"),
        ([0.3, torch.nan], "--sdd_clean_threshold 0.3"),
    ],
)
def test_a_model_without_clean_pairs_is_told_which_threshold_to_lower(similarity, message):
    with pytest.raises(InputError, match=message) as error:
        rated_state(similarity)[0].start(Clip())
    assert "\n" not in str(error.value)


def test_an_epoch_that_would_drop_all_is_refused():
    state, _ = rated_state([0.35, 0.4], sdd_drop_threshold=0.6)
    with pytest.raises(InputError, match=r"--sdd_drop_threshold 0\.6: no pair is left"):
        state.start(Clip())


# The siamese


def test_the_siamese_shares_what_does_not_train_and_moves_nothing_else(trainers_of):
    (trainer,) = trainers_of("sdd", **THRESHOLDS)
    model = trainer.model
    model.clip.vision_model.requires_grad_(False)
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 0.1}]
    siamese = Siamese(model, torch.optim.SGD(groups), torch.optim.SGD)
    assert not [name for name in siamese._own if "vision_model" in name] and "clip.logit_scale" in siamese._own
    pixels, ids = torch.rand(2, 3, 32, 32), torch.tensor([[1, 5, 2], [1, 6, 2]])
    for a, b in zip(siamese(pixels, ids, None)[0][:2], model(pixels, ids, None)[0][:2], strict=True):
        assert a.equal(b)
    with torch.no_grad():
        siamese._own["clip.logit_scale"].add_(1)
        siamese._own["clip.text_projection.weight"].mul_(-1)
    assert siamese.log_scale.item() == pytest.approx(model.clip.logit_scale.item() + 1)
    torch.testing.assert_close(siamese(pixels, ids, None)[0].text, -model(pixels, ids, None)[0].text)
    siamese.follow()
    assert siamese(pixels, ids, None)[0].text.equal(model(pixels, ids, None)[0].text)


def ahead_of(trainer: NCUTrainer, monkeypatch, **changes) -> tuple[list[float], dict[str, Tensor]]:
    """Mean significance of three steps whose scale of the loss is changed, and the last parameters of the copy."""
    step = NCUTrainer._step
    with monkeypatch.context() as patch:
        patch.setattr(NCUTrainer, "_step", lambda *inputs: step(*inputs)._replace(**changes))
        seen = Significance()
        trainer.add_callback(seen)
        trainer.train()
    return seen.means, trainer.samples._siamese._own


def test_a_scaled_loss_moves_the_siamese_as_the_loss_does(trainers_of, monkeypatch):
    runs = [
        ahead_of(*trainers_of("sdd", logging_steps=1, **THRESHOLDS, **SETTINGS), monkeypatch, loss_scale=scale)
        for scale in (1.0, 1024.0)  # a power of two changes no digit
    ]
    assert runs[0][0] == runs[1][0] and all(runs[0][1][name].equal(own) for name, own in runs[1][1].items())


def test_an_overflow_moves_nothing_and_then_all_pairs_are_significant(trainers_of, monkeypatch):
    (trainer,) = trainers_of("sdd", logging_steps=1, **THRESHOLDS, **SETTINGS)
    means, _ = ahead_of(trainer, monkeypatch, loss_scale=torch.inf)
    assert means == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": "true"},
        pytest.param({"lora_rank": 2}, marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation_steps": 2, "chunk_size": 5}, marks=pytest.mark.slow),
        pytest.param({"optim": "adafactor"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_runs_with_the_other_settings_of_the_trainer(changes, trainers_of):
    (trainer,) = trainers_of("sdd", logging_steps=1, **THRESHOLDS, **SETTINGS, **changes)
    seen = Significance()
    trainer.add_callback(seen)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    assert len(seen.means) == 3 and all(0 < mean <= 1 for mean in seen.means) and min(seen.means) < 1
    after = trainer.model.state_dict()
    assert all(weight.isfinite().all() for weight in after.values())
    assert not after["clip.logit_scale"].equal(before["clip.logit_scale"])


# Bad input


def test_a_stream_is_refused_at_start(recipe):
    with pytest.raises(InputError, match=r"--method sdd keeps numbers on every pair.*--streaming false"):
        recipe(method="sdd", streaming="true", train_pairs=96)


def test_a_run_whose_model_knows_no_clean_pair_ends_with_one_line(recipe):
    with pytest.raises(InputError, match=r"--sdd_clean_threshold 0\.9: no pair is clean"):
        recipe(method="sdd", sdd_clean_threshold=0.9)


def test_checkpoints_hold_the_state(recipe, scenes):
    output: Path = recipe(method="sdd", max_steps=2, **THRESHOLDS)
    state = load_file(output / "phases/self_drop/checkpoint-2" / FILE)
    assert state["partners"].shape == (96, 2) and state["kept"].dtype == torch.bool
    assert 0 < state["kept"].sum() < 96 and state["epoch"] == 0
    assert not list((output / "phases/self_drop/final").glob("*sample_state*"))
