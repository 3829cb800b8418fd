from __future__ import annotations

import dataclasses
from importlib.metadata import version

import pytest

from jobs.config import (
    ConfigError,
    EditConfig,
    ExtendConfig,
    SynthesizeConfig,
    TrainConfig,
    bits_of,
    fields_that,
    load_config,
    load_train_config,
)
from jobs.main import main
from pipeline.training.recipe import Recipe


def test_every_field_declares_whether_it_affects_bits_and_says_what_it_is_for() -> None:
    for field in dataclasses.fields(EditConfig):
        assert isinstance(field.metadata.get("affects_bits"), bool), (
            f"{field.name} does not say whether it affects bits"
        )
        assert field.metadata.get("help"), f"{field.name} has no help"


def test_the_fields_that_do_not_affect_bits_are_these_and_no_others() -> None:
    # A new field that is wrongly declared free would let two different latents share an id: listed here on purpose.
    assert set(fields_that(affect_bits=False)) == {
        "workers", "retries", "failure_budget", "fingerprint_threads", "crf", "upscale", "audio", "compare",
    }  # fmt: skip
    assert set(bits_of(EditConfig())) == set(fields_that(affect_bits=True))
    # Of a data set: seed and licence are those of single rows, and what is there already keeps its own.
    assert set(fields_that(affect_bits=False, kind=SynthesizeConfig)) == {
        "licence", "seed", "workers", "retries", "commit_mb",
    }  # fmt: skip
    assert set(bits_of(ExtendConfig())) == {"extension", "k"}


def test_overrides_win_over_values_and_are_typed() -> None:
    config = load_config(
        {"k": 3, "steps": 4}, ["k=2", "size=96x128", "guidance=1", "failure_budget=null", "audio=false"]
    )
    assert (config.k, config.steps, config.size, config.guidance, config.audio) == (2, 4, "96x128", 1.0, False)


def test_what_is_said_for_the_models_own_may_be_said_over_a_file() -> None:
    config, recipe = load_train_config(
        {"shift": 6.0, "height": 48, "frames": 16}, ["shift=0", "height=0", "width=0", "frames=0"]
    )
    assert (config.height, config.width, config.frames, recipe.shift) == (0, 0, 0, 0)
    with pytest.raises(ConfigError, match="setting 'height' is 4, expected at least 8"):
        load_train_config({}, ["height=4"])
    with pytest.raises(ConfigError, match="setting 'seed' is -5, expected 0 or more"):
        load_train_config({}, ["seed=-5"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("wrokers=3", ["'wrokers'", "'workers'"]),
        ("k=abc", ["'k'", "abc", "int"]),
        ("k=-1", ["'k'", "-1", "at least 0"]),
        ("fit=stretch", ["'fit'", "stretch", "letterbox, crop"]),
        ("size=large", ["'size'", "large", "HEIGHTxWIDTH"]),
        ("size=0x8", ["'size'", "0x8"]),
        ("points=100", ["'points'", "100", "multiple of 64"]),
        ("blend=1.5", ["'blend'", "1.5", "0 to 1"]),
        ("crf=99", ["'crf'", "99", "to 51"]),
        ("radius=.nan", ["'radius'", "nan"]),
        ("threads=null", ["'threads'"]),
        ("size=???", ["'size'", "???"]),
        ("k=${foo}", ["'k'", "${foo}"]),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_that_names_it_and_the_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({}, [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_says_its_version_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert said("--version") == f"memory-v2v {version('memory-v2v')}\n"
    settings = {"edit": [EditConfig], "synthesize": [SynthesizeConfig, ExtendConfig], "train": [TrainConfig, Recipe]}
    for command, configs in settings.items():
        text = said(command, "--help")
        for config in configs:
            assert all(f"  {field.name}=" in text for field in dataclasses.fields(config)), command
