"""The house is as ARCHITECTURE.md draws it: what imports what, what loads when, and what every public name owes."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from documents import GALLERY, PAGES
from made_studies import location_plan, write_run, write_study

import weanalysis
from weanalysis.cli import cli
from weanalysis.results import COLUMNS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "weanalysis").rglob("__init__.py"))
PUBLIC = [package for package in PACKAGES if package != "weanalysis.cli"]
COMMANDS = cli.commands


@dataclass(frozen=True)
class Import:
    """One import: the part of the house and the file it is in, the function around it, and what it names."""

    part: str
    file: str
    function: str | None
    module: str

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    @property
    def imported_part(self) -> str | None:
        return self.module.split(".")[1] if self.module.startswith("weanalysis.") else None


def imports_of(path: Path) -> Iterator[Import]:
    inside = path.relative_to(ROOT)
    part = "app" if inside.parts[0] == "app" else inside.with_suffix("").parts[1]

    def walk(node: ast.AST, function: str | None) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            modules = []
            if isinstance(child, ast.Import):
                modules = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{inside}: imports are absolute here"
                names = [f"weanalysis.{alias.name}" for alias in child.names]
                modules = names if child.module == "weanalysis" else [str(child.module)]
            yield from (Import(part, inside.as_posix(), function, module) for module in modules)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, child.name if is_function else function)

    return walk(ast.parse(path.read_text(encoding="utf-8")), None)


FILES = [*(ROOT / "weanalysis").rglob("*.py"), *(ROOT / "app").rglob("*.py")]
IMPORTS = [imported for path in FILES for imported in imports_of(path)]
PARTS = {imported.part for imported in IMPORTS if imported.part not in ("__init__", "__main__")} | {"errors"}


def allowed() -> dict[str, set[str]]:
    """Read ARCHITECTURE.md's table of what may import what."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.partition("## What may import what")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|\n]*)\|$", section, re.M))
    rules = {}
    for part, cell in rows.items():
        named = set(re.findall(r"`(\w+)`", cell))
        rules[part] = PARTS - named - {part} if "everything but" in cell else named
    return rules


def test_every_part_of_the_code_is_in_the_table_and_in_the_picture() -> None:
    assert set(allowed()) == PARTS
    picture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    drawn = set(re.findall(r"^ *(\w+)(?:/|\.py) ", picture, re.M))
    assert drawn - {"__init__", "benchmarks", "docs"} == PARTS


def test_the_parts_import_only_what_the_table_allows() -> None:
    rules = allowed()
    known = [
        imported
        for imported in IMPORTS
        if imported.part in rules and imported.imported_part not in (None, imported.part)
    ]
    assert len({(imported.part, imported.imported_part) for imported in known}) > 20, "the imports were not found"
    assert [
        f"{imported.file}: {imported.module}"
        for imported in known
        if imported.imported_part not in rules[imported.part]
    ] == []


def test_nothing_depends_on_itself_through_others() -> None:
    rules = allowed()
    placed: set[str] = set()
    while ready := {part for part in rules if part not in placed and rules[part] <= placed}:
        placed |= ready
    assert placed == set(rules)


@pytest.mark.parametrize(
    ("libraries", "homes"),
    [
        (
            {"torch", "torchvision", "timm", "accelerate"},
            {
                "ablation",
                "data",
                "excitation",
                "loading",
                "models",
                "pruning",
                "saliency",
                "tasks",
                "training",
                "_torchvision",
                "devices",
            },
        ),
        ({"torch_pruning"}, {"pruning"}),
        ({"distributed", "dask"}, {"ablation"}),
        ({"streamlit", "starlette"}, {"app"}),
        ({"plotly"}, {"figures", "app"}),
        ({"kaleido", "choreographer"}, {"figures"}),
        ({"jinja2", "markupsafe"}, {"report"}),
        ({"click"}, {"cli", "app"}),
        ({"rich"}, {"cli"}),
        ({"sqlite3"}, {"results", "jobs", "app"}),
    ],
    ids=lambda value: min(value),
)
def test_libraries_stay_in_their_rooms(libraries: set[str], homes: set[str]) -> None:
    of_libraries = [imported for imported in IMPORTS if imported.package in libraries]
    assert of_libraries, "the imports were not found"
    assert [f"{imported.file}: {imported.module}" for imported in of_libraries if imported.part not in homes] == []


