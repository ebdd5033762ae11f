"""libnftables by ctypes: a context that applies texts. Used by one thread alone.

The program `nft` is no fallback: it is linked against the same library, so where one is missing the other is missing
too. The Python binding of the nftables project (python3-nftables) is a package of distributions and not of the
package index, and is the same few ctypes calls.
"""

from __future__ import annotations

import ctypes
from typing import Final

from container.network.firewall import FirewallError

LIBRARY: Final = "libnftables.so.1"
_JSON: Final = 1 << 4  # NFT_CTX_OUTPUT_JSON


class Context:
    """A context of the C library. It lives and is used in the worker thread. FirewallError: there is no library."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._lib = ctypes.CDLL(library)
        except OSError as e:
            raise FirewallError(f"{library} cannot be loaded ({e}); install the package libnftables1") from e
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        self._lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._lib.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        self._lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        self._lib.nft_ctx_output_set_flags.restype = None
        for function in (
            self._lib.nft_ctx_free,
            self._lib.nft_ctx_buffer_error,
            self._lib.nft_ctx_buffer_output,
            self._lib.nft_ctx_get_error_buffer,
            self._lib.nft_ctx_get_output_buffer,
        ):
            function.argtypes = [ctypes.c_void_p]
        self._lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._ctx = self._lib.nft_ctx_new(0)
        if not self._ctx:
            raise FirewallError("libnftables gives no context")
        # Without buffers the library writes to our own stdout and stderr.
        self._lib.nft_ctx_buffer_error(self._ctx)
        self._lib.nft_ctx_buffer_output(self._ctx)

    def run(self, commands: str) -> None:
        """All of ``commands`` or nothing. FirewallError: the kernel refused."""
        if self._lib.nft_run_cmd_from_buffer(self._ctx, commands.encode()) != 0:
            errors = self._lib.nft_ctx_get_error_buffer(self._ctx) or b""
            raise FirewallError(_explain(errors.decode(errors="replace"), commands))

    def ask(self, command: str) -> str:
        """What a list command prints, as JSON (libnftables-json(5)). FirewallError: the kernel refused."""
        self._lib.nft_ctx_output_set_flags(self._ctx, _JSON)
        try:
            self.run(command)
            out: bytes = self._lib.nft_ctx_get_output_buffer(self._ctx) or b""
            return out.decode(errors="replace")
        finally:
            self._lib.nft_ctx_output_set_flags(self._ctx, 0)

    def close(self) -> None:
        """Frees the context."""
        self._lib.nft_ctx_free(self._ctx)


def is_usable() -> bool:
    """Whether the library is there and the kernel answers it."""
    try:
        context = Context()
    except FirewallError:
        return False
    try:
        context.run("list tables\n")
    except FirewallError:
        return False
    finally:
        context.close()
    return True


def _explain(errors: str, commands: str) -> str:
    """The reasons alone. The library quotes a line below each, but of several lines it quotes the wrong one (1.0.6)."""
    reasons = [line.removeprefix("Error: ") for line in errors.splitlines() if line.startswith("Error: ")]
    lines = commands.strip().splitlines() or [""]
    rest = f" and {len(lines) - 1} more lines" if len(lines) > 1 else ""
    return (
        f"nftables: {'; '.join(dict.fromkeys(reasons)) or 'refused without a reason'} (in {lines[0]!r}{rest})"
    )
