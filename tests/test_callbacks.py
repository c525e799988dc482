"""What is printed of a run."""

from __future__ import annotations

from transformers import TrainerControl, TrainerState, TrainingArguments

from ncu_hf.callbacks import PlainLog, TerminalLog


def lines_of(capsys, *shares: float, log: PlainLog | None = None, **where: bool) -> list[str]:
    log, control = log or PlainLog(), TrainerControl()
    state = TrainerState(max_steps=10, **where)
    arguments = TrainingArguments(use_cpu=True)
    log.on_train_begin(arguments, state, control)
    for step, share in enumerate(shares, start=1):
        state.global_step = step
        logs = {"loss": 1.0, "forget_loss": 0.25, "learning_rate": 1e-4, "samples_per_second": 80.4}
        log.on_log(arguments, state, control, logs={**logs, "data_wait_share": share})
    return capsys.readouterr().out.splitlines()


def test_a_line_has_step_losses_rate_and_wait(capsys):
    (line,) = lines_of(capsys, 0.123)
    for part in ("step 1/10", "loss 1 (forget 0.25)", "80 pairs/s, 12% waiting for data", "left"):
        assert part in line


def test_a_long_wait_is_told_once_but_not_of_the_first_line(capsys):
    lines = lines_of(capsys, 0.9, 0.1, 0.6, 0.6)
    hints = [line for line in lines if "bottleneck" in line]
    assert hints == [lines[3]] and "60% of the time" in hints[0] and "--dataloader_num_workers (0 now)" in hints[0]
    assert not [line for line in lines_of(capsys, 0.9, 0.2, 0.2) if "bottleneck" in line]


def test_another_machine_prints_nothing(capsys):
    """Its first process has no progress bar to write above."""
    elsewhere = {"is_world_process_zero": False, "is_local_process_zero": True}
    assert lines_of(capsys, 0.1, log=TerminalLog(), **elsewhere) == lines_of(capsys, 0.1, **elsewhere) == []
