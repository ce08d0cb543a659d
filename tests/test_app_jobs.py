"""The page of jobs: forms that write commands, and jobs that are started and watched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
from made_studies import location_plan, write_run, write_study
from pages import is_well, open_page, words
from processes import CHECKOUT, wait_until

from weanalysis.cache import Cache
from weanalysis.cli import checks, cli
from weanalysis.cli.checks import check_start
from weanalysis.errors import WeanalysisError
from weanalysis.jobs import Jobs
from weanalysis.kinds import KINDS

FORMS = {
    "Study": "ablate",
    "Training": "train",
    "Saliency": "saliency",
    "Pruning": "prune",
    "Comparison": "compare",
    "Report": "report",
}


def test_the_job_form_writes_the_command_to_copy(cache: Path) -> None:
    app = open_page("jobs")
    assert app.code[0].value == "weanalysis ablate --model resnet20 --data digits"
    app.selectbox(key="ablate-study").select("magnitude").run()
    app.text_input(key="ablate-data").set_value("imagefolder:my pictures")
    app.number_input(key="ablate-repeats").set_value(5)
    app.number_input(key="ablate-images").set_value(200)
    app.selectbox(key="ablate-evaluate").select("naive")
    app.text_input(key="ablate-layers").set_value("layer1.*")
    app.text_input(key="ablate-model_options").set_value("shortcut=B 'a=b c'")
    app.checkbox(key="ablate-until_significant").check().run()
    is_well(app)
    assert app.code[0].value == (
        "weanalysis ablate --model resnet20 --model-option shortcut=B --model-option 'a=b c' "
        "--data 'imagefolder:my pictures' --study magnitude --repeats 5 --layers 'layer1.*' --evaluate naive "
        "--until-significant --images 200"
    )


def test_the_training_form_writes_its_command(cache: Path) -> None:
    app = open_page("jobs", form="Training")
    assert app.code[0].value == "weanalysis train --model resnet20 --data digits"
    app.selectbox(key="train-excitation").select("lwe")
    app.selectbox(key="train-preset").select("digits")
    app.text_input(key="train-seeds").set_value("0-2")
    app.selectbox(key="train-normalize").select("no")
    app.text_input(key="train-learning_rate").set_value("0.01").run()
    is_well(app)
    assert app.code[0].value == (
        "weanalysis train --recipe digits --model resnet20 --data digits --excitation lwe --no-normalize "
        "--learning-rate 0.01 --seeds 0-2"
    )
    app.text_input(key="train-epochs").set_value("x").run()
    app.button(key="start").click().run()
    assert "'x' is not a valid float" in app.error[0].value
    assert Jobs(Cache(cache)).all() == []


@pytest.mark.parametrize("command", ["ablate", "train", "saliency", "prune", "compare", "report"])
def test_the_forms_offer_every_option_of_their_commands(command: str, cache: Path) -> None:
    shown: dict[str, list[str] | None] = {}
    for kind in KINDS if command == "ablate" else [""]:
        app = open_page("jobs", form=next(form for form, name in FORMS.items() if name == command))
        if kind:
            app.selectbox(key="ablate-study").select(kind).run()
        is_well(app)
        fields = (*app.selectbox, *app.text_input, *app.number_input, *app.checkbox)
        shown |= {field.key: getattr(field, "options", None) for field in fields}
    own = {option.name: option for option in cli.commands[command].params if isinstance(option, click.Option)}
    # A comparison's sides are no options; where a report lies the page decides.
    elsewhere = {"cache", "as_json", "quiet", *(["output"] if command == "report" else [])}
    shown = {key: options for key, options in shown.items() if key not in {f"{command}-first", f"{command}-second"}}
    assert {key for key in shown if key} == {f"{command}-{name}" for name in own if name not in elsewhere}
    if command == "ablate":
        assert shown["ablate-evaluate"] == own["evaluate"].metavar.split("|")
        assert [choice.partition(":")[0] for choice in shown["ablate-study"] or []] == list(KINDS)


def test_the_choices_of_a_training_option_are_those_that_training_knows() -> None:
    from weanalysis.cli import cli
    from weanalysis.excitation import KINDS
    from weanalysis.models.attention import ATTENTIONS, NORMS
    from weanalysis.training.images import AUGMENTATIONS
    from weanalysis.training.optimization import OPTIMIZERS, SCHEDULES
    from weanalysis.training.recipe import MIXED_PRECISIONS

    known = {
        "excitation": {"none", *KINDS},
        "attention": {"none", *ATTENTIONS},
        "norm": {"bn", *NORMS},
        "optimizer": set(OPTIMIZERS),
        "schedule": set(SCHEDULES),
        "augmentation": set(AUGMENTATIONS),
        "mixed_precision": set(MIXED_PRECISIONS),
    }
    own = {option.name: option for option in cli.commands["train"].params}
    assert {name: set(str(own[name].metavar).split("|")) for name in known} == known


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("until_ci", "many", "'many' is not a valid float"),
        ("model_options", "'open", "Model option: No closing quotation"),
    ],
)
def test_a_mistake_in_the_form_starts_nothing(field: str, value: str, line: str, cache: Path) -> None:
    app = open_page("jobs")
    app.text_input(key=f"ablate-{field}").set_value(value).run()
    if not app.error:
        app.button(key="start").click().run()
    assert not app.exception
    assert line in app.error[0].value.replace("\\", "")
    assert Jobs(Cache(cache)).all() == []


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("Study", {"ablate-name": "name", "ablate-weights": "weights", "ablate-model_options": "model_options"}),
        ("Training", {"train-name": "name", "train-layers": "layers"}),
    ],
)
def test_what_is_typed_into_a_field_is_its_value_and_never_an_option(
    form: str, fields: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weanalysis.cli import checks, cli

    monkeypatch.setattr(Jobs, "_spawn", lambda jobs, job_id: subprocess.Popen(["true"]))
    monkeypatch.setattr(checks, "check_start", lambda context, cache: None)  # which would refuse some of these
    app = open_page("jobs", form=form)
    for value in ("--cache", "--cache=/elsewhere", "-h", "--", "../../elsewhere", "$(id)"):
        for key in fields:
            app.text_input(key=key).set_value(value)
        app.run()
        app.button(key="start").click().run()
        is_well(app)
        job = Jobs(Cache(cache)).all()[0]
        parsed = cli.commands[job.command[0]].make_context(job.command[0], list(job.command[1:])).params
        assert {name: parsed[name] for name in fields.values()} == {
            name: (value,) if name == "model_options" else value for name in fields.values()
        }
        assert parsed["cache"] is None and not parsed["quiet"]


def test_a_line_break_in_a_field_starts_nothing(cache: Path) -> None:
    app = open_page("jobs")
    app.text_input(key="ablate-name").set_value("a\n--quiet").run()
    app.button(key="start").click().run()
    assert not app.exception
    assert "line break or another control character" in app.error[0].value
    assert Jobs(Cache(cache)).all() == []


def test_a_job_works_in_the_cache_of_its_dashboard_alone(cache: Path) -> None:
    """Also one that something else has put into the file of jobs."""
    jobs = Jobs(Cache(cache))
    job = jobs.start(["ablate", "--model", "resnet21", "--cache", str(cache / "elsewhere")])
    jobs.kill(job.id)
    app = open_page("jobs")
    assert not app.exception and "again-1" not in {button.key for button in app.button}
    assert "--cache is not for jobs" in words(app).replace("\\", "")
    assert not (cache / "elsewhere").exists()


def end_jobs(cache: Path, *ended: tuple[list[str], str, str]) -> None:
    """Enter jobs that have ended: their commands, states and logs."""
    jobs = Jobs(Cache(cache).ready())
    for number, (command, state, log) in enumerate(ended, start=1):
        with jobs._database() as db:
            row = (json.dumps(command), state, time.time() - 90, time.time(), time.time())
            db.execute("INSERT INTO jobs (command, state, created, heartbeat, ended) VALUES (?, ?, ?, ?, ?)", row)
        path = Cache(cache).job_log(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(log)


@pytest.mark.parametrize("looks", range(1, 7))
def test_a_job_that_ends_while_the_page_is_drawn_is_shown_once(
    looks: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs at so many looks at the jobs, and at the next one has ended."""
    end_jobs(cache, (["ablate"], "finished", ""))
    (ended,), left = Jobs(Cache(cache)).all(), iter(range(looks))
    runs = replace(ended, state="running", ended=None)
    monkeypatch.setattr(Jobs, "all", lambda jobs: [ended if next(left, None) is None else runs])
    app = open_page("jobs")
    is_well(app)
    assert words(app).count("## Job 1") == 1


