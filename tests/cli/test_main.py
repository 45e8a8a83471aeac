"""The command: its verbs, how quickly it answers and what it loads, exit codes, errors on one of several processes."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from project_scripts import SCRIPTS, load_script

from sap_detr_cli.main import VERBS, main

HEAVY = ("torch", "transformers", "numpy", "datasets", "yaml", "sap_detr_hf")
ANSWER = """
import atexit, sys, time
heavy = {heavy!r}
atexit.register(lambda: print("HEAVY", [name for name in heavy if name in sys.modules], time.process_time()))
from sap_detr_cli.main import main
sys.exit(main({words!r}))
"""


def answer(*words: str, heavy=HEAVY) -> tuple[subprocess.CompletedProcess, float]:
    """A command in a process of its own, which must load nothing heavy, and its seconds of CPU time."""
    code = ANSWER.format(heavy=heavy, words=list(words))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    line = done.stdout.splitlines()[-1]
    assert line.startswith("HEAVY [] "), line
    return done, float(line.split()[-1])


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_answers_at_once_and_loads_nothing(words):
    done, seconds = answer(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert seconds < 1
    if words[0] in VERBS:
        assert f"usage: sap-detr {words[0]}" in done.stdout


@pytest.mark.parametrize("words", [["recipes"], ["train", "--epoch", "3"], ["train", "finetune"], ["no-verb"]])
def test_recipes_and_mistakes_load_no_torch_either(words):
    done, seconds = answer(*words, heavy=[name for name in HEAVY if name != "yaml"])
    assert done.returncode == (0 if words == ["recipes"] else 2)
    assert seconds < 1


def test_overview_lists_every_verb_in_one_line(capsys):
    assert main(["--help"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert list(lines) == list(VERBS)
    assert all(line.endswith((".", "`.")) and len(line) < 120 for line in lines.values())
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert version("sap-detr-hf") in capsys.readouterr().out


def test_unknown_verb_is_answered_with_the_nearest(capsys):
    for verb, advice in (("evalute", "the nearest one is `evaluate`"), ("xyz", "`sap-detr --help` lists them")):
        assert main([verb, "--help"]) == 2
        assert capsys.readouterr().err == f"error: sap-detr has no verb `{verb}`: {advice}.\n"


def test_every_verb_has_a_script_and_the_module_runs():
    assert sorted(path.stem for path in SCRIPTS.glob("*.py")) == sorted(
        verb.replace("-", "_") for verb in VERBS if verb != "recipes"
    )
    for path in SCRIPTS.glob("*.py"):
        with pytest.raises(SystemExit):
            load_script(path.stem).main(["--help"])
    done = subprocess.run([sys.executable, "-m", "sap_detr_cli", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: sap-detr train [RECIPE] [options]" in done.stdout


def test_only_the_first_process_of_a_machine_says_what_is_wrong(monkeypatch, capsys):
    for rank, error in (("0", "error: "), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["evaluate", "model"]) == 2
        assert capsys.readouterr().err[:7] == error


def test_missing_package_is_named_with_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sap_detr_hf.cli.export", None)
    assert main(["export", "model", "out.onnx"]) == 2
    assert "pip install 'sap-detr-hf[onnx]'" in capsys.readouterr().err
