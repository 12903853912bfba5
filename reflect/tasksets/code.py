"""Code tasks: the rollout's program runs in the sandbox on inputs; what it gives back is compared
out here.

    {"prompt": "Write double(n).", "verifier": "code", "entry": "double",
     "cases": [{"args": [2], "returns": 4}, {"args": [-1], "returns": -2}],
     "gold": "def double(n): return 2 * n"}
    {"prompt": "Read a number, print its double.", "verifier": "code",
     "cases": [{"stdin": "2", "stdout": "4"}]}

With `entry` the program is a function's, and what it returns must be plain JSON; without, it reads
stdin and prints. Every case is a fresh process in a fresh sandbox, which is given the program and
that case's inputs. What is expected never goes in, and nothing that comes out is run: it is one
JSON value (or text), compared here by type and value. So an exit status, a mark on stdout, a
patched module or an object that equals everything is worth nothing; a program gets the reward by
giving the right values, and by nothing else.

`twin`: more cases, which contradict the task. Only a program that was fitted to tests passes all of
these; such a rollout is marked (`Score.parts[TWIN]`), has no reward, and nothing is learned from
it.

Not covered: a program that guesses (give cases that are hard to guess), and one that was fitted to
the cases themselves where the prompt shows them: put some into `cases` only.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from reflect.sandbox import bubblewrap
from reflect.tasksets.task import TWIN, Score

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reflect.types import Json

FIELDS = ("entry", "cases", "twin", "seconds", "memory")
FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^[ \t]*```[ \t]*$",
    re.DOTALL | re.MULTILINE | re.I,
)
MOST = 256 * 1024  # characters of a program
SHOWN = 160  # characters of a program's output in feedback
MISSING = object()

# Inside. It reads the job first, so that what the program does to its modules comes too late to
# matter even there.
HARNESS = """
import json, os, sys, types
def take(n):
    data = b""
    while len(data) < n and (more := os.read(0, n - len(data))):
        data += more
    return data
job = json.loads(take(int(take(12))))
sys.path[:] = [path for path in sys.path if path]
name = "__main__" if job["entry"] is None else "solution"
module = sys.modules[name] = types.ModuleType(name)
code = compile(job["program"], "solution.py", "exec")
if job["entry"] is None:
    exec(code, module.__dict__)
else:
    out = os.dup(1)
    os.dup2(2, 1)
    exec(code, module.__dict__)
    value = json.dumps(getattr(module, job["entry"])(*job["args"]), allow_nan=False).encode()
    while value:
        value = value[os.write(out, value):]
    os._exit(0)