def test_what_each_job_made_is_opened_and_what_cannot_work_is_not_resumed(cache: Path) -> None:
    """One page of jobs that have ended, of each command; of those that failed, only one may be given again."""
    number = write_study(cache / "results.sqlite", "location", location_plan(grid=1), "made", num_images=250)
    sides = [f"study:{number}"] * 2
    (cache / "page.html").write_text("<h1>A report</h1>")
    end_jobs(
        cache,
        (["ablate"], "finished", f"100%  made\nKept as study {number}. Next:"),
        (["ablate", "--model", "x"], "failed", "error: unknown model x"),
        (["train", "--model", "resnet20"], "lost", " 40%  so far"),
        (["saliency"], "finished", f"Kept as {cache}/saliency/ab12.safetensors. Next:"),
        (["prune"], "finished", "accuracy over sparsity"),
        (["compare", *sides], "finished", "second minus first"),
        (["report", *sides[:1], "-o", "x.html"], "finished", f"The report is in {cache}/page.html (0.1 MiB); any"),
        (["saliency", "--images", "9"], "cancelled", " 40%  so far"),
        (["ablate", "--model", f"{cache}/gone.safetensors"], "lost", " 40%  so far"),
    )
    app = open_page("jobs")
    assert not app.exception and [error.value for error in app.error] == ["unknown model x"]
    opened = {link.proto.query_string for link in app.get("page_link") if link.proto.label == "Open result"}
    assert {f"study={number}", "maps=ab12", f"first={number}&second={number}"} <= opened
    assert [button.proto.label for button in app.get("download_button")] == ["Open result"]
    assert len(opened) + len(app.get("popover")) >= 4, "the pruning on its page, or as it was printed"
    again = {button.key: button.label for button in app.button if str(button.key).startswith("again")}
    runs = dict.fromkeys(("again-1", "again-4", "again-5", "again-6", "again-7", "again-8"), "Run again")
    assert again == runs | {"again-3": "Resume"}
    assert "gone.safetensors is not there" in words(app).replace("\\", "")


