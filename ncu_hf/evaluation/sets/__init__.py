"""Sets to evaluate on: the paper's by name, local ones, and those of the Hub."""
