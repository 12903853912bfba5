"""Isolation of untrusted code: bubblewrap and seccomp."""
