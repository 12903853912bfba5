"""The database: the only code that speaks SQL. `lessons`, `runs`, `nights` and `doctor` are its
queries.

Every query function takes a Session first, so that callers compose transactions:

    with store.write() as s:
        runs.save_reflection(s, reflection)
        lessons.add(s, when="...", do="...", author="model", reflection_id=reflection.id)
"""

from reflect.store.database import Store

__all__ = ["Store"]
