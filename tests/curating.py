"""What the tests of curating share: lessons by a line, edits by a line, a verdict by a line."""

from fakes import RuleModel, dialect

from reflect.lessons.apply_edits import Evidence, apply_edits
from reflect.lessons.edit_format import Edit
from reflect.records import Trial
from reflect.store import lessons as db

COUNT = RuleModel().count_tokens
ZUBI = dialect.Dialect.task("zubi", "reverse", [9, 2, 4], "practice")
SAYS = "the task says zubi"
SPELL = ("counting the letters of a word", "spell the word out and keep a counter")
SPELT = ("you count letters of a word", "spell the word out, keep a counter for it")


def add(s, when, do, **more):
    return db.add(s, **{"author": "model", "scope": "dialect", **more}, when=when, do=do)


def apply(s, edit, shown=(), task=ZUBI, contrast=True, **more):
    words = {
        "scope": "dialect",
        "profile": "default",
        "shown": [x.model_copy() for x in shown],
        **more,
    }
    return apply_edits(
        s, [edit], Evidence(task=task, contrast=contrast, **words), count_tokens=COUNT
    )[0]


def merging(*lessons, when=SPELL[0], do=SPELL[1]):
    return Edit("merge", when, do, lesson_ids=tuple(x.id for x in lessons))


def prove(s, lesson, verdict="accept"):
    words = {"effect": 0.3, "low": 0.1, "high": 0.5, "n": 80}
    s.add(
        Trial(
            lesson_id=lesson.id, version=lesson.version, kind="withhold", verdict=verdict, **words
        )
    )
    s.flush()
