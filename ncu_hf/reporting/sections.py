"""Parts of the card that are made of numbers: tables and sentences, each empty where there is nothing to say."""

from __future__ import annotations

from ncu_hf.reporting.hub_results import set_data
from ncu_hf.reporting.markdown import code, code_cell, hub_link, plain, table
from ncu_hf.reporting.results import HELD_OUT, SET_GROUPS, SIDES, finite
from ncu_hf.reporting.rows import AVERAGE, RETRIEVAL, ZERO_SHOT, Row
from ncu_hf.reporting.tables import table_rows

KINDS = {
    "positives": "positive pairs",
    "negatives_mean": "mean of an image's negatives",
    "negatives_top": "mean of its top 5 % negatives",
}
SHORT = 12  # characters of a digest or commit in a table
MOST_SENTENCES = 3  # on retrieval, above which the table says it better


def outcome_lines(run: dict) -> list[str]:
    """What became of the primary metrics, whichever way it went: a sentence for zero-shot, one a retrieval set."""
    rows = [row for row in table_rows(run) if row.primary and row.compares]
    zero_shot = [row for row in rows if row.group == ZERO_SHOT]
    retrieval = [row for row in rows if row.group == RETRIEVAL]
    lines = [_outcome(_zero_shot_subject(zero_shot[-1]), zero_shot[-1])] if zero_shot else []
    if len(retrieval) <= MOST_SENTENCES:
        lines += [
            _outcome(f"Mean retrieval recall (R@1, R@5 and R@10 both ways) on {code(row.set_name)}", row)
            for row in retrieval
        ]
    return lines


def _zero_shot_subject(row: Row) -> str:
    """The average stands last."""
    if row.name == AVERAGE:
        return f"The mean zero-shot result ({row.set_name}, primary metric of each)"
    return f"Zero-shot classification of {code(row.set_name)} ({row.name})"


def _outcome(subject: str, row: Row) -> str:
    values = [100 * row.values[side] for side in SIDES]
    told = f"{row.difference()} points"
    if row.paired_interval:
        told += ", 95 % interval of the paired difference"
    elif all(side in row.intervals for side in SIDES):
        (low, high), (low_after, high_after) = (row.intervals[side] for side in SIDES)
        apart = high < low_after or high_after < low
        told += f"; the 95 % intervals {'do not overlap' if apart else 'overlap'}"
    return f"{subject} went from {values[0]:.1f} % to {values[1]:.1f} % ({told})."


def hyperparameter_table(run: dict) -> tuple[str, bool]:
    """The table, settings that differ from the paper first and marked, and whether any does."""
    paper, chosen = run.get("paper_hyperparameters", {}), run.get("hyperparameters", {})
    differs = [name for name in chosen if name in paper and paper[name] != chosen[name]]
    order = [*differs, *(name for name in chosen if name not in differs)]
    rows = [
        [
            code_cell(name) + (" \\*" if name in differs else ""),
            _setting(chosen[name]),
            _setting(paper.get(name, "")) if differs else "",
        ]
        for name in order
    ]
    return table(("name", "value", "paper"), rows, left=3), bool(differs)


def _setting(value: object) -> str:
    """A value as a person writes it: 8, not 8.0."""
    return plain(int(value) if isinstance(value, float) and value.is_integer() else value)


def similarity_table(sides: dict) -> str:
    """Mean and standard deviation of each kind, by side."""
    present = [side for side in SIDES if side in sides]
    rows = [[label, *(_spread(sides[side].get(kind, {})) for side in present)] for kind, label in KINDS.items()]
    if all(cell == "-" for row in rows for cell in row[1:]):
        return ""
    return table(
        ("cosine of images and texts", *(present if len(present) > 1 else ["mean ± standard deviation"])), rows
    )


def _spread(numbers: dict) -> str:
    mean, std = finite(numbers.get("mean")), finite(numbers.get("std"))
    return "-" if mean is None else f"{mean:.3f}" + (f" ± {std:.3f}" if std is not None else "")


