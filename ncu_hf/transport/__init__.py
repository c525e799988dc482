"""Masked entropic optimal transport: `solve_transport` and its result, `TransportPlan`."""

from ncu_hf.transport.solver import TransportPlan, solve_transport

__all__ = ["TransportPlan", "solve_transport"]
