"""How a message's body is written and packed, and whether a worker with the same settings reads and unpacks it.

Nothing is looked up in a list that could be wrong: each format is tried, once in a process.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from kombu import compression
from kombu.serialization import registry

from tasks_app.conf import conf
from tasks_app.exceptions import InvalidSubmission
from tasks_app.seams.kombu import compression_names, compression_type

#: By content type, what makes an unpacker that stops at a length. (Python's own zstd has the interface of the others.)
_UNPACKERS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=2**28),
}
if hasattr(compression, "zstd"):
    _UNPACKERS["application/zstd"] = compression.zstd.ZstdDecompressor


def serializer_of(content_type: str) -> str:
    """The name by which kombu knows a content type's format; a name is its own."""
    return registry.type_to_name.get(content_type, content_type)


@lru_cache
def check_serializer(field: str, name: str, accepts: frozenset[str]) -> None:
    """Raises InvalidSubmission, naming the field, unless workers accept what it makes of a body, and can read it."""
    known = "Take one of: " + ", ".join(sorted(registry.type_to_name.get(each, each) for each in accepts))
    if registry.name_to_type.get(name) not in accepts:
        raise InvalidSubmission(f"{field}: workers do not accept {name!r:.80} (accept_content). {known}.")
    try:
        content_type, encoding, body = registry.dumps(([], {}, {}), name)
        registry.loads(body, content_type, encoding, accept=accepts)
    except Exception as error:  # that of a library which is not there, or of a project's own format
        raise InvalidSubmission(f"{field}: {name} does not work here: {error}. {known}.") from error


@lru_cache
def check_compression(method: str) -> None:
    """Raises InvalidSubmission unless there is one of this name, or content type, that a worker undoes."""
    try:
        body, content_type = compression.compress(b"body", method)
        works = unpacked(body, content_type) == b"body"
    except Exception:  # mostly KeyError: of no such name
        works = False
    if not works:
        known = ", ".join(compression_names())
        raise InvalidSubmission(f"compression: there is none named {method!r:.80} here. Take one of: {known}.")


def unpacked_max() -> int:
    """Bytes that a compressed body may unpack to: one of a few KiB could fill a worker's memory."""
    return 4 * (conf.TASK_ARGS_MAX_BYTES + conf.TASK_RESULT_MAX_BYTES)


def unpacked(body: bytes, method: str) -> bytes:
    """A message's body as it was before its compression, which is given up at `unpacked_max` bytes.

    Raises ValueError, and whatever else the method raises. One that a project has registered itself, and brotli, which
    cannot be bounded, are done first and measured then.
    """
    limit = unpacked_max()
    if (make := _UNPACKERS.get(compression_type(method))) is None:
        whole, is_whole = compression.decompress(body, method), True
    else:
        unpacker = make()
        whole = unpacker.decompress(body, limit + 1)
        is_whole = unpacker.eof
    if len(whole) > limit:
        raise ValueError(f"its body unpacks to more than {limit:,} bytes")
    if not is_whole:
        raise ValueError("its compressed body is cut off")
    return whole
