"""nftables through libnftables: one context in one worker thread.

There is no fallback to the program `nft`: it is linked against the same library, so where one is missing so is the other.
"""

from __future__ import annotations

import asyncio
import ctypes
import secrets
from concurrent.futures import ThreadPoolExecutor

from container.network.firewall import FirewallError

_LIBRARY = "libnftables.so.1"
_PR_SET_NAME = 15


class _Context:
    """The C library's context; lives and is used in the worker thread alone."""

    def __init__(self, library: str) -> None:
        try:
            self._lib = ctypes.CDLL(library)
        except OSError as e:
            raise FirewallError(f"{library} cannot be loaded ({e}); install the package libnftables1") from e
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
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
        # else it writes to the agent's own stdout and stderr
        self._lib.nft_ctx_buffer_error(self._ctx)
        self._lib.nft_ctx_buffer_output(self._ctx)

    def run(self, text: str) -> None:
        if self._lib.nft_run_cmd_from_buffer(self._ctx, text.encode()) != 0:
            said = self._lib.nft_ctx_get_error_buffer(self._ctx) or b""
            raise FirewallError(_explain(said.decode(errors="replace"), text))

    def close(self) -> None:
        self._lib.nft_ctx_free(self._ctx)


def _explain(said: str, text: str) -> str:
    """The reasons alone: below each the library quotes a line, but of several it quotes the wrong one (1.0.6)."""
    reasons = [line.removeprefix("Error: ") for line in said.splitlines() if line.startswith("Error: ")]
    lines = text.strip().splitlines() or [""]
    rest = f" and {len(lines) - 1} more lines" if len(lines) > 1 else ""
    return (
        f"nftables: {'; '.join(dict.fromkeys(reasons)) or 'refused without a reason'} (in {lines[0]!r}{rest})"
    )


class Nftables:
    def __init__(self, library: str = _LIBRARY) -> None:
        # The kernel tells of each change by whom: a thread's name says so in any pid namespace, its number does not.
        self.author = f"nft-{secrets.token_hex(5)}"
        self._library = library
        self._context: _Context | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="nftables", initializer=self._take_name)

    def _take_name(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, self.author.encode(), 0, 0, 0)

    async def apply(self, text: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._run, text)

    def _run(self, text: str) -> None:
        if self._context is None:
            self._context = _Context(self._library)
        self._context.run(text)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._free)
        self._worker.shutdown()

    def _free(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None
