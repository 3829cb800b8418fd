"""The command line.

memory-v2v edit INPUT... --turn SPEC [--turn SPEC ...] --out DIR [key=value ...]
memory-v2v synthesize --out DIR [--scenes N] [--from-videos INPUT...] [key=value ...]
memory-v2v synthesize --out DIR --extend DIR [--model NAME] [key=value ...]
memory-v2v train --data DIR --out DIR [--model NAME] [--workers N] [--config FILE] [key=value ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import fsspec
import yaml

from actors.termination import ends_as_interrupted
from jobs.command import FAILED, USAGE, UsageError, say
from jobs.config import (
    ConfigError,
    EditConfig,
    ExtendConfig,
    SynthesizeConfig,
    TrainConfig,
    load_config,
    load_extend_config,
    load_synthesize_config,
    load_train_config,
)
from jobs.turn import parse_turn
from pipeline.training.recipe import Recipe
from pipeline.trajectory import PRESETS
from storage.errors import reaching
from storage.yaml_text import Loader

PLAN_KEYS = {"inputs": list, "turns": list, "out": str, "library": str, "owner": str, "model": str, "config": dict}
NAMES = {list: "a list", str: "text", dict: "a mapping"}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="memory-v2v", description="Video-to-video diffusion that remembers its own edits."
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {version('memory-v2v')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    edit = commands.add_parser(
        "edit",
        help="edit videos in turns, remembering what was made before",
        description="Edit every INPUT in every turn. The same command again finds finished edits and goes on.",
        epilog=f"presets: {', '.join(PRESETS)}\n\n{_settings(EditConfig())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    edit.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="file, folder, glob, URL, or a .jsonl or .parquet manifest; or key=value",
    )
    edit.add_argument(
        "--turn",
        action="append",
        default=[],
        metavar="SPEC",
        help="preset, trajectory file, prompt, or a YAML mapping of them",
    )
    edit.add_argument(
        "--plan", metavar="FILE.yaml", help=f"a YAML file with {', '.join(PLAN_KEYS)}; the command line wins"
    )
    edit.add_argument("--out", metavar="DIR", help="where the videos and the tables go")
    edit.add_argument("--library", metavar="URL", help="folder of the memory libraries (default: DIR/library)")
    edit.add_argument("--owner", help="whose library (default: default)")
    edit.add_argument(
        "--model",
        help="mini, recammaster, lucy-edit, memory-v2v, a hub id or folder of those, or a folder in our layout",
    )
    edit.add_argument("--workers", type=int, metavar="N", help="the same as workers=N")
    edit.add_argument("--limit", type=int, metavar="N", help="look at the first N videos alone")
    edit.add_argument(
        "--source-trajectory", metavar="FILE", help="how the source's own camera moves (default: it stands still)"
    )
    edit.add_argument(
        "--shots",
        metavar="FILE",
        help="first frames of the source's shots after the first; 'auto' finds hard cuts (default: one shot)",
    )
    edit.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    edit.add_argument("--fresh", action="store_true", help="forget all that was made of these videos and begin anew")
    synthesize = commands.add_parser(
        "synthesize",
        help="make a data set of scenes with exact cameras and paired edits, for training",
        description="Render scenes, and cut views out of real footage, into a data set; or let a model make the edited "
        "clips of one longer, into another. The same command again goes on where the last one stopped.",
        epilog=f"{_settings(SynthesizeConfig())}\n\nwith --extend, {_settings(ExtendConfig())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    synthesize.add_argument("settings", nargs="*", metavar="key=value", help="see below")
    synthesize.add_argument("--out", metavar="DIR", help="where the data set, its card and its preview go")
    synthesize.add_argument("--scenes", type=int, default=0, metavar="N", help="how many scenes to render")
    synthesize.add_argument(
        "--from-videos",
        nargs="+",
        action="extend",
        default=[],
        metavar="INPUT",
        help="files, folders, globs or manifests of real footage, out of which virtual cameras cut their views",
    )
    synthesize.add_argument(
        "--extend", metavar="DIR", help="a data set of scenes whose edited clips the model makes longer"
    )
    synthesize.add_argument("--model", metavar="NAME", help="that makes them longer (default: mini)")
    synthesize.add_argument("--workers", type=int, metavar="N", help="the same as workers=N")
    synthesize.add_argument("--dry-run", action="store_true", help="say what would be made, and do nothing")
    train = commands.add_parser(
        "train",
        help="train a model on a data set of clips",
        description="Train a model. The same command again goes on from the newest checkpoint.",
        epilog=_settings(TrainConfig(), Recipe()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("settings", nargs="*", metavar="key=value", help="see below")
    train.add_argument("--data", metavar="DIR", help="a data set that `memory-v2v synthesize` made")
    train.add_argument("--out", metavar="DIR", help="where checkpoints, log, sheets and the model go")
    train.add_argument(
        "--model",
        metavar="NAME",
        help="what to begin from: mini-cpu (default) or mini-gpu, untrained; mini, a base, or a folder",
    )
    train.add_argument("--config", metavar="FILE.yaml", help="a file with settings, and data, out and model")
    train.add_argument("--workers", type=int, metavar="N", help="the same as workers=N")
    train.add_argument("--dry-run", action="store_true", help="say what would be trained, and do nothing")
    return top


def _settings(*configs: Any) -> str:
    lines = [
        f"  {f.name}={_said(getattr(config, f.name))}".ljust(28) + f" {f.metadata['help']}"
        for config in configs
        for f in dataclasses.fields(config)
    ]
    return "settings, each given as key=value (null: the model's own, unless said):\n" + "\n".join(lines)


def _said(value: Any) -> str:
    """A default as it would be typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value).replace(" ", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 all done, 1 some failed, 2 the command could not be understood or started."""
    ends_as_interrupted()
    # argparse takes free words only up to the first option; those that follow are ours to collect.
    given, rest = parser().parse_known_args(arguments)
    try:
        if unknown := [word for word in rest if word.startswith("-")]:
            raise UsageError(
                f"unknown option {unknown[0]}; settings are written without dashes, such as seed=4, and files that "
                f"begin with one as ./{unknown[0]} (memory-v2v {given.command} --help lists all)"
            )
        free = [*(given.inputs if given.command == "edit" else given.settings), *rest]
        if meant := [word for word in free if _is_override(word) and _is_option(word, given)]:
            key, _, value = meant[0].partition("=")
            raise UsageError(f"'{meant[0]}' is an option and no setting: --{key.replace('_', '-')} {value}")
        if given.command == "synthesize":
            from jobs.extend import extend
            from jobs.synthesize import synthesize

            given.settings += rest
            if given.extend:
                return extend(extend_job(given))
            return synthesize(synthesize_job(given))
        if given.command == "train":
            from jobs.train import train

            given.settings += rest
            return train(train_job(given))
        from jobs.edit import edit

        given.inputs += rest
        return edit(edit_job(given))
    except KeyboardInterrupt:
        say("memory-v2v: interrupted; what is committed stays, the same command goes on from there")
        return FAILED
    except (ValueError, OSError, ImportError) as error:  # the last where fsspec lacks a URL's package
        say(f"memory-v2v: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return USAGE


def edit_job(given: argparse.Namespace) -> Any:
    """What the arguments and the plan file say together; the command line wins. Raises ValueErrors of one line."""
    from jobs.edit import EditJob

    plan = _read_plan(given.plan) if given.plan else {}
    overrides = [word for word in given.inputs if _is_override(word)]
    if given.workers is not None:
        overrides.append(f"workers={given.workers}")
    inputs = [word for word in given.inputs if not _is_override(word)] or plan.get("inputs") or []
    turns = [parse_turn(spec) for spec in given.turn or plan.get("turns") or []]
    out = given.out or plan.get("out")
    if not all(isinstance(name, str) for name in inputs):
        raise UsageError(
            f"the plan's inputs are {inputs!r}, expected a list of names; for more about each use a manifest"
        )
    if not inputs:
        raise UsageError("no INPUT was given: name a video, a folder, a glob, a manifest, or --plan FILE.yaml")
    if not out:
        raise UsageError("no --out was given: name the folder for the results")
    if given.limit is not None and given.limit < 1:
        raise UsageError(f"--limit is {given.limit}, expected at least 1")
    return EditJob(
        inputs=inputs,
        turns=turns,
        out=out,
        config=load_config(plan.get("config"), overrides),
        library=given.library or plan.get("library"),
        owner=given.owner or plan.get("owner") or EditJob.owner,
        model=given.model or plan.get("model") or EditJob.model,
        limit=given.limit,
        source_trajectory=given.source_trajectory,
        shots=given.shots,
        dry_run=given.dry_run,
        fresh=given.fresh,
    )


def synthesize_job(given: argparse.Namespace) -> Any:
    """What the arguments say. Raises ValueErrors of one line."""
    from jobs.synthesize import SynthesizeJob

    if not given.out:
        raise UsageError("no --out was given: name the folder for the data set")
    videos = [word for word in given.from_videos if not _is_override(word)]
    if given.scenes < 0 or not (given.scenes or videos):
        raise UsageError(f"--scenes is {given.scenes}, expected at least 1, or --from-videos with real footage")
    if given.model:
        raise UsageError(f"--model is {given.model}, expected none: nothing but --extend needs one")
    given.settings += [word for word in given.from_videos if _is_override(word)]
    return SynthesizeJob(
        out=given.out,
        scenes=given.scenes,
        config=load_synthesize_config(_synthesize_overrides(given)),
        from_videos=videos,
        dry_run=given.dry_run,
    )


def extend_job(given: argparse.Namespace) -> Any:
    """What the arguments of `synthesize --extend` say. Raises ValueErrors of one line."""
    from jobs.extend import ExtendJob

    if not given.out:
        raise UsageError("no --out was given: name the folder for the data set")
    if given.scenes or given.from_videos:
        other = "--scenes" if given.scenes else "--from-videos"
        raise UsageError(f"{other} with --extend: what is extended must be there; synthesize it first, elsewhere")
    config = load_extend_config(_synthesize_overrides(given))
    return ExtendJob(given.out, given.extend, given.model or ExtendJob.model, config, given.dry_run)


def _synthesize_overrides(given: argparse.Namespace) -> list[str]:
    if strange := [word for word in given.settings if not _is_override(word)]:
        raise UsageError(
            f"'{strange[0]}' is not a setting; expected key=value (memory-v2v synthesize --help lists all)"
        )
    return _with_workers(given)


def _with_workers(given: argparse.Namespace) -> list[str]:
    return given.settings + ([] if given.workers is None else [f"workers={given.workers}"])


def train_job(given: argparse.Namespace) -> Any:
    """What the arguments and the file of settings say; the command line wins. Raises ValueErrors of one line."""
    from jobs.train import TrainJob

    values = read_yaml(given.config, "config", "settings (memory-v2v train --help lists all)") if given.config else {}
    named = {key: values.pop(key, None) for key in ("data", "out", "model")}
    if values.get("workers", 0) is None:  # said and left empty
        del values["workers"]
    named |= {key: getattr(given, key) for key in named if getattr(given, key) is not None}
    for key, value in named.items():
        if not isinstance(value, str | None):
            raise ConfigError(f"config {given.config} has {key}: {value!r}, expected text")
    for key in ("data", "out"):
        if not named[key]:
            raise UsageError(f"no --{key} was given: name the folder")
    if strange := [word for word in given.settings if not _is_override(word)]:
        raise UsageError(f"'{strange[0]}' is not a setting; expected key=value (memory-v2v train --help lists all)")
    config, recipe = load_train_config(values, _with_workers(given))
    return TrainJob(
        **{key: value for key, value in named.items() if value is not None},
        config=config,
        recipe=recipe,
        dry_run=given.dry_run,
    )


def _is_option(word: str, given: argparse.Namespace) -> bool:
    return word.partition("=")[0] in {*vars(given)} - {"inputs", "settings", "workers", "command"}


def _is_override(word: str) -> bool:
    # A URL may hold '=' too, but not before its scheme; a file of that very name wins.
    return re.match(r"[A-Za-z_][A-Za-z0-9_.]*=", word) is not None and not os.path.exists(word)


def _read_plan(url: str) -> dict[str, Any]:
    plan = read_yaml(url, "plan", ", ".join(PLAN_KEYS))
    for key, value in plan.items():
        if key not in PLAN_KEYS:
            raise ConfigError(f"plan {url} has the key '{key}', expected only {', '.join(PLAN_KEYS)}")
        kind = PLAN_KEYS[key]
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"plan {url} has {key}: {value!r}, expected {NAMES[kind]}")
    return plan


def read_yaml(url: str, kind: str, keys: str) -> dict[str, Any]:
    """A mapping from a file. Raises ConfigError of one line, which says what the file is and should hold."""
    try:
        with reaching(url), fsspec.open(url, "rt") as file:
            found = yaml.load(file, Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{kind} {url} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{kind} {url} holds a {type(found).__name__}, expected a mapping with {keys}")
    return found


if __name__ == "__main__":
    sys.exit(main())
