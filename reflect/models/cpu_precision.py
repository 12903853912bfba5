"""bfloat16 on a CPU: is it faster here than float32?

Only CPUs with instructions for it (avx512_bf16, amx) can be faster; elsewhere it is emulated and
many times slower. Matrix products of the size of a layer are timed once per CPU and version of
torch, and the result is kept in the user's cache, so that later runs of a model round alike.
"""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress

import torch

from reflect.reading import user_cache

LARGE = 2**26  # weights from which the precision is measured; smaller models stay in float32
FASTER = 1.3  # times, so that noise does not decide
ROWS, WIDTH, TRIES = 64, 2048, 5


def is_bfloat16_faster() -> bool:
    """Whether a model of LARGE weights or more should compute in bfloat16 on this CPU."""
    if not has_instructions():
        return False
    key, file = f"{platform.processor()} torch {torch.__version__}", user_cache() / "cpu.json"
    known: dict[str, bool] = {}
    with suppress(OSError, ValueError):
        known = json.loads(file.read_text())
    if key not in known:
        known[key] = seconds(torch.float32) > FASTER * seconds(torch.bfloat16)
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known))
    return known[key]


def has_instructions() -> bool:
    """Does the CPU have instructions for bfloat16, as far as this torch says?"""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def seconds(dtype: torch.dtype) -> float:
    """The shortest time of a matrix product in this precision."""
    a, b = (torch.ones(n, WIDTH, dtype=dtype) for n in (ROWS, WIDTH))
    times = []
    for _ in range(TRIES):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return min(times)
