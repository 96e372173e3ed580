"""The command `frisket VERB [YAML …] [key=value …]`: picks the verb and splits its arguments.

    frisket train configs/distill_lightening.yaml optim.lr=1e-4

Only the chosen verb's module is imported. Exit codes: 0 done; 2 a mistake in what was asked (one sentence on stderr);
75 stopped on request with a checkpoint, run it again to go on; 130 interrupted from the keyboard (`train`: with a
checkpoint too); 1 also when whoever read the output went away (`frisket … | head`).
"""

import ast
import importlib
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from frisket import __version__, plugins
from frisket import config as settings
from frisket.engine.signals import held
from frisket.errors import UserError, nearest

VERBS = {
    "train": "train a recipe, or continue it: frisket train configs/train_sam.yaml trainer.max_steps=200",
    "doctor": "look for what would stop a training: frisket doctor configs/train_sam.yaml",
    "eval": "judge a model: frisket eval configs/eval_miou.yaml checkpoint=runs/distill_lightening",
    "prep": "turn pictures and masks into shards: frisket prep configs/prep_sa1b.yaml",
    "show": "print the resolved configuration: frisket show configs/distill_lightening.yaml",
    "predict": "masks for pictures: frisket predict photo.jpg checkpoint=runs/finetune_decoder",
    "quant": "fewer bits, scales searched: frisket quant configs/quant_tiny.yaml checkpoint=runs/distill_tiny",
    "export": "ONNX files that run without PyTorch: frisket export configs/export_onnx.yaml checkpoint=runs/quant_tiny",
    "export-weights": "a run's weights as one file: frisket export-weights runs/distill_lightening out=mine.pth",
    "study": "named arms, seeds, one judge; what differs: frisket study studies/lightening.yaml",
    "report": "results of runs as one HTML page: frisket report runs/eval runs/train_sam",
    "bench": "time the parts that matter: frisket bench",
}


CHOOSES = {"train": ("recipe",), "doctor": ("recipe",), "prep": ("source",), "eval": ("tasks", "task")}
"""The keys that choose a schema, by verb. `task` last: a preparation has one too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never raises UserError: that is printed here."""
    # before numpy and torch come: OpenMP threads that wait spinning make two threads on busy cores slower than one
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["help"] and len(args) > 1:
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"frisket {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    try:
        if verb not in VERBS:
            raise UserError(f"'{verb}' is not a verb of frisket: {nearest(verb, VERBS)}")
        if any(word in ("-h", "--help") for word in rest):
            print(usage(verb, *split([word for word in rest if word not in ("-h", "--help")])))
            return 0
        files, overrides = split(rest)
        if verb not in ("train", "eval", "quant"):
            return _run(verb, files, overrides)
        with held():  # before numpy and torch start threads: see frisket.engine.signals
            return _run(verb, files, overrides)
    except UserError as error:
        print(f"frisket: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("frisket: interrupted; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        return 130


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (files, overrides): a word with '=' is an override. Raises UserError for an option like --lr."""
    for word in args:
        if word.startswith("-"):
            raise UserError(f"frisket has no options ('{word}'): settings are written key=value, e.g. optim.lr=1e-4")
    return [word for word in args if "=" not in word], [word for word in args if "=" in word]


def stem(verb: str) -> str:
    """The name of a verb's file in this folder."""
    return verb.replace("-", "_")


def usage(verb: str | None = None, files: Sequence[str] = (), overrides: Sequence[str] = ()) -> str:
    """Return the help text: of all verbs, or of one with the keys of the recipe, task or source that is chosen."""
    if not verb:
        verbs = "\n".join(f"  {name:14} {text}" for name, text in VERBS.items())
        foot = "Starting a run again continues it. Unknown keys are refused."
        return f"frisket VERB [YAML …] [key=value …]\n\n{verbs}\n\n{foot}"
    source = Path(__file__).with_name(f"{stem(verb)}.py")  # parsed, not imported: that would take seconds
    about = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or VERBS[verb]
    keys = CHOOSES.get(verb, ())
    if verb == "show":
        return about
    if keys and not files and not overrides:
        paths = sorted(settings.SHIPPED.glob("*.yaml"))
        ours = ", ".join(path.stem for path in paths if any(settings.peek([path], [], key) for key in keys))
        return f"{about}\n\nYAMLs of ours: {ours}. `frisket {verb} YAML --help` lists the keys of one."
    _plug_in(files, overrides)
    schema = importlib.import_module(f"frisket.cli.{stem(verb)}").schema(settings.split(files)[0], overrides)
    knobs = [(f"{knob.key}={knob.default}", knob.about) for knob in settings.describe(schema)]
    wide = min(max(len(key) for key, _ in knobs), 44)
    table = "\n".join(f"  {key:{wide}}  {line}".rstrip() for key, line in knobs)
    return f"{about}\n\nKeys, with their defaults; later YAML files and key=value words win:\n\n{table}"


def _plug_in(files: Sequence[str], overrides: Sequence[str]) -> None:
    named = settings.peek(settings.split(files)[0], overrides, "plugins") or []
    plugins.load([named] if isinstance(named, str) else named)


def _run(verb: str, files: list[str], overrides: list[str]) -> int:
    _plug_in(files, overrides)
    return int(importlib.import_module(f"frisket.cli.{stem(verb)}").run(files, overrides) or 0)


def entry() -> None:
    """The console script: exit with main's code, and quietly with 1 when the reader of a pipe has gone."""
    try:
        code = main()
        if sys.stdout is not None:  # `>&-` gives Python no stdout at all
            sys.stdout.flush()  # here, where a closed pipe can still be caught, not at the interpreter's exit
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _unread(stream)]
        if not gone:  # another pipe broke, one to a worker say
            raise
        for stream in gone:  # what is still buffered goes nowhere, and raises nothing when Python flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 1
    sys.exit(code)


def _unread(stream: TextIO) -> bool:
    """Whether `stream` is a pipe (or socket) that nobody reads any more."""
    poll = select.poll()
    poll.register(stream, 0)  # POLLERR and POLLHUP are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


if __name__ == "__main__":
    entry()
