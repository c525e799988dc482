"""The benchmark of several processes: sizes, shares and the exchange of gradients."""

from __future__ import annotations

import pytest

from ncu_hf.errors import InputError

SIZES = ("--model", "small", "--rows", 12, "--chunk", 5, "--n", 256, 128, "--repeats", 1, "--threads", 1)


@pytest.mark.slow
def test_scaling(benchmark):
    shown, report = benchmark("scaling", "--processes", 1, 2, *SIZES, "--large_n", 512, "--large_processes", 2)
    assert [row["rows_a_process"] for row in report["weak"]] == [12, 12]
    assert [row["rows_a_process"] for row in report["strong"]] == [12, 6]
    for table in ("weak", "strong"):
        assert report[table][0]["efficiency"] == 1
        assert all(row["gradient_all_reduces"] == 1 for row in report[table])  # of chunks of 5 rows
        assert all(row["communication_share"] >= 0 for row in report[table])
    assert [(row["n"], row["processes"]) for row in report["losses"]] == [(128, 1), (128, 2), (256, 1), (256, 2)]
    assert [row["efficiency"] for row in report["losses"][::2]] == [1, 1]
    alone, shared = report["losses"][2:]
    assert alone["peak_mib"] > 0.5  # two matrices of 256 x 257 floats
    assert shared["peak_mib"] < alone["peak_mib"]  # so small a batch is mostly what all processes gather
    (far,) = report["losses_extrapolated"]
    measured = 4 * (shared["floats_a_cell"] * 512**2 / 2 + shared["floats_a_row"] * 512) / 2**30
    assert far["ours_gib_a_process"] == pytest.approx(measured)
    assert far["reference_gib_a_process"] > far["ours_gib_a_process"] > 0
    assert "efficiency" in shown


def test_sizes_that_cannot_be_shared_are_refused(benchmark):
    with pytest.raises(InputError, match="multiples of 5"):
        benchmark("scaling", "--processes", 5, *SIZES)
