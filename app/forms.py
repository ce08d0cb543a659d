"""Forms made of a command's own options, so that a new option of the command is in its form from the first day."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Collection, Mapping, Sequence

import click
import shared
import streamlit as st

from weanalysis.cli.options import choices_of

# What the page decides itself: where results lie, and what is printed.
_ELSEWHERE = frozenset({"cache", "as_json", "quiet"})

# Where the name of an option says too little.
TITLES = {"until_ci": "Stop at interval width", "until_significant": "Stop when significant"}

# What a help text says of an option that is not given: "(default: all)", "(default 5x5)".
_DEFAULT = re.compile(r"\([Dd]efault:? ([^);]+?)\.?\)")


def fill_in(
    command: click.Command,
    rows: Sequence[Sequence[str]],
    leave_out: Collection[str] = (),
    preset: Mapping[str, str] | None = None,
    words: Mapping[str, Mapping[str, str]] | None = None,
    wordings: Mapping[str, tuple[str, str]] | None = None,
) -> list[str]:
    """Show a field for every option of `command` but those to `leave_out`, and return the options that were given.

    `rows` names the options that stand in view, line by line; the others fold away. An option at its default is left
    out, as one would type it, unless it has a `preset`: a first value of the form's own, which is always given.
    `words` explains the choices of an option, `wordings` has a metavar and a help in place of the command's own.
    """
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    given: dict[str, list[str]] = {}

    def ask(name: str) -> None:
        first = (preset or {}).get(name)
        option = copy.copy(options[name])
        option.metavar, option.help = (wordings or {}).get(name, (option.metavar, option.help))
        given[name] = _field(option, f"{command.name}-{name}", first, (words or {}).get(name, {}))

    for row in rows:
        with st.container(horizontal=True, vertical_alignment="bottom"):
            for name in row:
                ask(name)
    others = [name for name in options if name not in {*_ELSEWHERE, *leave_out, *given}]
    with st.expander("More options"):
        grid = st.grid(columns=4, min_column_width=180, gap="small", vertical_alignment="bottom")
        for name in others:
            with grid.cell():
                ask(name)
    return [word for name in options for word in given.get(name, [])]


def _field(option: click.Option, key: str, first: str | None, words: Mapping[str, str]) -> list[str]:
    """Show the field that suits an option, and return what it adds to the command."""
    flag, metavar = option.opts[0], option.metavar or ""
    title = TITLES.get(option.name or "", flag.lstrip("-").replace("-", " ").capitalize())
    hint = f"`{flag}{f' {metavar}' if metavar else ''}`: {shared.plain(option.help or '')}"
    default = option.default if isinstance(option.default, str | int | float) else None
    usually = _DEFAULT.search(option.help or "")
    choices = choices_of(option)
    unset = usually[1] if usually else "not given" if choices else metavar or "default"
    if option.secondary_opts:
        answers = {"yes": [flag], "no": [option.secondary_opts[0]]}
        usual = None if default is None else "yes" if default else "no"
        shown = {flag: "yes", option.secondary_opts[0]: "no"}.get(unset, unset)
        answer = st.selectbox(title, list(answers), _place(answers, usual), key=key, help=hint, placeholder=shown)
        return [] if answer in (None, usual) else answers[answer]
    if option.is_flag:
        return [flag] if st.checkbox(title, key=key, help=hint) else []
    value: object
    if choices:
        value = st.selectbox(
            title,
            choices,
            _place(choices, default),
            format_func=lambda choice: f"{choice}: {words[choice]}" if choice in words else choice,
            key=key,
            help=hint,
            placeholder=unset,
        )
    elif isinstance(option.type, click.types.IntParamType):
        number = default if isinstance(default, int) else None
        value = st.number_input(title, value=number, step=1, key=key, help=hint, placeholder=unset)
    else:
        typed = first if first is not None else "" if default is None else f"{default}"
        value = st.text_input(title, typed, key=key, help=hint, placeholder=unset).strip()
    if value in (None, "") or (str(value) == str(default) and first is None):
        return []
    if not option.multiple:
        return _given(flag, str(value))
    try:
        return [word for part in shlex.split(str(value)) for word in _given(flag, part)]
    except ValueError as error:
        st.error(f"{title}: {shared.plain(error)}.", icon=":material/error:")
        st.stop()


def _given(flag: str, value: str) -> list[str]:
    """Return an option and its value as words of which the second cannot be taken for an option of its own."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _place(choices: Collection[str], one: object) -> int | None:
    return list(choices).index(str(one)) if one in choices else None
