"""Comparison of arms on the same tasks, and the agreement of a judge with people."""
