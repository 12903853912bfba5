"""Statistics without I/O: confidence sequences, the bootstrap, kappa."""
