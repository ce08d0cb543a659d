"""The reference: a page for each public package, written from its `__all__`, and docstrings as they are meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

# Packages whose public names no program of a user's calls: how studies are run, what the report is made of.
INTERNAL = {
    "weanalysis.ablation.evaluate",
    "weanalysis.ablation.graph",
    "weanalysis.ablation.schedule",
    "weanalysis.excitation.kernels",
    "weanalysis.report.kinds",
}
# Pages of their own, whose names the first page leads to.
_MODULES = {"excitation", "figures", "studies"}


def packages() -> list[str]:
    """Return the packages that say what is public in them, what a caller begins with first."""
    homes = [path for path in (ROOT / "weanalysis").rglob("__init__.py") if "\n__all__ = " in path.read_text("utf-8")]
    names = sorted(".".join(home.parent.relative_to(ROOT).parts) for home in homes)
    return [name for name in names if name not in INTERNAL]


def _directive(package: str, name: str, value: Any) -> list[str]:
    """Return the lines of RST that document one public name."""
    place = f"{package}.{name}"
    if inspect.isclass(value):
        return [f".. autoclass:: {place}", "   :members:", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {place}", ""]
    return [f".. py:data:: {place}", "", *(f"   {line}" for line in _about_value(package, name, value)), ""]


def _about_value(package: str, name: str, value: Any) -> list[str]:
    """Return what the comment above a value's definition says, and what a table or tuple of short words holds."""
    home = ROOT / Path(*package.split("."))
    about = ""
    for path in [*sorted(home.rglob("*.py")), *sorted((ROOT / "weanalysis").rglob("*.py"))]:
        definition = re.search(rf"((?:^# .*\n)+){name}\b(?:: [^=\n]+)? = ", path.read_text(encoding="utf-8"), re.M)
        if definition:
            about = " ".join(line.removeprefix("# ") for line in definition[1].splitlines())
            break
    lines = [*plain(about), ""]
    if isinstance(value, Mapping | tuple | list | frozenset) and all(isinstance(one, str) for one in value):
        lines += ["Has " + ", ".join(f"``{one}``" for one in value) + "."]
    return lines


def page(package: str, documented: dict[int, str]) -> str:
    """Return the page of a package: its docstring, then every name in `__all__`; what another page has, by a link."""
    module = import_module(package)
    names = [name for name in module.__all__ if not name.startswith("__") and name not in _MODULES]
    values = {name: getattr(module, name) for name in names}
    lines = [
        package,
        "=" * len(package),
        "",
        f".. py:module:: {package}",
        "",
        *plain(inspect.getdoc(module) or ""),
        "",
    ]
    kinds = (
        ("Functions", inspect.isroutine),
        ("Classes", inspect.isclass),
        ("Values", lambda value: not inspect.isroutine(value) and not inspect.isclass(value)),
    )
    for title, is_of in kinds:
        of_kind = [name for name in names if is_of(values[name])]
        if of_kind:
            lines += [title, "-" * len(title), ""]
            for name in of_kind:
                if id(values[name]) in documented:
                    lines += [f"{name}: see :py:obj:`{documented[id(values[name])]}`.", ""]
                    continue
                if is_of in (inspect.isroutine, inspect.isclass):
                    documented[id(values[name])] = f"{package}.{name}"
                lines += _directive(package, name, values[name])
    return "\n".join(lines)


def _write_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(exist_ok=True)
    documented: dict[int, str] = {}
    written = {f"{package}.rst": page(package, documented) for package in packages()}
    for stale in folder.glob("*.rst"):
        if stale.name not in written:
            stale.unlink()
    for name, text in written.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


_QUOTED = re.compile(r"(``[^`]*``|`[^`]*`)")
_MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")


def plain(text: str) -> list[str]:
    """Return a docstring's lines as RST that means what stands there.

    Backticks, examples and sections such as "Raises:" are markup; what is indented behind an empty line is code; all
    else that RST would take for markup is escaped.
    """
    lines: list[str] = []
    before, in_example, in_code = "", False, False
    for line in text.splitlines():
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        indented = line.startswith("    ")
        if indented and not in_code and not in_example and not before.strip():
            lines += ["::", ""]
            in_code = True
        elif line.strip() and not indented:
            in_code = False
        if in_example or in_code:
            lines.append(line)
        else:
            parts = _QUOTED.split(line)
            lines.append(
                "".join(_MARKUP.sub(r"\\\g<0>", part) if not place % 2 else part for place, part in enumerate(parts))
            )
        before = line
    return lines


def _as_meant(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _write_pages)
    app.connect("autodoc-process-docstring", _as_meant, priority=400)  # before sections are read
    return {"parallel_read_safe": True, "parallel_write_safe": True}