def test_the_dashboard_loads_torch_in_the_functions_named_only() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = {(file, function) for function, file in re.findall(r"`(\w+)` in `(app/[\w/]+\.py)`", page)}
    heavy = {"ablation", "data", "excitation", "loading", "models", "pruning", "saliency", "_torchvision"}
    loading = {
        (imported.file, imported.function)
        for imported in IMPORTS
        if imported.part == "app" and imported.imported_part in heavy
    }
    assert loading == named


MOST_LINES = 60


def lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file, with how many lines it has beside its docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield f"{path.relative_to(ROOT)}: {node.name}", length


def test_no_function_is_longer_than_one_can_look_at_at_once() -> None:
    num_lines = {name: length for path in (ROOT / "weanalysis").rglob("*.py") for name, length in lengths(path)}
    assert len(num_lines) > 1000, "the functions were not found"
    assert {name: length for name, length in num_lines.items() if length > MOST_LINES} == {}


# Names that fit whatever there is, so that they say nothing of what is there.
EMPTY_NAMES = {"found", "told", "together", "things", "stuff", "_found", "_told", "_together", "_see", "_weigh"}


def names_given(path: Path) -> Iterator[tuple[str, int]]:
    """Each name that a file gives to a variable, a parameter, an attribute, a function or a class, and its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def test_names_say_what_is_there() -> None:
    files = [path for part in ("weanalysis", "app", "benchmarks", "tests") for path in (ROOT / part).rglob("*.py")]
    given = [(path.relative_to(ROOT), *name) for path in files for name in names_given(path)]
    assert len(given) > 15_000, "the names were not seen"
    assert [f"{path}:{line}: {name}" for path, name, line in given if name in EMPTY_NAMES] == []


# Attributes of objects of torch, pandas, sqlite3, click and Python, which have no other way of being set.
SET_FROM_OUTSIDE = (
    "__class__ _parameters allow_tf32 argv attrs bias columns data features grad groups help in_channels inplace "
    "metavar normalize out_channels parametrizations row_factory stdout text_factory training weight"
)


def set_from_outside(path: Path) -> Iterator[tuple[str, int]]:
    """Each attribute that a file sets of another object than `self`, and its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_set = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_set and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            yield node.attr, node.lineno


def test_no_object_s_attributes_are_set_from_outside() -> None:
    libraries = set(SET_FROM_OUTSIDE.split())
    given = [(path.relative_to(ROOT), *one) for path in FILES for one in set_from_outside(path)]
    assert {name for _, name, _ in given} & libraries == libraries, "some are set no more"
    assert [f"{path}:{line}: {name}" for path, name, line in given if name not in libraries] == []


