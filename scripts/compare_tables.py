"""Tables of a comparison: Markdown for readers, CSV for programs. From the numbers of its JSON file alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from compare_collect import MEAN_RECALL, ONE_SET, ZERO_SHOT
from compare_config import REFERENCE
from compare_statistics import excludes_zero

from ncu_hf.reporting.markdown import plain, table

DASH = "-"
SEEDS_MARK, ITEMS_MARK = r"\*", "†"
HEADINGS = {MEAN_RECALL: "mean recall", ZERO_SHOT: "zero-shot average"}
PLOTS = {
    "noise": "Against the share of noise",
    "differences": "Differences with both intervals",
    "detection": "The forget set before and after each phase",
    "figure4": "On parts of the training pairs",
    "interpolation": "Between reference and result",
}
CSV_HEAD = (
    *("noise_share", "entry", "against", "metric", "value", "sd", "n"),
    *("seeds_low", "seeds_high", "items_low", "items_high"),
)
LEGEND = (
    "In percent: mean ± standard deviation over seeds. Differences are paired, in percentage points; the first "
    "interval (95 %) is over seeds (Student's t), the second over items (bootstrap, the same items for both models, "
    f"mean over seeds). {SEEDS_MARK}: the one over seeds leaves 0 out; {ITEMS_MARK}: the one over items does."
)


def heading(metric: str) -> str:
    """A metric in words; a set by its name."""
    return HEADINGS.get(metric, metric.removeprefix(ONE_SET))


def comparison_markdown(numbers: dict[str, Any], plots: Mapping[str, str]) -> str:
    """Text of `comparison.md`; `plots` are files by name, relative to it."""
    comparison, study = numbers["comparison"], numbers["study"]
    parts = [
        f"# Comparison of methods: {plain(study['name'])}",
        f"{study['train']['pairs']:,} training pairs, {study['eval']['pairs']:,} clean pairs to measure on; "
        f"{comparison['steps']} optimizer steps each; seeds {', '.join(map(str, comparison['seeds']))}.",
    ]
    if missing := numbers["missing"]:
        parts.append(f"**Incomplete: {len(missing)} runs are missing** ({plain('; '.join(missing[:6]))}).")
    parts.append(LEGEND)
    for noise_share in comparison["noise_shares"]:
        parts += _noise_section(numbers, noise_share)
    parts += [f"![{PLOTS[name]}]({path})" for name, path in plots.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _noise_section(numbers: dict[str, Any], noise_share: float) -> list[str]:
    rows = [row for row in numbers["summary"] if row["noise_share"] == noise_share]
    if not rows:
        return [f"## {100 * noise_share:g} % noise", "Nothing is complete."]
    comparison = numbers["comparison"]
    found = [row for row in numbers["differences"] if row["noise_share"] == noise_share]
    parts = [f"## {100 * noise_share:g} % noise", values_table(rows)]
    for against in filter(None, (comparison["baseline"], REFERENCE)):
        if text := differences_table([row for row in found if row["against"] == against]):
            parts += [f"Difference to {'the reference' if against == REFERENCE else plain(against)}:", text]
    best = comparison["recommended"]
    if best is not None and (text := differences_table([row for row in found if row["entry"] == best], "against")):
        parts += [f"Difference of {plain(best)} to each other entry:", text]
    return [*parts, *detection_section(numbers, noise_share)]


def values_table(rows: list[dict[str, Any]]) -> str:
    """Mean ± deviation of each entry (rows) and metric (columns)."""
    metrics, entries = _names(rows, "metric"), _names(rows, "entry")
    cells = {(row["entry"], row["metric"]): spread_text(row) for row in rows}
    seeds = {row["entry"]: str(row["n"]) for row in rows}
    body = [
        [plain(entry), *(cells.get((entry, metric), DASH) for metric in metrics), seeds[entry]] for entry in entries
    ]
    return table(["entry", *map(plain, map(heading, metrics)), "seeds"], body)


def differences_table(rows: list[dict[str, Any]], of: str = "entry") -> str:
    """Difference with both intervals, of mean recall and of the zero-shot average; sets without intervals."""
    metrics = [metric for metric in _names(rows, "metric") if metric in HEADINGS]
    sets = [metric for metric in _names(rows, "metric") if metric not in HEADINGS]
    cells = {(row[of], row["metric"]): row for row in rows}
    body = []
    for name in _names(rows, of):
        wide = [difference_text(cells[name, metric]) if (name, metric) in cells else DASH for metric in metrics]
        short = [short_text(cells[name, metric]) if (name, metric) in cells else DASH for metric in sets]
        body.append([plain(name), *wide, *short])
    return table([of, *map(plain, map(heading, [*metrics, *sets]))], body)


def detection_section(numbers: dict[str, Any], noise_share: float) -> list[str]:
    """How well the clean confidence finds the mismatched pairs, before and after each phase."""
    rows = detection_rows(numbers, noise_share)
    if not rows:
        return []
    stages = list(dict.fromkeys(stage for _, found in rows for stage in found))
    stages.sort(key=lambda stage: (stage != "before", stage == "after"))
    body = [[plain(entry), *(found.get(stage, DASH) for stage in stages)] for entry, found in rows]
    head = ["entry", *(stage if stage in ("before", "after") else f"after {plain(stage)}" for stage in stages)]
    title = "Forget set against the known mismatches, AUROC / precision at the entry's forget ratio:"
    return [title, table(head, body)]


def detection_rows(numbers: dict[str, Any], noise_share: float) -> list[tuple[str, dict[str, str]]]:
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for run in numbers["runs"]:
        # Of the reference alone there is no "before", and its forget ratio is another one.
        if run["noise_share"] == noise_share and run["entry"] != REFERENCE:
            for stage, values in run["forget_set"].items():
                found.setdefault(run["entry"], {}).setdefault(stage, []).append(values)
    return [
        (entry, {stage: f"{_percent(runs, 'auroc')} / {_percent(runs, 'precision')}" for stage, runs in stages.items()})
        for entry, stages in found.items()
    ]


def _percent(runs: list[dict[str, float]], key: str) -> str:
    return f"{100 * sum(run[key] for run in runs) / len(runs):.1f}"


def spread_text(row: dict[str, Any]) -> str:
    """`"63.0 ± 0.4"`; without deviation of one seed."""
    sd = "" if row["sd"] is None else f" ± {100 * row['sd']:.1f}"
    return f"{100 * row['mean']:.1f}{sd}"


def difference_text(row: dict[str, Any]) -> str:
    """`"+2.1 [+1.0, +3.2] [+0.4, +3.8] *†"`."""
    intervals = [interval_text(row[kind]) for kind in ("over_seeds", "over_items")]
    return " ".join(filter(None, (signed(row["difference"]), *intervals, marks(row))))


def short_text(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (signed(row["difference"]), marks(row))))


def interval_text(interval: Iterable[float] | None) -> str:
    """`"[+1.0, +3.2]"`; `"[-]"` of one seed, or of a metric that is not known by item."""
    return "[-]" if interval is None else f"[{', '.join(map(signed, interval))}]"


def marks(row: dict[str, Any]) -> str:
    return SEEDS_MARK * excludes_zero(row["over_seeds"]) + ITEMS_MARK * excludes_zero(row["over_items"])


def signed(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "+0.0" if text == "-0.0" else text


def comparison_csv(numbers: dict[str, Any]) -> str:
    """One line a number: means with an empty `against`, then differences; shares, not percent."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for row in numbers["summary"]:
        place = [row["noise_share"], row["entry"], "", row["metric"]]
        writer.writerow([*place, row["mean"], row["sd"], row["n"], "", "", "", ""])
    for row in numbers["differences"]:
        bounds = [bound for kind in ("over_seeds", "over_items") for bound in row[kind] or ("", "")]
        place = [row["noise_share"], row["entry"], row["against"], row["metric"]]
        writer.writerow([*place, row["difference"], "", row["n"], *bounds])
    return buffer.getvalue()


def _names(rows: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))
