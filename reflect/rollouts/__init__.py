"""Rollouts: one attempt at a task, run and scored."""