def attributes_of(path: Path) -> Iterator[tuple[ast.ClassDef, set[str], set[str]]]:
    """Each class of a file, the attributes that it has once it is made, and those that its other methods set."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            made = {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}  # type: ignore[attr-defined]
            later: set[str] = set()
            for method in (part for part in node.body if isinstance(part, ast.FunctionDef)):
                in_hand = made if method.name in ("__init__", "__post_init__") else later
                stored = (part for part in ast.walk(method) if isinstance(part, ast.Attribute))
                in_hand |= {
                    one.attr for one in stored if isinstance(one.ctx, ast.Store) and ast.unparse(one.value) == "self"
                }
            yield node, made, later


def test_no_method_has_to_be_called_before_another() -> None:
    """Every attribute is there once an object is made, by its own class or by one that it inherits from."""
    classes = {node.name: (made, later, node) for path in FILES for node, made, later in attributes_of(path)}
    assert len(classes) > 100, "the classes were not seen"

    def has(name: str) -> set[str]:
        if name not in classes:
            return set()
        made, _, node = classes[name]
        return made.union(*(has(ast.unparse(base)) for base in node.bases))

    assert {name: later - has(name) for name, (_, later, _) in classes.items() if later - has(name)} == {}


def test_torchvision_comes_after_the_module_that_makes_it_importable() -> None:
    for path in (ROOT / "weanalysis").rglob("*.py"):
        if path.name == "_torchvision.py":
            continue
        modules = [imported.module for imported in imports_of(path)]
        late = [place for place, module in enumerate(modules) if module.partition(".")[0] in ("torchvision", "timm")]
        if late:
            assert "weanalysis._torchvision" in modules, path


# What loads when --------------------------------------------------------------------------------------------------

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run(program: str, blocked: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """Run a program in a new Python in which some packages are not installed, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=set(blocked)) + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = "; import sys; print(sorted({'torch', 'streamlit', 'plotly', 'scipy', 'pandas'} & set(sys.modules)))"


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert run("import weanalysis; dir(weanalysis)" + LOADED) == "[]\n"


def test_asking_for_help_loads_nothing_heavy() -> None:
    assert run("import weanalysis.cli" + LOADED) == "[]\n"


@pytest.mark.parametrize("what", ["studies", "runs"])
def test_listing_the_cache_loads_only_what_tables_need(what: str, tmp_path: Path) -> None:
    write_study(tmp_path / "results.sqlite", "location", location_plan(grid=1), "quick", num_images=20)
    write_run(tmp_path, "quick-run", epochs=1)
    listed = f"from weanalysis.cli import cli; cli(['list', {what!r}, '--cache', {str(tmp_path)!r}], None, None, False)"
    said = run(listed + LOADED).splitlines()
    assert "quick" in "".join(said)
    assert said[-1] == "['pandas']", "torch or scipy would cost seconds"


def test_results_figures_reports_and_runs_load_no_torch() -> None:
    program = (
        "import weanalysis.results, weanalysis.results.statistics, weanalysis.figures, weanalysis.dashboard\n"
        "import weanalysis.report\n"
        "from weanalysis.training import Recipe, list_runs, read_metrics\n"
        "print(Recipe(model='resnet20').run_name)"
    )
    assert run(program, {"torch", "torchvision", "timm", "accelerate"}).startswith("resnet20-digits-")


def test_the_engine_works_where_the_dashboard_s_libraries_are_missing() -> None:
    program = """
import tempfile, torch
import weanalysis.ablation, weanalysis.data, weanalysis.excitation, weanalysis.loading, weanalysis.models
import weanalysis.results, weanalysis.training
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                          torch.nn.Flatten(), torch.nn.Linear(2, 3)).eval()
images = [(torch.randn(3, 8, 8), index % 3) for index in range(12)]
with tempfile.TemporaryDirectory() as cache:
    print(len(weanalysis.ablation.ablate(net, images, "location", grid="all", cache=cache)))
"""
    assert run(program, {"streamlit", "plotly", "tensorboard", "click", "rich"}).splitlines()[-1] == "6"


# What a public name owes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PUBLIC)
def test_every_package_lists_its_public_names_and_explains_them(package: str) -> None:
    if package == "weanalysis.excitation.kernels":
        pytest.importorskip("triton")
    module = importlib.import_module(package)
    assert (module.__doc__ or "").strip()
    assert sorted(set(module.__all__)) == sorted(module.__all__), "a name is listed twice"
    for name in module.__all__:
        value = getattr(module, name)
        # A class or function of this package; constants and type aliases are explained where they are defined.
        if getattr(value, "__module__", "").startswith("weanalysis") and callable(value):
            own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
            assert (own or "").strip(), f"{package}.{name} has no docstring"
            assert not own.startswith(f"{name}("), f"{package}.{name} has only the docstring that dataclass makes"


