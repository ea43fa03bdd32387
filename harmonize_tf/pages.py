"""Pages that need nothing but themselves, made of templates that lie beside the code which fills them."""

import pathlib
from typing import Any

import jinja2


def render(template: pathlib.Path, **values: Any) -> str:
    """A page; values are text unless they say that they are markup, and the template names none that is missing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