def test_own_networks_are_chosen_and_an_estimate_says_what_it_is_based_on(cache: Path) -> None:
    folder = write_run(cache, "mine", excitation="lwe", epochs=8)
    for name in ("last", "best"):
        (folder / f"{name}.safetensors").write_bytes(b"weights")
    write_study(
        cache / "results.sqlite",
        *("location", location_plan(), "made"),
        num_images=500,
        options={"grid": [5, 5], "kernel_size": "3", "layers": None},
        dtype="float32",
    )
    end_jobs(cache, (["saliency", "--model", "resnet20"], "finished", ""))
    app = open_page("jobs")
    assert "About 1 s for every 500 images, since made took 1 s for 500 images" in words(app)
    app.number_input(key="ablate-images").set_value(10_000_000).run()
    assert re.search("About [1-9].* (min|h) .*, since made took 1 s for 500 images", words(app))
    app.text_input(key="ablate-grid").set_value("all").run()
    assert "No estimate yet" in words(app), "how many kernels all are, its weights would say"
    path = str(folder / "best.safetensors")
    app.selectbox(key="ablate-own").set_value(path).run()
    assert app.code[0].value.startswith(f"weanalysis ablate --model {path} --data digits")
    app = open_page("jobs", form="Training")
    app.text_input(key="train-seeds").set_value("0-2")
    app.text_input(key="train-epochs").set_value("4").run()
    assert "About 4 min 00 s, 4 epochs × 3 seeds at 20 s each, as in 1 earlier run of resnet20" in words(app)
    app = open_page("jobs", form="Saliency")
    assert "About 1 min 30 s, since job 1 took 1 min 30 s" in words(app)
    app = open_page("jobs", form="Comparison")
    for side, name in (("first", "study:1"), ("second", "run:mine")):
        app.selectbox(key=f"compare-{side}").set_value(name).run()
    assert app.code[0].value == "weanalysis compare study:1 run:mine"
    app = open_page("jobs", form="Report")
    app.multiselect(key="report-named").set_value(["study:1", "run:mine"]).run()
    is_well(app)
    assert app.code[0].value == (f"weanalysis report study:1 run:mine --output {cache}/reports/study-1-run-mine.html")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("ablate --model resnet21", "unknown model 'resnet21'"),
        ("ablate --model gone.safetensors", "gone.safetensors is not there"),
        ("ablate --weights gone.pt", "gone.pt is not there"),
        ("ablate --data nowhere", "unknown data 'nowhere'"),
        ("ablate --data imagefolder", "lacks what it reads"),
        ("ablate --data imagefolder:/gone", "/gone is not there"),
        ("ablate --model resnet18 --data imagefolder:.", "no finished run of resnet18"),
        ("ablate --images 0", "--images 0 is not allowed"),
        ("ablate --model resnet20 --study multiplier", "was not trained with LWE"),
        ("ablate --study channel --percentiles 5", "does not belong to --study channel"),
        ("ablate --metric top7", "unknown metric 'top7'"),
        ("ablate --until-ci 0", "give a width above 0"),
        ("ablate --max-error 0.1", "belongs to --evaluate screened"),
        ("ablate --mean 1,2", "give three numbers"),
        ("ablate --class-order gone.txt", "is no file"),
        ("ablate --model-option x", "write KEY=VALUE"),
        ("train --model resnet20 --epochs -1", "epochs -1"),
        ("train --model resnet20 --seeds x", "--seeds 'x' is malformed"),
        ("train --model resnet20 --excitation lwa", "lwa"),
        ("saliency --criteria tailor", "unknown criterion 'tailor'"),
        ("saliency --top 100", "--top 100 is not allowed"),
        ("saliency --study 7", "there are no results at"),
        ("saliency -o x.txt", "its name must end in"),
        ("prune --sparsity 1", "--sparsity 1 is not allowed"),
        ("prune --by nonsense", "unknown ranking 'nonsense'"),
        ("prune --by drop", "--by drop needs a study of every kernel"),
        ("prune --by l1 --study 1", "are for --by drop"),
        ("prune gone.safetensors", "gone.safetensors is not there"),
        ("prune -o /gone/x.safetensors", "the folder of /gone/x.safetensors does not exist"),
        ("compare gone other", "unknown run or study 'gone'"),
        ("report gone -o x.html", "unknown run or study 'gone'"),
    ],
)
def test_what_can_never_work_is_refused_before_anything_is_imported(command: str, line: str, cache: Path) -> None:
    name, *options = command.split()
    context = cli.commands[name].make_context(name, options)
    with pytest.raises(WeanalysisError, match=re.escape(line)):
        check_start(context, Cache(cache))


