"""Sessions of coding agents: read their transcripts, redact them, save them as exchanges, and show
lessons in them by hooks.

`hook` runs inside the agent with the standard library alone; everything else runs in `reflect
sessions` and `reflect connect`.
"""
