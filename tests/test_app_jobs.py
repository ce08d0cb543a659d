"""The page of jobs: forms that write commands, and jobs that are started and watched."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from made_studies import location_plan, write_run, write_study
from pages import is_well, open_page, words
from processes import wait_until

from weanalysis.cache import Cache
from weanalysis.cli import cli
from weanalysis.jobs import Jobs
from weanalysis.kinds import KINDS


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


@pytest.mark.parametrize("command", ["ablate", "train", "saliency"])
def test_the_forms_offer_every_option_of_their_commands(command: str, cache: Path) -> None:
    shown: dict[str, list[str] | None] = {}
    for kind in KINDS if command == "ablate" else [""]:
        app = open_page("jobs", form={"train": "Training", "saliency": "Saliency"}.get(command, "Study"))
        if kind:
            app.selectbox(key="ablate-study").select(kind).run()
        is_well(app)
        fields = (*app.selectbox, *app.text_input, *app.number_input, *app.checkbox)
        shown |= {field.key: getattr(field, "options", None) for field in fields}
    own = {option.name: option for option in cli.commands[command].params}
    elsewhere = {"cache", "as_json", "quiet"}
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
    from weanalysis.cli import cli

    monkeypatch.setattr(Jobs, "_spawn", lambda jobs, job_id: subprocess.Popen(["true"]))
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
    app.button(key="again-1").click().run()
    assert not app.exception and len(jobs.all()) == 1
    assert not (cache / "elsewhere").exists()


def test_what_was_made_is_opened_what_cannot_work_is_not_resumed_and_own_networks_are_offered(cache: Path) -> None:
    number = write_study(cache / "results.sqlite", "location", location_plan(grid=1), "made", num_images=250)
    folder = write_run(cache, "mine", excitation="lwe")
    (folder / "last.safetensors").write_bytes(b"weights")
    jobs = Jobs(Cache(cache).ready())
    with jobs._database() as db:
        for command, state in ((["ablate"], "finished"), (["ablate", "--model", "x"], "failed"), (["train"], "lost")):
            row = (json.dumps(command), state, time.time(), time.time(), time.time())
            db.execute("INSERT INTO jobs (command, state, created, heartbeat, ended) VALUES (?, ?, ?, ?, ?)", row)
    for job, log in (
        (1, f"100%  made\nKept as study {number}. Next:"),
        (2, "error: unknown model x"),
        (3, " 40%  so far"),
    ):
        path = Cache(cache).job_log(job)
        path.parent.mkdir(exist_ok=True)
        path.write_text(log)
    app = open_page("jobs")
    assert not app.exception and [error.value for error in app.error] == ["unknown model x"]
    (link,) = (link.proto for link in app.get("page_link"))
    assert link.label == "Open result" and f"study={number}" in link.query_string
    assert {str(button.key) for button in app.button if str(button.key).startswith("again")} == {"again-1", "again-3"}
    app.selectbox(key="ablate-own").set_value("mine").run()
    assert app.code[0].value == f"weanalysis ablate --model {folder / 'last.safetensors'} --data digits"


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
