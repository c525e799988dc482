"""Numbers that a method keeps on every training pair: made at the start and at epochs, used in every step."""
