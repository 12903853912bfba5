"""Lessons: selection for a prompt, safety checks, edits, votes, release from quarantine."""
