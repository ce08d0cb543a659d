"""What is installed: the wheel's contents, its command, its dashboard, and that what is imported is also required."""

from __future__ import annotations

import ast
import email
import fnmatch
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import weanalysis

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel unpacked: what an installation puts into site-packages."""
    folder = wheel.parent / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, program: str) -> str:
    """Run a program that finds the unpacked wheel before anything else."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "WEANALYSIS_CACHE": str(installed.parent / "cache")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=installed.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_module_and_page_and_no_other_top_level_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    version = PROJECT["version"]
    assert {name.partition("/")[0] for name in names} == {"weanalysis", f"weanalysis-{version}.dist-info"}
    files = [path for folder in ("weanalysis", "app") for path in (ROOT / folder).rglob("*") if path.is_file()]
    ours = [path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts]
    expected = {re.sub("^app/", "weanalysis/_app/", name) for name in ours}
    assert {"weanalysis/_app/main.py", "weanalysis/py.typed"} <= names
    assert expected == {name for name in names if name.startswith("weanalysis/")}


def test_the_wheel_says_what_it_is(installed: Path) -> None:
    (about,) = installed.glob("*.dist-info")
    metadata = email.message_from_string((about / "METADATA").read_text(encoding="utf-8"))
    assert (metadata["Name"], metadata["Version"]) == ("weanalysis", weanalysis.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (about / "licenses" / "LICENSE").is_file()
    assert metadata.get_payload().startswith("# weanalysis")
    assert "weanalysis = weanalysis.cli:main" in (about / "entry_points.txt").read_text(encoding="utf-8")


def test_an_installed_package_finds_its_own_pages(installed: Path) -> None:
    assert run(installed, "import weanalysis.dashboard as d; print(d.app_folder())").strip() == str(
        installed / "weanalysis" / "_app"
    )


def test_the_command_works_from_the_wheel(installed: Path) -> None:
    program = "import sys; from weanalysis.cli import main; sys.argv = ['weanalysis', *{!r}]; main()"
    assert weanalysis.__version__ in run(installed, program.format(["--version"]))
    assert "imagefolder:DIR" in run(installed, program.format(["list", "data"]))


def test_the_dashboard_opens_from_the_wheel(installed: Path) -> None:
    program = """
from streamlit.testing.v1 import AppTest
from weanalysis.dashboard import app_folder
app = AppTest.from_file(str(app_folder() / "main.py"), default_timeout=120).run()
assert not app.exception and not app.error, [*app.exception, *app.error]
print(app.title[0].value)
"""
    assert run(installed, program).splitlines()[-1] == "Overview"


# Requirements -----------------------------------------------------------------------------------------------------


def required(*extras: str) -> set[str]:
    """The distributions that the package requires by itself and with some extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("weanalysis", "app"), ("cluster", "hf", "images", "notebook", "tensorboard", "video")),
        (("tests",), ("cluster", "hf", "images", "notebook", "tensorboard", "video", "dev")),
    ],
)
def test_everything_imported_is_required(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    own = {"weanalysis", "benchmarks", "odd_networks"}
    own |= {path.stem for path in [*files, *(ROOT / "app").rglob("*.py")]}
    homes, allowed, imported = packages_distributions(), required(*extras), set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    foreign = imported - own - sys.stdlib_module_names - {"triton"}  # which torch's wheels for GPUs bring along
    assert len(foreign) > 5, "the imports were not found"
    missing = {name for name in foreign if not {canonicalize_name(home) for home in homes.get(name, [])} & allowed}
    assert missing == set()


def test_every_requirement_has_a_pin_within_its_range() -> None:
    pinned = pins()
    for line in [
        *PROJECT["dependencies"],
        *(line for extra in ("dev", "docs") for line in PROJECT["optional-dependencies"][extra]),
    ]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name != "weanalysis":
            assert requirement.specifier.contains(pinned[name]), f"{requirement} is not met by the pin {pinned[name]}"


def test_the_recipe_for_conda_requires_the_same() -> None:
    recipe = (ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    run = recipe.partition("  run:\n")[2].partition("\n\n")[0]
    called = {"pytorch": "torch", "huggingface_hub": "huggingface-hub"}
    listed = dict(re.findall(r"^ +- (\S+) (\S+)$", run, re.M))
    assert {called.get(name, name) + ranges for name, ranges in listed.items()} == set(PROJECT["dependencies"])
    assert f"  version: {PROJECT['version']}\n" in recipe


def test_the_pins_are_public_versions() -> None:
    """A local version such as 2.13.0+cpu exists in no public index."""
    assert [name for name, version in pins().items() if not re.fullmatch(r"\d+(\.\d+)*(\.?post\d+)?", version)] == []


def test_what_is_cited_is_this_version_and_the_paper() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {weanalysis.__version__}\n" in citation
    assert f"doi: {PROJECT['urls']['Paper'].removeprefix('https://doi.org/')}\n" in citation


def test_the_changelog_has_this_version() -> None:
    assert f"## {weanalysis.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# The container image ----------------------------------------------------------------------------------------------


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.M) for name in line.split()[:-1]]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line.startswith("!")]
    assert len(copied) >= 6
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in kept), f".dockerignore leaves out {name}"
    # What the build reads besides.
    for name in (PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "app", "weanalysis"):
        assert name in copied, f"building the wheel needs {name}"


def test_the_image_serves_the_dashboard_as_nobody_special() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    last = dockerfile.rpartition("\nFROM ")[2]
    assert re.search(r"^USER (?!0\b|root\b)\S+$", last, re.M)
    assert "EXPOSE 8501" in last and "/_stcore/health" in last and "WEANALYSIS_CACHE=/cache" in last
    assert 'CMD ["dashboard", "--address", "0.0.0.0", "--no-open"]' in last
