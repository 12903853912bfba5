"""Run an untrusted program in a bubblewrap sandbox; never without one.

    run([python(), "-c", "print(6 * 7)"])   ->  Ended(stdout=b"42\\n", code=0)

What the program gets: a root file system that cannot be written, with /usr/bin, /usr/lib and the
Python that reads it; an empty /scratch in memory; /dev/null, zero and urandom. What it does not
get: a network (its own namespace holds not even a loopback that is up), any other file, /proc and
/sys, other processes, the environment, capabilities, new privileges or namespaces, the system calls
in `seccomp`. If reflect runs as root, the program runs as the user nobody. It is ended with all its
processes at the first limit: wall and processor time, memory of one process and of all, number of
processes, open files, size of a file, of the scratch folder and of its output.

If any of this is missing (no bubblewrap, no user namespaces, an unknown machine), `require` raises
an error, and nothing runs.

Not covered: bugs in the kernel, side channels by timing or shared caches, and processor load within
the time limit. Files in /usr/bin and /usr/lib can be read. See docs/sandbox.md.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from reflect.errors import SandboxError
from reflect.sandbox import seccomp

if TYPE_CHECKING:
    from collections.abc import Sequence

NOBODY = 65534  # uid and gid, inside and, where we are root, outside
SCRATCH = "/scratch"
TICK = 0.05  # seconds between two looks at the memory of all processes
MIB = 1 << 20
USR = ("bin", "lib", "lib32", "lib64", "share/zoneinfo", "local/bin", "local/lib")
SYSTEM = tuple(f"/usr/{name}" for name in USR)
HINT = "Debian and Ubuntu: apt-get install bubblewrap. More: docs/sandbox.md"


@dataclass(frozen=True)
class SandboxLimits:
    """What one program may use. `memory` holds for each process and for all of them together."""

    seconds: float = 5.0  # on the wall, its start included
    memory: int = 512  # MiB
    processes: int = 16  # and threads
    scratch: int = 64  # MiB of files, which are memory too
    inodes: int = 10_000  # files and folders
    file: int = 32  # MiB of one file
    output: int = 1024  # KiB on stdout, and as many on stderr


@dataclass(frozen=True)
class Ended:
    """How a program ended. `limit`: time, memory, output or files; "" if it ended by itself."""

    stdout: bytes
    stderr: bytes
    code: int  # its exit status; 128 + the signal where one ended it
    limit: str
    seconds: float


def python() -> str:
    """The Python inside: ours if every user may read it, else the system's. SandboxError."""
    own = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    for path in (own, os.path.realpath("/usr/bin/python3")):
        if os.path.isfile(path) and _reachable(path):
            return path
    raise SandboxError(
        f"The sandbox runs as nobody, and {own} is in a folder that only you may read.",
        "Install a Python for everybody: apt-get install python3. More: docs/sandbox.md",
    )


def require() -> str:
    """The path of bubblewrap. SandboxError if it is missing or cannot isolate here."""
    path = shutil.which("bwrap")
    if not path:
        problem = "Code tasks need bubblewrap, and there is no bwrap on the PATH: nothing was run."
        raise SandboxError(problem, HINT)
    _probe(path)
    return path


def run(argv: Sequence[str], stdin: bytes = b"", limits: SandboxLimits | None = None) -> Ended:
    """Run `argv` (full paths) in a sandbox of its own, with `stdin`, and wait until all its
    processes have ended. SandboxError if there is no sandbox; then nothing was run."""
    return _run(require(), argv, stdin, limits or SandboxLimits())


@functools.cache
def _probe(bwrap: str) -> None:
    """Check once that a program starts and is isolated in it; an error is not cached."""
    if seccomp.program() is None:
        machines = " and ".join(seccomp.MACHINES)
        raise SandboxError(f"The sandbox supports only {machines}: nothing was run.")
    ended = _run(bwrap, [python(), *ISOLATED, "-c", LOOK], b"", SandboxLimits(seconds=30))
    if ended.code != 0 or ended.stdout != f"{NOBODY} {errno.ENETUNREACH} []\n".encode():
        why = ended.stderr.decode(errors="replace").strip() or f"it ended with status {ended.code}"
        raise SandboxError(
            "bubblewrap cannot isolate a program on this machine: "
            f"{why.splitlines()[-1][:300]}. Nothing was run.",
            "It needs version 0.8 and user namespaces; a container must allow them. "
            "More: docs/sandbox.md",
        )


