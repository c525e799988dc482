"""Doubtful choices that a plan warns of."""

from __future__ import annotations

from dataclasses import replace

from ncu_hf.cli import parse_arguments
from ncu_hf.planning import Plan
from ncu_hf.planning.doubts import doubts


def warned(plan: Plan, **method) -> list[str]:
    flags = [word for name, value in method.items() for word in (f"--{name}", str(value))]
    arguments, _ = parse_arguments(["--output_dir", "none", "--use_cpu", "true", *flags])
    return [line.split(":")[0] for line in doubts(plan, arguments)]


def test_a_sound_plan_is_silent(plan_of):
    assert warned(plan_of()) == []


def test_space(plan_of):
    plan = plan_of()
    disk = replace(plan.disk, free=plan.disk.peak - 1)
    assert warned(replace(plan, disk=disk)) == ["Disk"]
    assert warned(replace(plan, disk=replace(disk, free=plan.disk.peak))) == []
    memory = replace(plan.memory, device="cuda:0", device_total=plan.memory.step - 1)
    assert warned(replace(plan, memory=memory)) == ["Memory"]
    assert warned(replace(plan, memory=replace(memory, device_total=plan.memory.step))) == []
    memory = replace(plan.memory, host_free=int(plan.memory.host) - 1)
    assert warned(replace(plan, memory=memory)) == ["Memory"]


def test_readers(plan_of):
    plan = plan_of()

    def with_data(workers: int, **changes) -> list[str]:
        return warned(replace(plan, workers=workers, data=replace(plan.data, **changes)))

    assert with_data(0, shards=3, processes=4, readers=1) == ["Shards"]
    assert with_data(0, shards=4, processes=4, readers=1) == []
    assert with_data(3, shards=8, processes=4, readers=2) == ["Shards"]
    assert with_data(2, shards=8, processes=4, readers=2) == []
    assert with_data(0, samples=3_000_000) == ["Workers"]
    assert with_data(1, samples=3_000_000) == []
    assert with_data(0, samples=3_000) == []


def test_length(plan_of):
    plan = plan_of()
    for by_density, doubtful in ((None, False), (90, False), (140, False), (150, True), (60, True)):
        data = replace(plan.data, by_density=by_density)  # 96 pairs
        assert warned(replace(plan, data=data)) == ["Length"] * doubtful


def test_warm_up(plan_of):
    assert warned(plan_of(warmup_steps=6)) == ["Warm-up", "Warm-up"]
    assert warned(plan_of(warmup_steps=6, num_train_epochs=2)) == ["Warm-up"]
    assert warned(plan_of(warmup_steps=5)) == []


def test_batches(plan_of):
    plan = plan_of()
    assert warned(plan, global_batch_size=255) == ["Batch"]
    assert warned(plan, global_batch_size=256) == []
    assert warned(plan, global_batch_size=8) == ["Batch", "Forgetting"]
    assert warned(plan, global_batch_size=8, forget_ratio=0) == ["Batch"]
    assert warned(plan, global_batch_size=8, method="clip") == ["Batch"]
