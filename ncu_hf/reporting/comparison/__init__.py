"""Models side by side: the numbers of `scripts/evaluate.py` for the terminal, as Markdown, as CSV, and drawn.

All functions read the content of its `--json` file: `models`, `results` {model: {group: {set: numbers}}}, `paired`
(tests on the same items) and `published` (see `ncu_hf.reporting.published`). Differences are always to the first model.
A value that is missing or not finite is a dash, or an empty cell of the CSV.
"""

from ncu_hf.reporting.comparison.classes import per_class_table, per_class_tables
from ncu_hf.reporting.comparison.plot import plot_differences
from ncu_hf.reporting.comparison.rows import Estimate, comparison_rows, one_measurement
from ncu_hf.reporting.comparison.spreadsheet import comparison_csv
from ncu_hf.reporting.comparison.tables import comparison_markdown, comparison_table

__all__ = [
    "Estimate",
    "comparison_csv",
    "comparison_markdown",
    "comparison_rows",
    "comparison_table",
    "one_measurement",
    "per_class_table",
    "per_class_tables",
    "plot_differences",
]
