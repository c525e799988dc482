"""The model card of a run: of each checkpoint while it trains, of the result at its end."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ncu_hf.checkpoint import read_json
from ncu_hf.cli import Arguments
from ncu_hf.config import GLOBAL_BATCH_SIZE, MethodArguments, NCUTrainingArguments
from ncu_hf.data import DataHealth
from ncu_hf.environment import command, environment, machine
from ncu_hf.modeling import PROMPT_FOLDER
from ncu_hf.objectives import METHODS, build_objectives
from ncu_hf.reporting.forgetting import forget_summary
from ncu_hf.reporting.model_card import write_card
from ncu_hf.reporting.plots import plot_losses
from ncu_hf.run import Run
from ncu_hf.workspace import LEARNING_SETTINGS, run_settings

# Where the run says the same as the paper (section 5.1, and the released code), the card does not mark a setting.
_OF_THE_PAPER = (
    "forget_ratio",
    "forget_window",
    "forget_target",
    "negative_rank",
    "freeze_token_embedding",
    "plan_weight",
    "entropy",
    "margin_low",
    "margin_high",
    "relation_weight",
    "global_batch_size",
    "num_train_epochs",
    "learning_rate",
    "negative_prompt_epochs",
    "negative_prompt_learning_rate",
    "prompt_learning_rate",
    "weight_decay",
    "prompt_weight_decay",
    "adam_beta2",
    "warmup_steps",
    "max_grad_norm",
)
# Each pair of settings is one length: steps count if there are any.
_LENGTHS = {"max_steps": "num_train_epochs", "negative_prompt_max_steps": "negative_prompt_epochs"}


def write_training_card(run: Run, phase: str, folder: Path, state: TrainerState, health: DataHealth) -> None:
    """Write the card of a model that is still being trained: what it is, and the curves so far.

    Args:
        run (`Run`): The run.
        phase (`str`): The phase that it is in.
        folder (`Path`): A checkpoint, or the outcome of the phase.
        state (`TrainerState`): Of the phase's trainer.
        health (`DataHealth`): Records of this phase that could not be used.
    """
    names = [objective.phase for objective in build_objectives(run.arguments.method)]
    number = names.index(phase) if phase in names else 0  # an objective may be trained by itself
    records = [run.workspace.final(name) / "phase.json" for name in names[:number]]
    done = [read_json(record) for record in records if record.is_file()]
    now = {"name": phase, "steps": state.global_step, "epochs": state.epoch, "log_history": state.log_history}
    total = DataHealth(health.max_bad_fraction)
    total.merge([*(earlier["data_health"] for earlier in done), health.state_dict()])
    results = describe_run(run, [*done, now], total, folder) | {
        "checkpoint": {
            "phase": phase,
            "step": state.global_step,
            "steps": state.max_steps,
            "phase_number": number + 1,
            "phases": len(names),
        }
    }
    write_card(results, folder)


def describe_run(run: Run, phases: list[dict[str, Any]], health: DataHealth, folder: Path) -> dict[str, Any]:
    """What a card says of a run apart from what was measured (see `ncu_hf.reporting.results`), its curves drawn.

    Args:
        run (`Run`): The run.
        phases (`list[dict]`): `phase.json` of each phase so far.
        health (`DataHealth`): Records that could not be used in them.
        folder (`Path`): Of the card; the plot goes to `plots/` in it.
    """
    arguments = run.arguments
    training, histories = arguments.training, {phase["name"]: phase["log_history"] for phase in phases}
    described = {
        "model_name": run.workspace.folder.resolve().name,
        "method": arguments.method.method,
        "method_docs": [inspect.getdoc(kind).split("\n\n")[0] for kind in METHODS[arguments.method.method]],
        "base_model": _base_model(run),
        "hub_model_id": training.hub_model_id,
        "license": training.license,
        "language": training.language,
        "data": _describe_data(run),
        "data_health": {"seen": health.seen, "skipped": health.skipped, "reasons": health.reasons},
        "hyperparameters": _hyperparameters(arguments),
        "phases": [{key: phase.get(key) for key in ("name", "steps", "epochs", "seconds")} for phase in phases],
        "plots": _draw_losses(histories, folder),
        "command": command(),
        "environment": environment(),
        "machine": machine(),
    }
    if "formulation" in _settings_of(arguments.method):
        described["formulation"] = arguments.method.formulation
        described["paper_hyperparameters"] = _paper_hyperparameters()
        described["forget_summary"] = forget_summary(
            histories, arguments.method.forget_ratio, arguments.method.forget_window
        )
    prompt = folder / PROMPT_FOLDER
    if prompt.is_dir():
        described["prompt"] = {"folder": PROMPT_FOLDER, "length": read_json(prompt / "config.json")["length"]}
    return described


def _draw_losses(histories: dict[str, list[dict[str, Any]]], folder: Path) -> dict[str, str]:
    """Path of the plot of the losses, relative to the card; none where nothing was logged yet."""
    if not any("loss" in line for history in histories.values() for line in history):
        return {}
    path = plot_losses(histories, folder / "plots" / "losses.png")
    return {"losses": str(path.relative_to(folder))}


def _base_model(run: Run) -> dict[str, Any]:
    settings = run.arguments.model
    if settings.model is None:
        return {"name": settings.model_config, "kind": "scratch"}
    if Path(settings.model).is_dir():
        return {"name": settings.model, "kind": "local"}
    return {"name": settings.model, "kind": "hub", "revision": run.reference.revision}


def _describe_data(run: Run) -> dict[str, Any]:
    data, described = run.arguments.data, run.source.description
    noise = {f"noise_{name}": value for name, value in described.get("noise", {}).items()}
    return {
        "description": f"{described['name']} ({described['format']})",
        "hub_id": described["name"] if described["revision"] or described["format"] == "hub" else None,
        "revision": described["revision"],
        "n_pairs": described["rows"],
        "subset": described.get("subset"),
        **noise,
        "augmentation": _augmentation(run),
        "eval_description": data.eval_data,
    }


def _augmentation(run: Run) -> list[str]:
    """What happens to a training pair before the model sees it."""
    data = run.arguments.data
    crop = f"images cropped at random to {100 * data.crop_scale_min:g} to 100 % of their area"
    lines = [crop if data.random_crop else "images resized and cropped in the centre, as the processor does"]
    if data.augment_negative_captions:
        lines.append("words of the captions of the negative branch swapped, deleted and inserted at random")
    return lines


def _hyperparameters(arguments: Arguments) -> dict[str, Any]:
    """What determines the result, apart from the model that it starts from and the data."""
    settings = run_settings(arguments)
    chosen = {name: settings[name] for name in LEARNING_SETTINGS if name != "estimate_forget_ratio" or settings[name]}
    for steps, epochs in _LENGTHS.items():
        del chosen[epochs if chosen[steps] > 0 else steps]
    if arguments.model.adapted_towers:
        chosen |= {name: settings[name] for name in ("lora_rank", "lora_alpha", "lora_towers")}
    if not any(objective.needs_prompt for objective in build_objectives(arguments.method)):
        chosen = {name: value for name, value in chosen.items() if "prompt" not in name}
    return {**{name: settings[name] for name in _settings_of(arguments.method)}, **chosen}


def _settings_of(method: MethodArguments) -> list[str]:
    """The method's settings that decide what it learns, in the order of the flags; the card lists no others."""
    used = {name for objective in METHODS[method.method] for name in objective.settings}
    return [field.name for field in fields(MethodArguments) if field.name in used]


def _paper_hyperparameters() -> dict[str, Any]:
    """The paper's values, which are the defaults of the settings; N has its default where it is resolved."""
    defaults = {field.name: field.default for cls in (MethodArguments, NCUTrainingArguments) for field in fields(cls)}
    return {name: defaults[name] for name in _OF_THE_PAPER} | {"global_batch_size": GLOBAL_BATCH_SIZE}
