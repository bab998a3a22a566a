"""Text for LaTeX."""

import re
from typing import Any

from inception_jax.text import printable_lines

ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"\dag{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def tex(text: Any) -> str:
    """Escapes text for LaTeX."""
    escaped = "".join(ESCAPES.get(character, character) for character in printable_lines(str(text)))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash, even in typewriter font


def tex_command(text: Any) -> str:
    """Like `tex`, with straight quotes as in the shell."""
    return tex(text).replace("'", r"\textquotesingle{}")