"""


class Bad(ValueError):
    """A code task that cannot be graded: (field, what is wrong, what to do)."""


class CodeCase(NamedTuple):
    """What goes in (args, or the text on stdin), and what must come back, which stays here."""

    given: Any
    expected: Any


def answer_of(fields: Mapping[str, Any]) -> Json:
    """`Task.answer` of a code task from its fields: checked, and JSON. `Bad` says which field is
    wrong.

    In Python: Task("double", messages, "code", answer_of({"entry": "double", "cases": [...]})).
    """
    entry = fields.get("entry")
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
        raise Bad(
            "entry",
            f"{entry!r} is no name of a function",
            "Name the function, or leave the field out.",
        )
    answer: Json = {"entry": entry, "cases": _cases("cases", fields.get("cases"), entry)}
    if "twin" in fields:
        answer["twin"] = _cases("twin", fields["twin"], entry)
    for field, most in (("seconds", 600), ("memory", 65536)):
        if field in fields:
            try:
                answer[field] = float(fields[field]) if field == "seconds" else int(fields[field])
            except (TypeError, ValueError, OverflowError):
                answer[field] = 0
            if isinstance(fields[field], bool) or not 0 < answer[field] <= most:
                raise Bad(
                    field,
                    f"{fields[field]!r} is no limit",
                    f"Give a number above 0, at most {most}.",
                )
    return answer


def _cases(field: str, rows: object, entry: str | None) -> list[Json]:
    names, form = (
        (("args", "returns"), '{"args": [2], "returns": 4}') if entry else (("stdin", "stdout"), "")
    )
    form = form or '{"stdin": "2", "stdout": "4"}'
    step = f'Write "{field}": [{form}, ...]' + (
        "." if entry else ', or name the function: "entry": "...".'
    )
    if not isinstance(rows, list) or not rows:
        raise Bad(field, "it is not a list of cases", step)
    for row in rows:
        fits = isinstance(row, dict) and set(row) == set(names)
        if fits and entry:
            fits = isinstance(row["args"], list) and _finite(row)
        elif fits:
            fits = isinstance(row["stdin"], str) and isinstance(row["stdout"], str)
        if not fits:
            raise Bad(field, f"{_short(repr(row))} is no case", step)
    return [dict(row) for row in rows]


def _finite(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def code(text: str, answer: Any) -> Score:
    """1 when the program of the rollout gives back what is expected in every case. SandboxError
    where none is to be had: then nothing was run."""
    program, entry = program_of(text), answer["entry"]
    if not program.strip() or len(program) > MOST:
        return Score(
            0.0, "there is no program" if not program.strip() else "the program is too long"
        )
    limits = bubblewrap.SandboxLimits(
        **{name: answer[name] for name in ("seconds", "memory") if name in answer}
    )
    wrong = _first_wrong(program, entry, _known(answer["cases"]), limits)
    if "twin" in answer and not _first_wrong(program, entry, _known(answer["twin"]), limits):
        return Score(
            0.0, "it passes tests that contradict the task: it was fitted to tests", {TWIN: 1.0}
        )
    return Score(0.0, wrong) if wrong else Score(1.0)


def program_of(text: str) -> str:
    """The last fenced block of Python, or the whole text where there is none."""
    blocks = FENCE.findall(text)
    return blocks[-1] if blocks else text


def hardcodes(lesson: Sequence[str], answer: Any, words: Callable[[str], list[str]]) -> bool:
    """Do the words of a lesson name the input of a case and the output expected for it? `words`
    splits a text."""

    def holds(value: object) -> bool:
        part = words(value if isinstance(value, str) else json.dumps(value))
        return bool(part) and any(
            list(lesson[i : i + len(part)]) == part for i in range(len(lesson) - len(part) + 1)
        )

    cases = [*_known(answer["cases"]), *_known(answer.get("twin", []))]
    return any(holds(case.given) and holds(case.expected) for case in cases)


def _known(rows: Sequence[Mapping[str, Any]]) -> list[CodeCase]:
    return [
        CodeCase(*(row["args"], row["returns"]) if "args" in row else (row["stdin"], row["stdout"]))
        for row in rows
    ]


def _first_wrong(
    program: str, entry: str | None, cases: Sequence[CodeCase], limits: bubblewrap.SandboxLimits
) -> str:
    """What is wrong with the first case that fails, without what is expected; "" when all pass."""
    for number, case in enumerate(cases, 1):
        if wrong := _wrong(program, entry, case, limits):
            return f"case {number} of {len(cases)}: {wrong}"
    return ""


def _wrong(
    program: str, entry: str | None, case: CodeCase, limits: bubblewrap.SandboxLimits
) -> str:
    job = json.dumps(
        {"program": program, "entry": entry, "args": case.given if entry else []}
    ).encode()
    given = b"" if entry else case.given.encode()
    argv = [bubblewrap.python(), *bubblewrap.ISOLATED, "-c", HARNESS]
    ended = bubblewrap.run(argv, b"%012d" % len(job) + job + given, limits)
    if ended.limit:
        return {
            "time": f"it did not end within {limits.seconds:g} s",
            "memory": f"it used more than {limits.memory} MiB of memory",
            "output": f"it wrote more than {limits.output} KiB",
            "files": f"it made more than {limits.inodes} files",
        }[ended.limit]
    if ended.code:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        return _short(lines[-1]) if lines else f"it ended with status {ended.code}"
    if entry is None:
        got = _lines(ended.stdout.decode(errors="replace"))
        return (
            "" if got == _lines(case.expected) else f"it printed {_short(repr(chr(10).join(got)))}"
        )
    value = _value(ended.stdout)
    if value is MISSING:
        return "it gave no result" if not ended.stdout else "its result is no JSON value"
    return "" if same(value, case.expected) else f"it returned {_short(repr(value))}"


def _value(out: bytes) -> object:
    """The one JSON value in `out`, MISSING where there is another thing, or more than one."""
    try:
        return json.loads(out.decode(), parse_constant=lambda name: math.nan)
    except (ValueError, RecursionError):
        return MISSING


def same(got: object, want: object) -> bool:
    """Equal by type and value. A whole number and a fraction are compared as numbers, to one part
    in a billion."""
    if isinstance(want, bool) or isinstance(got, bool) or want is None or isinstance(want, str):
        return type(got) is type(want) and got == want
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return (
            isinstance(got, dict)
            and got.keys() == want.keys()
            and all(same(got[key], want[key]) for key in want)
        )
    if not isinstance(got, int | float) or not isinstance(want, int | float):
        return False
    if isinstance(got, int) and isinstance(want, int):
        return got == want
    try:
        return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-12)
    except OverflowError:
        return False


def _lines(text: str) -> list[str]:
    """What was printed; white space at the end of a line, and empty lines at the end of it all, do
    not count."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _short(text: str) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
