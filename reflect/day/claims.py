"""One worker of a run that several processes share: it claims work in the database, keeps its
claims while it works, and waits while others have claimed all that is left, because it takes over
what a worker that died has claimed.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reflect.errors import ReflectError
from reflect.store import claims

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from reflect.store import Store
    from reflect.store.claims import Work

RENEWALS = 3  # in the time after which a claim expires
PAUSE = 0.5  # seconds between two looks for work while there is none, at most


class RunWorker:
    """This process, for one run. `seconds`: after so many without a renewal its claims expire;
    `most`: tasks that a worker claims together while it is alone."""

    def __init__(self, store: Store, run_id: int | None, seconds: float, most: int) -> None:
        self.store, self.run_id, self.seconds, self.most = store, run_id, seconds, most
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def work(self) -> Generator[Work]:
        """Claim work until none of the run is left. What was claimed is done when the next one is
        asked for; on an error its claim is released."""
        done: Work | None = None
        with self._claims():
            while True:
                with self.store.claim() as s:
                    if done:
                        claims.finish(s, self.run_id, done)
                    others = set(claims.workers(s, self.run_id)) - {self.name}
                    most = math.ceil(self.most / (len(others) + 1))
                    done = claims.take(s, self.run_id, self.name, self.seconds, most)
                    if not done and not any(claims.left(s, self.run_id)):
                        return
                if done:
                    yield done
                else:
                    self._stop.wait(min(PAUSE, self.seconds / RENEWALS))

    @contextmanager
    def _claims(self) -> Iterator[None]:
        """Renew the claims until the end, then release those that are left."""
        self._stop = threading.Event()
        renewals = threading.Thread(target=self._renew, daemon=True)
        renewals.start()
        try:
            yield
        finally:
            self._stop.set()
            renewals.join()
            with self.store.claim() as s:
                claims.release(s, self.run_id, self.name)

    def _renew(self) -> None:
        while not self._stop.wait(self.seconds / RENEWALS):
            try:
                with self.store.claim() as s:
                    claims.renew(s, self.run_id, self.name, self.seconds)
            except ReflectError:
                continue  # the next renewal may succeed; otherwise the claims expire
