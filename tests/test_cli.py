"""Flags, YAML and defaults; wrong ones end in one line that names the value and the nearest right one."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ncu_hf.cli import parse_arguments, run_main
from ncu_hf.config import share_batch
from ncu_hf.errors import InputError


def parse(*argv: str, **options):
    return parse_arguments([*argv, "--use_cpu", "true"], **options)[0]


def test_defaults_are_the_papers(tmp_path):
    arguments = parse()
    training, method = arguments.training, arguments.method
    assert (training.global_batch_size, training.negative_prompt_epochs, training.num_train_epochs) == (2048, 2, 8)
    rates = (training.negative_prompt_learning_rate, training.prompt_learning_rate, training.learning_rate)
    assert rates == (1e-4, 3e-4, 5e-5)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.98, 1e-8)
    assert (training.weight_decay, training.prompt_weight_decay, training.max_grad_norm) == (0.2, 0.2, 0)
    assert (method.forget_ratio, method.plan_weight, method.entropy) == (0.1, 0.7, 0.03)
    assert (method.margin_low, method.margin_high, method.relation_weight) == (-0.7, -0.2, 10)
    assert arguments.model.prompt_length == 8


def test_flags_override_yaml_and_yaml_overrides_the_recipe(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 2e-5\nforget_ratio: 0.2\nglobal_batch_size: 64\n")
    defaults = {"learning_rate": 1e-3, "forget_ratio": 0.3, "entropy": 0.5}
    arguments = parse("--config", str(config), "--forget_ratio", "0.4", defaults=defaults)
    assert arguments.training.learning_rate == 2e-5
    assert (arguments.method.forget_ratio, arguments.method.entropy) == (0.4, 0.5)
    assert arguments.training.per_device_train_batch_size == 64


def test_batch_by_process():
    assert share_batch(64, None, 4) == (64, 16)
    assert share_batch(None, 8, 4) == (32, 8)
    assert share_batch(None, None, 16) == (2048, 128)
    with pytest.raises(InputError, match="cannot be shared by 4 processes"):
        share_batch(30, None, 4)
    with pytest.raises(InputError, match="give only one of them"):
        share_batch(64, 8, 4)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--forget_rato", "0.1"], ["--forget_rato", "'forget_ratio'"]),
        (["--formulation", "relesed"], ["'relesed'", "'released'", "paper"]),
        (["--forget_ratio", "1"], ["[0, 1)", "1.0"]),
        (["--forget_ratio", "-0.1"], ["[0, 1)", "-0.1"]),
        (["--forget_ratio", "many"], ["--forget_ratio", "'many'"]),
        (["--global_batch_size", "1"], ["1 pair", "at least 2"]),
        (["--chunk_size", "9", "--global_batch_size", "8"], ["--chunk_size 9", "8 rows"]),
        (["--chunk_size", "0"], ["--chunk_size 0"]),
        (["--entropy", "0"], ["--entropy", "0.0"]),
        (["--plan_weight", "1.5"], ["--plan_weight", "1.5"]),
        (["--margin_low", "-0.1"], ["--margin_low", "-0.1"]),
        (["--prompt_length", "0"], ["--prompt_length", "0"]),
        (["--lora_rank", "4", "--lora_towers", "txt"], ["'txt'", "'text'"]),
        (["--noise_share", "2"], ["--noise_share", "2.0"]),
        (["--noise_seed", "-1"], ["--noise_seed", "-1"]),
        (["--noise_kind", "hard"], ["--noise_kind hard", "without --noise_share"]),
        (["--noise_class_column", "label"], ["--noise_class_column label", "without --noise_share"]),
        (["--train_limit", "0"], ["--train_limit", "0"]),
        (["--eval_limit", "-3"], ["--eval_limit", "-3"]),
        (["--train_pairs", "0"], ["--train_pairs", "0"]),
        (["--max_bad_fraction", "5"], ["--max_bad_fraction", "5.0"]),
        (["--forget"], ["--forget"]),
        (["--config", "absent.yaml"], ["absent.yaml", "cannot be read"]),
    ],
)
def test_wrong_flags(argv, words):
    with pytest.raises(InputError) as error:
        parse(*argv)
    assert "\n" not in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("forget_rato: 0.1", ["'forget_rato'", "'forget_ratio'"]),
        ("- a\n- b", ["flag: value"]),
        ("a: [", ["cannot be read"]),
        ("forget_ratio: many", ["--forget_ratio", "'many'"]),
        ("global_batch_size: 12.5", ["--global_batch_size", "'12.5'"]),
        ("!!python/object/apply:os.system ['true']", ["cannot be read"]),
    ],
)
def test_wrong_yaml(text, words, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(InputError) as error:
        parse("--config", str(config))
    assert [word for word in words if word not in str(error.value)] == []


def test_flags_of_one_recipe():
    @dataclass
    class Extra:
        scenes: int = field(default=3)

    assert parse_arguments(["--scenes", "5"], extra=Extra)[1].scenes == 5
    with pytest.raises(InputError):
        parse_arguments(["--scenes", "5"])


def test_an_interrupted_script_says_so_in_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run_main(interrupted)
    assert stopped.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped: interrupted") and "--resume_from_checkpoint true" in line


def test_several_processes_without_an_accelerator_are_those_of_a_cpu(monkeypatch):
    """`torchrun` without `--use_cpu true`: `Trainer` would take each process for a run of its own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for found in (True, False):
        monkeypatch.setattr("torch.accelerator.is_available", lambda found=found: found)
        monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda arguments: None)
        arguments, _ = parse_arguments(["--output_dir", "out", "--global_batch_size", "4"])
        assert arguments.training.use_cpu is not found