def options(name: str) -> set[str]:
    """The options that a command takes."""
    params = COMMANDS[name].params
    return {"--help", *(option for parameter in params for option in (*parameter.opts, *parameter.secondary_opts))}


def code_of(page: Path) -> str:
    """Return what stands in blocks of code and between backticks, a line each, without what is marked as missing."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    prose, blocks = text.split("```")[::2], text.split("```")[1::2]
    lines = [line for part in prose for line in part.splitlines() if "not there yet" not in line]
    return "\n".join([*blocks, *(code for line in lines for code in re.findall("`([^`]+)`", line))])


def invocations(code: str) -> dict[str, set[str]]:
    """Find every line `weanalysis COMMAND ...`, also after `docker run ...`, and the options given to each command."""
    options: dict[str, set[str]] = {}
    for name, rest in re.findall(r"^(?: *|docker run .*)weanalysis ([a-z]+)(.*)$", code, re.M):
        rest = re.split(r"\s{2,}", rest)[0] if not rest.startswith("  ") else ""  # what follows two spaces explains
        options.setdefault(name, set()).update(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest))
    return options


def shown_commands() -> dict[str, set[str]]:
    """Find every command that a page shows, and all options that it is given there."""
    shown: dict[str, set[str]] = {}
    for page in PAGES:
        for name, given in invocations(code_of(page)).items():
            shown.setdefault(name, set()).update(given)
    return shown


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_an_example_and_is_in_the_documentation(name: str) -> None:
    text = COMMANDS[name].get_help(click.Context(COMMANDS[name], info_name=f"weanalysis {name}"))
    summary, _, examples = text.partition("Examples:")
    assert len(summary.splitlines()) > 2
    assert f"weanalysis {name}" in examples
    assert invocations(examples)[name] <= options(name)
    assert name in shown_commands(), f"no page shows weanalysis {name}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_says_what_it_does(name: str) -> None:
    silent = [
        parameter.name
        for parameter in COMMANDS[name].params
        if isinstance(parameter, click.Option) and not parameter.help and parameter.name != "port"
    ]
    assert silent == []


def test_the_documentation_shows_only_commands_and_options_that_exist() -> None:
    shown = shown_commands()
    assert set(shown) <= set(COMMANDS), f"there is no weanalysis {set(shown) - set(COMMANDS)}"
    for name, given in shown.items():
        assert given <= options(name), f"weanalysis {name} does not take {given - options(name)}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not {"auto_gallery", "generated"}.intersection(Path(target).parts):  # made with the site
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


# What the documentation promises ------------------------------------------------------------------------------------


def test_the_readme_is_short_and_leads_on() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "make demo" in text and "make test" in text and "docs/guide/index.md" in text


def test_the_documentation_explains_every_column() -> None:
    rows = re.findall(r"^\| (`[^|]*) \| [^|]+ \|$", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} >= set(COLUMNS)


def test_the_documentation_s_python_uses_what_is_there() -> None:
    """Each call of `wa....`, `Recipe` and `train` is bound to the signature of what it calls."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    scripts = [path.read_text(encoding="utf-8") for path in GALLERY]
    blocks = [block for text in texts for block in re.findall(r"```python\n(.*?)```", text, re.S)]
    bound = 0
    for block in [*blocks, *scripts]:
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            path = ast.unparse(call.func).split(".")
            if path[0] not in ("wa", "Recipe", "train") or "(" in ast.unparse(call.func):
                continue
            target: object = weanalysis if path[0] == "wa" else getattr(weanalysis, path[0])
            for name in path[1:]:
                target = getattr(target, name)
            keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            inspect.signature(target).bind(*call.args, **keywords)  # type: ignore[arg-type]
            bound += 1
    assert bound >= 30
