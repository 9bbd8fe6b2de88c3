"""The findings of ``log check`` as one HTML file without scripts, with a plot of clicks by position."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from openrlhf_qs.plots.places import clicks_by_place
from openrlhf_qs.plots.style import svg


def page(found: Mapping[str, Any]) -> str:
    """The page.

    Args:
        found: as :func:`openrlhf_qs.clicks.check.check_log` returns it.
    """
    engine = Environment(loader=PackageLoader("openrlhf_qs.clicks"), autoescape=True, undefined=StrictUndefined)
    picture = base64.b64encode(svg(clicks_by_place(found["positions"])).encode()).decode()
    return engine.get_template("check.html.j2").render(found=found, picture=picture)
