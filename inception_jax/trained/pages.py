"""The one Jinja environment of everything that is shown as a page: reports, studies, the server."""

from collections.abc import Callable

import jinja2

from inception_jax.inspection import drawing
from inception_jax.text import page_text


def environment(autoescape: bool | Callable[[str | None], bool] = True) -> jinja2.Environment:
    """For the package's templates: an undefined name is an error, and texts are made safe for pages.

    All pages include style.css, which needs the charts' palette.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("inception_jax"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=page_text,
    )
    made.globals["palette"] = drawing.palette_css()
    return made
