"""nftables through libnftables: one context in one worker thread.

What waits while a transaction runs goes into the next one together (40 containers cost little more than one);
after an error of such a batch each is tried by itself, so that only the culprit fails.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

from container.network.firewall import FirewallError

_LIBRARY = "libnftables.so.1"


class _Context:
    """The C library's context; lives and is used in the worker thread alone."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL(_LIBRARY)
        except OSError as e:
            raise FirewallError(f"{_LIBRARY} cannot be loaded ({e}); install the package libnftables1") from e
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        for function in (
            self._lib.nft_ctx_free,
            self._lib.nft_ctx_buffer_error,
            self._lib.nft_ctx_buffer_output,
            self._lib.nft_ctx_get_error_buffer,
        ):
            function.argtypes = [ctypes.c_void_p]
        self._lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._ctx = self._lib.nft_ctx_new(0)
        if not self._ctx:
            raise FirewallError("libnftables gives no context")
        self._lib.nft_ctx_buffer_error(self._ctx)
        self._lib.nft_ctx_buffer_output(self._ctx)

    def run(self, text: str) -> None:
        if self._lib.nft_run_cmd_from_buffer(self._ctx, text.encode()) != 0:
            why = self._lib.nft_ctx_get_error_buffer(self._ctx) or b""
            raise FirewallError(why.decode(errors="replace").strip() or "refused without a reason")

    def close(self) -> None:
        if self._ctx:
            self._lib.nft_ctx_free(self._ctx)
            self._ctx = None


class Nftables:
    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="nftables")
        self._context: _Context | None = None
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None
        self._thread_id = 0

    def worker_id(self) -> int:
        return self._thread_id

    async def apply(self, text: str) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, done))
        if self._running is None:
            self._running = asyncio.create_task(self._work(), name="nftables")
        # a caller that is cancelled does not take its words back: they may be half-way to the kernel
        await asyncio.shield(done)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                results = await loop.run_in_executor(
                    self._worker, self._run_batch, [text for text, _ in batch]
                )
                for (_, done), error in zip(batch, results, strict=True):
                    if done.done():
                        continue
                    if error is None:
                        done.set_result(None)
                    else:
                        done.set_exception(error)
        finally:
            self._running = None

    def _run_batch(self, texts: list[str]) -> list[FirewallError | None]:
        if len(texts) > 1:
            try:
                self._run("".join(texts))
            except FirewallError:
                pass  # one of them is wrong: which one shows below
            else:
                return [None] * len(texts)
        results: list[FirewallError | None] = []
        for text in texts:
            try:
                self._run(text)
                results.append(None)
            except FirewallError as e:
                results.append(e)
        return results

    def _run(self, text: str) -> None:
        if self._context is None:
            self._context = _Context()
            self._thread_id = threading.get_native_id()
        self._context.run(text)

    async def close(self) -> None:
        if self._running is not None:
            await self._running
        if self._context is not None:
            await asyncio.get_running_loop().run_in_executor(self._worker, self._context.close)
            self._context = None
        self._worker.shutdown()
