"""`--plan`: what a run would do, need and write, without training."""

from ncu_hf.planning.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
