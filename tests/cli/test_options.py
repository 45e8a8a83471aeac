"""Command lines made from settings: spelling, types, limits, and what each mistake is answered."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from sap_detr_cli.main import VERBS
from sap_detr_cli.options import ARGUMENT, AT_LEAST_1, FRACTION, Settings, options, parse
from sap_detr_cli.settings.predict import PredictionSettings
from sap_detr_cli.settings.train import TrainingSettings

TEXTS = [
    "2024-05-01", "007", "1_000", "12:30", "1e3", "0x1F", "on", "no", "~", "runs/a #2", "#2", "a: b", "[new]", "{x}",
    "*.d", "&x", "%d", "- x", "@home", "!x", "'q", '"q', "run\tb", "runs/my run", "C:\\data\\run", "true", "3.10",
    "?", "a, b", "it's", "x:", "ü猫", "|", ">", "`x`", "run: 2", "-1", "set #2", "y", ".inf", "<<", "=", " x ", "a\nb",
    "\\n",
]  # fmt: skip


@dataclass(frozen=True)
class Sample(Settings):
    """One field of each kind."""

    name: Annotated[str, "where 100% of it lies", ARGUMENT]
    others: Annotated[list[str], "more names", ARGUMENT]
    needed_word: Annotated[str, "must be given"]
    count: Annotated[int, "how many", AT_LEAST_1] = 3
    share: Annotated[float | None, "a part", FRACTION] = None
    box_format: Annotated[Literal["xywh", "xyxy"], "of boxes"] = "xywh"
    quick: Annotated[bool, "hurry"] = False
    pictures: Annotated[bool, "draw"] = True
    sizes: Annotated[list[int], "pixels"] = field(default_factory=lambda: [1, 2])
    fields: Annotated[dict[str, Any], "of a model"] = field(default_factory=dict)
    note: Annotated[str | None, "a text"] = None


def read(*words: str) -> Sample:
    return parse(Sample, ["x", "y", "--needed-word", "z", *words], program="sap-detr sample")


def test_defaults_arguments_and_the_command():
    settings = parse(Sample, ["x", "--needed_word=z", "y", "Z"], program="sap-detr sample")
    assert dataclasses.asdict(settings) == {
        "name": "x", "others": ["y", "Z"], "needed_word": "z", "count": 3, "share": None, "box_format": "xywh",
        "quick": False, "pictures": True, "sizes": [1, 2], "fields": {}, "note": None,
    }  # fmt: skip
    assert settings.command == "sap-detr sample x --needed_word=z y Z"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--count", "12"], "count", 12),
        (["--count=010"], "count", 10),
        (["--share", "1e-3"], "share", 1e-3),
        (["--share", "1"], "share", 1.0),
        (["--share", "0.5", "--share", "null"], "share", None),
        (["--share", ""], "share", None),
        (["--box-format", "xyxy"], "box_format", "xyxy"),
        (["--box_format=xyxy"], "box_format", "xyxy"),
        (["--quick"], "quick", True),
        (["--quick", "--no-quick"], "quick", False),
        (["--quick", "false"], "quick", False),
        (["--quick=On"], "quick", True),
        (["--no-pictures"], "pictures", False),
        (["--pictures", "false"], "pictures", False),
        (["--sizes", "4", "5"], "sizes", [4, 5]),
        (["--sizes", "[4, 5]"], "sizes", [4, 5]),
        (["--sizes", "[]"], "sizes", []),
        (["--fields", "{a: 1e-3, b: on, c: 010, d: null, e: [1], f: 2024-05-01, g: true, h: 12:30}"], "fields",
         {"a": 1e-3, "b": "on", "c": 10, "d": None, "e": [1], "f": "2024-05-01", "g": True, "h": "12:30"}),
        (["--note", "null"], "note", None),
        (["--needed-word", "null"], "needed_word", "null"),
    ],
)  # fmt: skip
def test_values(words, name, value):
    read_value = getattr(read(*words), name)
    assert read_value == value
    assert type(read_value) is type(value)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stay_as_they_stand(text):
    assert read(f"--note={text}").note == text
    assert parse(Sample, ["--needed-word", "z", "--", text, text]).others == [text]
    settings = parse(TrainingSettings, [f"--output_dir={text}", f"--resume={text}", "--variant=r50", "--data=d"])
    assert (settings.output_dir, settings.resume) == (text, text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cuont", "3"], "The command line sets `cuont`, which is not a setting: the nearest one is `count`."),
        (["--box_formt=xyxy"], "nearest one is `box_format`"),
        (["--zzzzzz"], "`sap-detr sample --help` lists them"),
        (["--no-count"], "`no_count`, which is not a setting"),
        (["--count", "many"], "`count` = 'many' must be a whole number."),
        (["--count", "1.5"], "must be a whole number"),
        (["--count", "12:30"], "must be a whole number"),
        (["--count", "0"], "`count` = 0 must be at least 1."),
        (["--count", ""], "must be a whole number"),
        (["--count", "null"], "must be a whole number"),
        (["--count"], "expected one argument"),
        (["--share", "nan"], "`share` = 'nan' must be a number."),
        (["--share", "inf"], "must be a number"),
        (["--share", "2"], "`share` = 2.0 must be between 0 and 1."),
        (["--box-format", "cxcywh"], "`box_format` = 'cxcywh' must be one of xywh, xyxy."),
        (["--quick=perhaps"], "`quick` = 'perhaps' must be true or false."),
        (["--sizes", "4", "x"], "`sizes` = 'x' must be a whole number."),
        (["--fields", "{a: "], "`fields` = '{a: ' cannot be read"),
        (["--fields", "a"], "`fields` = 'a' must be a mapping."),
        (["--needed-word", ""], "`needed_word` is empty, but must be text."),
        (["-x"], "unrecognized arguments: -x"),
    ],
)  # fmt: skip
def test_mistakes_are_named(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(*words)


def test_missing_arguments_are_named():
    with pytest.raises(ValueError, match=r"required: .*--needed-word.*`sap-detr sample --help`"):
        parse(Sample, ["x", "y"], program="sap-detr sample")
    with pytest.raises(ValueError, match=r"required: .*NAME"):
        parse(Sample, ["--needed-word", "z"])


def test_values_of_the_wrong_type_are_refused_in_python_too(tmp_path):
    for change in ({"count": True}, {"count": 1.0}, {"quick": 1}, {"note": 3}, {"sizes": "4"}, {"fields": []}):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
            Sample("x", ["y"], "z", **change)
    assert Sample(tmp_path, [tmp_path], "z").others == [str(tmp_path)]


def test_help_shows_reasons_defaults_and_choices(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Sample, ["--help"], program="sap-detr sample")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: sap-detr sample NAME OTHERS ... --needed-word NEEDED_WORD [options]",
        "where 100% of it lies",
        "how many [3]",
        "--box-format {xywh,xyxy} of boxes [xywh]",
        "--pictures, --no-pictures draw [true]",
        "pixels [[1, 2]]",
        "a text [empty]",
    ):
        assert part in text


@pytest.mark.parametrize("settings", VERBS.values(), ids=VERBS)
def test_every_setting_has_a_reason_and_its_default_is_valid(settings):
    for option in options(settings):
        assert len(option.reason) > 5
        if not callable(option.default) and option.default is not dataclasses.MISSING:
            assert option.checked(option.default) == option.default


def test_flags_do_not_take_the_next_argument():
    settings = parse(PredictionSettings, ["--overwrite", "MODEL", "--no-pictures", "a.png", "b.png", "--output", "o"])
    assert (settings.model, settings.inputs, settings.overwrite, settings.pictures) == (
        "MODEL", ["a.png", "b.png"], True, False)  # fmt: skip
    assert parse(PredictionSettings, ["m", "[ab].png", "--output", "o"]).inputs == ["[ab].png"]
