"""Tracebacks as one reads them: the frames of one's own code foremost, those of libraries folded away."""

import re
from dataclasses import dataclass, field

_FRAME = re.compile(r'  File "(?P<file>.+)", line \d+')
_LIBRARY = re.compile(r"/(site-packages|dist-packages)/|/lib/python3\.\d+/|<frozen ")


@dataclass
class Part:
    """Lines that belong together: frames of the same owner in a row, or the words before, between and after them."""

    is_library: bool
    lines: list[str] = field(default_factory=list)
    frames: int = 0

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def frames(traceback: str) -> list[Part]:
    """`traceback`, as Python prints one, in parts; joined by line ends their texts are the whole of it."""
    parts = [Part(is_library=False)]
    for line in traceback.rstrip("\n").split("\n"):
        frame = _FRAME.match(line)
        if frame or not line.startswith("    "):
            is_library = bool(frame and _LIBRARY.search(frame["file"]))
            if is_library != parts[-1].is_library:
                parts.append(Part(is_library))
            parts[-1].frames += bool(frame)
        parts[-1].lines.append(line)
    return [part for part in parts if part.lines]
