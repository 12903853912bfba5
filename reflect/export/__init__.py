"""Lessons out of a database and into one.

`lines`: JSON Lines, lossless.  `restore`: its way back, with the rules of merging.  `markdown`:
text for people, for AGENTS.md and CLAUDE.md, and SKILL.md folders.  `files`: writing that is whole
or did not happen.

Not covered: runs, rollouts, nights and adapters, which belong to one database; `reflect lessons
backup` copies the database whole.
"""
