"""The gate: held-out tests that an adapter must pass before promotion."""
