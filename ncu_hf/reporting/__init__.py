"""Results as people read them: tables, plots, model card, audit of the data.

Everything here takes plain values; their layout is described in `ncu_hf.reporting.results`.
"""