def test_what_may_work_is_not_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"")
    for command in (
        "ablate --model resnet20 --study magnitude --percentiles 5",
        "ablate --model resnet50 --data imagenet:.",
        "ablate --model timm:resnet10t --weights none",
        f"ablate --model {tmp_path}/net.safetensors --study multiplier",
        "train --model resnet20 --data hf:mnist",
        "saliency --model fcn_resnet20 --data digit-scenes",
        f"compare {tmp_path}/net.safetensors {tmp_path}/net.safetensors",
    ):
        name, *options = command.split()
        check_start(cli.commands[name].make_context(name, options), Cache(cache))


def test_the_names_that_are_checked_are_those_that_there_are() -> None:
    from weanalysis.data import SOURCES
    from weanalysis.models import list_models, parse_name
    from weanalysis.models.cifar import BUILTIN
    from weanalysis.models.formats import SUFFIXES
    from weanalysis.saliency import CRITERIA

    assert set(checks.BUILTIN) == set(BUILTIN) and set(checks.CRITERIA) == set(CRITERIA)
    assert set(checks.IMAGES) == set(SOURCES) and set(checks._WEIGHT_FILES) == set(SUFFIXES)
    others = {one["name"] for one in list_models() if one["source"] != "builtin"}
    assert all(map(checks._in_torchvision, others)) and not checks._in_torchvision("resnet51")
    assert parse_name("r3d_18")[0] == "video" and "r3d_18" in others


def test_the_checks_import_no_torch() -> None:
    program = (
        "import sys, weanalysis.cli as c; from weanalysis.cache import find_cache; from weanalysis.cli.checks import "
        "check_start; check_start(c.cli.commands['prune'].make_context('prune', []), find_cache()); "
        "check_start(c.cli.commands['ablate'].make_context('ablate', ['--model', 'resnet18']), find_cache()); "
        "print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_a_job_is_started_watched_and_run_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = Jobs(Cache(cache))
    app = open_page("jobs")
    app.text_input(key="ablate-weights").set_value("none")
    app.text_input(key="ablate-grid").set_value("1x1")
    app.number_input(key="ablate-images").set_value(10).run()
    app.button(key="start").click().run()
    is_well(app)
    (job,) = jobs.all()
    assert "running" in words(app)
    app.button(key="start").click().run()
    assert "running already, as job 1" in app.error[0].value
    wait_until(lambda: not jobs.get(job.id).active)
    app = open_page("jobs")
    is_well(app)
    assert jobs.get(job.id).state == "finished", jobs.log(job.id)
    assert "finished" in words(app)
    app.button(key="again-1").click().run()
    is_well(app)
    wait_until(lambda: not jobs.get(2).active)
    app = open_page("overview")
    assert list(app.dataframe[0].value["progress"]) == [100, 100], "other random weights, another study"