def probe_table(sets: dict) -> str:
    """How each probe was fitted."""
    rows = []
    for name, sides in sets.items():
        after = sides.get("after", {})
        sizes = [f"{after[key]:,}" if key in after else "" for key in ("n_train", "n_validation")]
        strengths = [f"{value:.3g}" for side in SIDES if (value := finite(sides.get(side, {}).get("regularisation")))]
        rows.append([plain(name), *sizes, " / ".join(dict.fromkeys(strengths)), plain(after.get("features", ""))])
    told = [row for row in rows if any(row[1:])]
    return table(("set", "trained on", "chosen on", "regularisation", "features"), told)


def sets_table(run: dict) -> str:
    """Where each set comes from: data set, version, class names and templates, and what to know of it."""
    rows: dict[tuple, list[str]] = {}
    for group in SET_GROUPS:
        for name, sides in run.get(group, {}).items():
            after = sides.get("after", {})
            data = set_data(run, name, after)
            row = rows.setdefault((name, str(data)), [plain(name), *_data_cells(data), "", ""])
            if "hash" in after:
                row[3] = code_cell(after["hash"])
            row[4] = "; ".join(dict.fromkeys(filter(None, [row[4], *_notes(run, name, data, after)])))
    told = [row for row in rows.values() if any(row[1:])]
    return table(("set", "data", "version", "classes and templates", "notes"), told, left=5)


def _data_cells(data: dict) -> list[str]:
    revision = data.get("revision")
    version = revision if revision is not None else data.get("fingerprint", "")
    where = hub_link(data["hub_id"], revision) if "hub_id" in data else ""
    split = plain(data["split"]) if "split" in data else ""
    return [", ".join(filter(None, [where, split])), code_cell(str(version)[:SHORT]) if version else ""]


def _notes(run: dict, name: str, data: dict, numbers: dict) -> list[str]:
    notes = [plain(data["note"])] if "note" in data else []
    if name == HELD_OUT and "eval_description" in run["data"]:
        notes.append(plain(run["data"]["eval_description"]))
    reasons = numbers.get("skipped", {})
    if reasons:
        told = ", ".join(f"{plain(reason)} {count:,}" for reason, count in reasons.items())
        notes.append(f"{sum(reasons.values()):,} left out ({told})")
    return notes


def forget_set_between(found: dict) -> str:
    """What the outcomes of the phases but the last say of the forget set."""
    return " ".join(
        f"After the phase {plain(phase)}: AUROC {100 * numbers['auroc']:.1f}, precision "
        f"{100 * numbers['precision']:.1f}."
        for phase, numbers in found.items()
        if phase not in SIDES
    )


def forget_summary_table(summary: dict) -> str:
    """Mean clean confidence of forgotten and retained pairs, at the first and last line of the log."""
    labels = {"forget": "forget set", "retain": "retained pairs"}
    confidence = summary["confidence"]
    rows = [
        [label, *(f"{confidence[name][end]:.3f}" for end in ("first", "last"))]
        for name, label in labels.items()
        if {"first", "last"} <= set(confidence.get(name, {}))
    ]
    return table(("mean clean confidence", "first steps", "last steps"), rows)


def forget_summary_text(summary: dict) -> str:
    """What the table shows, and what the run cannot know."""
    phase = f" of phase {code(summary['phase'])}" if "phase" in summary else ""
    confidence = summary["confidence"]
    share, window = f"{100 * summary['share']:.3g} %", summary.get("window", 1)
    chosen = f"the {share} of a batch with the lowest clean confidence"
    if window > 1:
        chosen = f"those pairs of a batch that are among the {share} of lowest clean confidence of the last {window}"
        chosen += " batches together"
    text = f"In each of the {summary['n_steps']:,} steps{phase} {chosen} formed the forget set."
    if {"q10", "q50", "q90"} <= set(confidence):
        low, middle, high = (confidence[key] for key in ("q10", "q50", "q90"))
        text += f" Over all pairs of the last steps its median was {middle:.3f}, its 10 % and 90 % quantiles"
        text += f" {low:.3f} and {high:.3f}."
    return (
        f"{text} Which pairs truly do not match is not known, so this tells how far apart the model"
        " holds the two sets, not how well it chose."
    )
