"""Masked entropic optimal transport: one plan or the released code's two, and what a solution is, `TransportPlan`."""

from ncu_hf.transport.solver import NotFiniteCost, TransportPlan, solve_transport, solve_transport_both_ways

__all__ = ["NotFiniteCost", "TransportPlan", "solve_transport", "solve_transport_both_ways"]