ISOLATED = ("-s", "-S", "-B")  # no user's or site's packages, no .pth files, no bytecode
# Prints the user id, the error of a connection, and the files of other users.
LOOK = """import os, socket
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(("192.0.2.1", 9))
paths = ("/etc/passwd", "/home", "/root", "/proc")
print(os.getuid(), way, [path for path in paths if os.path.exists(path)])"""


def _flags() -> list[str]:
    """Options of every program: everything is unshared, and only what is named here exists."""
    apart = ["user", "pid", "ipc", "uts", "cgroup", "net"]
    flags = [f"--unshare-{what}" for what in apart] + ["--disable-userns", "--cap-drop", "ALL"]
    flags += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    flags += ["--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
    for name, value in (
        ("PATH", "/usr/bin"),
        ("HOME", SCRATCH),
        ("LANG", "C.UTF-8"),
        ("PYTHONHASHSEED", "0"),
    ):
        flags += ["--setenv", name, value]
    base = os.path.dirname(os.path.dirname(python()))
    own = () if base in ("/usr", "/usr/local") else (f"{base}/bin", f"{base}/lib")
    for path in (*SYSTEM, *own):
        if os.path.isdir(path) and not os.path.islink(path):
            flags += ["--ro-bind", path, path]
    for path in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            flags += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            flags += ["--ro-bind", path, path]
    if os.path.isfile("/etc/ld.so.cache"):
        flags += ["--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    flags += ["--size", str(MIB // 16), "--tmpfs", "/dev"]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        flags += ["--dev-bind", device, device]
    return [*flags, "--remount-ro", "/dev"]


def _bounds(limits: SandboxLimits) -> list[str]:
    """rlimits, set before the program starts: soft and hard, so it cannot raise them."""
    size = {
        "as": limits.memory * MIB,
        "fsize": limits.file * MIB,
        "nproc": limits.processes,
        "nofile": 64,
        "core": 0,
    }
    size |= {"cpu": math.ceil(limits.seconds) + 1, "memlock": 0, "msgqueue": 0, "sigpending": 64}
    return [
        "/usr/bin/prlimit",
        *(f"--{name}={value}:{value}" for name, value in size.items()),
        "--",
    ]


def _run(bwrap: str, argv: Sequence[str], stdin: bytes, limits: SandboxLimits) -> Ended:
    began = time.monotonic()
    info, info_in = os.pipe()
    rules, rules_in = os.pipe()
    command = [bwrap, *_flags(), "--perms", "0700", "--size", str(limits.scratch * MIB)]
    command += ["--tmpfs", SCRATCH, "--chdir", SCRATCH, "--remount-ro", "/"]
    command += ["--info-fd", str(info_in), "--seccomp", str(rules)]
    nobody = NOBODY if os.geteuid() == 0 else None
    try:
        with os.fdopen(rules_in, "wb") as f:
            f.write(seccomp.program() or b"")
        process = subprocess.Popen(
            [*command, "--", *_bounds(limits), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=nobody,
            group=nobody,
            extra_groups=None if nobody is None else [],
            cwd="/",
            env={},
            start_new_session=True,
            pass_fds=(info_in, rules),
        )
    except OSError as e:
        os.close(info)
        problem = f"bubblewrap does not start: {e.strerror}. Nothing was run."
        raise SandboxError(problem, HINT) from e
    finally:
        os.close(info_in)
        os.close(rules)
    with process, os.fdopen(info, "rb") as pipe:
        watch = _Watch(process, pipe.fileno(), stdin, limits, began + limits.seconds)
        try:
            limit = watch.until_it_ends()
        finally:
            _end(process, watch.handle)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if not limit and code == 128 + signal.SIGXCPU:  # several threads used the CPU time up
        limit = "time"
    seconds = time.monotonic() - began
    return Ended(bytes(watch.output["stdout"]), bytes(watch.output["stderr"]), code, limit, seconds)


class _Watch:
    """Writes to one program, reads its output and enforces its limits."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        info: int,
        stdin: bytes,
        limits: SandboxLimits,
        end: float,
    ) -> None:
        self.process, self.info, self.limits, self.end = process, info, limits, end
        self.left = memoryview(stdin)
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.info_text = bytearray()  # --info-fd: {"child-pid": ...}
        self.first = self.handle = 0  # pid outside of process 1 inside; its pidfd

    def until_it_ends(self) -> str:
        """The limit that ended it, "" if it ended by itself."""
        with selectors.DefaultSelector() as ready:
            assert self.process.stdin and self.process.stdout and self.process.stderr
            os.set_blocking(self.process.stdin.fileno(), False)
            ready.register(self.process.stdin, selectors.EVENT_WRITE, "stdin")
            ready.register(self.process.stdout, selectors.EVENT_READ, "stdout")
            ready.register(self.process.stderr, selectors.EVENT_READ, "stderr")
            ready.register(self.info, selectors.EVENT_READ, "info")
            looked = time.monotonic()
            while self.process.poll() is None or len(ready.get_map()):
                now = time.monotonic()
                if now >= self.end:
                    return "time"
                if now - looked >= TICK:
                    looked = now
                    if limit := self._uses():
                        return limit
                for key, _ in ready.select(min(TICK, self.end - now)):
                    if self._moved(key.data, key.fd):
                        ready.unregister(key.fileobj)
                    if any(len(text) > self.limits.output * 1024 for text in self.output.values()):
                        return "output"
        return ""

    def _moved(self, name: str, fd: int) -> bool:
        """Move some bytes to or from that pipe; True when it is done with."""
        if name == "stdin":
            try:
                self.left = self.left[os.write(fd, self.left[:65536]) if self.left else 0 :]
            except BlockingIOError:
                return False
            except BrokenPipeError:
                self.left = self.left[:0]
            if not self.left and self.process.stdin:
                os.set_blocking(fd, True)
                self.process.stdin.close()
            return not self.left
        chunk = os.read(fd, 65536)
        if name == "info":
            self.info_text += chunk
            if not self.first and b"}" in self.info_text:
                self.first = int(json.loads(self.info_text)["child-pid"])
                with contextlib.suppress(ProcessLookupError):  # it has ended already
                    self.handle = os.pidfd_open(self.first)
        else:
            self.output[name] += chunk
        return not chunk

    def _uses(self) -> str:
        """memory or files, if all its processes together exceed that limit."""
        if not self.first:
            return ""
        used = 0
        with contextlib.suppress(psutil.Error):  # it has just ended
            first = psutil.Process(self.first)  # the ancestor of all processes in the namespace
            for process in (first, *first.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    used += process.memory_info().rss
        if used > self.limits.memory * MIB:
            return "memory"
        with contextlib.suppress(OSError):  # ended, or no access: then only `scratch` limits it
            files = os.statvfs(f"/proc/{self.first}/root{SCRATCH}")
            if 0 < files.f_files - files.f_ffree > self.limits.inodes:
                return "files"
        return ""


def _end(process: subprocess.Popen[bytes], first: int) -> None:
    """End the namespace: the kernel ends its processes with process 1 (`first`), itself last."""
    if process.poll() is None and first:
        signal.pidfd_send_signal(first, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
    if process.poll() is None:
        process.kill()  # and with it, --die-with-parent, process 1
    process.wait()
    if first:
        with os.fdopen(first, "rb"), selectors.DefaultSelector() as gone:
            gone.register(first, selectors.EVENT_READ)
            gone.select(10)


def _reachable(path: str) -> bool:
    """Whether the program's user may read the file: the user nobody, if we are root."""
    if os.geteuid() != 0:
        return os.access(path, os.R_OK | os.X_OK)
    folders = list(Path(path).parents)
    readable = os.stat(path).st_mode & 0o005 == 0o005
    return readable and all(folder.stat().st_mode & 0o001 for folder in folders)
