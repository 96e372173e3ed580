"""A study as written: what is prepared once, named arms, seeds, one judge; and the cells (arm, seed) it comes to.

    seeds: [0, 1, 2]
    against: cascade                                   # every arm is compared with this one, mask by mask
    prepare:                                           # made once, data first; "@name" stands for its folder
      train: {prep: prep_synthetic, count: 3000, split: train}
      teacher: {train: train_sam, data: {train: "@train"}, trainer: {max_steps: 6500}}
    recipes:                                           # what all arms of a recipe share
      distill_lightening: {teacher: "@teacher", data: {train: "@train"}}
    arms:
      cascade: {train: distill_lightening}
      neck: {train: distill_lightening, distill: {schedule: neck}}
      cascade+decoder: {train: finetune_decoder, after: cascade}      # init_from: the same seed's run of that arm
      w8a8: {quantize: quant_tiny, after: cascade, data: "@train"}    # checkpoint: the same
    judge: {teacher: "@teacher", data: "@val"}         # settings of the evaluation task `fidelity`
    everything:                                        # if wanted: named settings of the evaluation task `everything`
      grid: {data: "@val", limit: 100}

Everything beside the verb (`train:`, `quantize:` or `prep:`, with the name of a shipped YAML or a path) and `after:`
are that YAML's own settings. A second YAML, or a word, changes the first: an arm or a preparation set to null is left
out.
Files   OUT/<prepared name>/, OUT/<arm>/seed<k>/ (a run folder), in it eval/ and everything_<name>/. Our choice.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frisket.errors import UserError, nearest
from frisket.plugins import Extensible

ARMS = {"train": "train", "quantize": "quant"}  # the study's word: the command (quant_tiny has settings named quant)
VERBS = {"prep": "prep", **ARMS}
FIDELITY, EVERYTHING = "eval", "everything_"
"""A cell's folders of what the judges said; the second is continued with the name."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass
class StudyConfig(Extensible):
    """A study and how it is run."""

    out: str = ""
    """Its folder; runs/studies/<the YAML's name> when empty."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Every arm is run once with each."""
    against: str = ""
    """The arm that all others are compared with; the first one when empty."""
    prepare: dict[str, Any] = field(default_factory=dict)
    """{name: {prep, train or quantize: YAML, …its settings}}, made once: first the data, then models, as written."""
    recipes: dict[str, Any] = field(default_factory=dict)
    """{YAML: settings} that all arms of that recipe share."""
    arms: dict[str, Any] = field(default_factory=dict)
    """{name: {train or quantize: YAML, after: arm, …settings}}."""
    judge: dict[str, Any] = field(default_factory=dict)
    """Settings of the evaluation task `fidelity` for every cell."""
    everything: dict[str, Any] = field(default_factory=dict)
    """{name: settings of the evaluation task `everything`}, each for every cell."""
    jobs: int = field(default=1, metadata={"least": 1})
    """How many cells run side by side."""
    threads: int = field(default=1, metadata={"least": 1})
    """CPU threads of every cell; 1 repeats a run bit for bit."""
    cell: str = ""
    """Only this one, with what stands on it and what it stands on: ARM/SEED, or its family's number from 0; prepare:
    only what all need."""
    slurm: str | None = None
    """Words for sbatch, such as "--gres=gpu:1 --time=1:00:00": the study becomes Slurm jobs instead of running here."""


@dataclass(frozen=True)
class Step:
    """One command of a study: a verb, its YAML, settings as nested mapping, and the folder that it fills."""

    name: str
    verb: str
    yaml: str
    settings: dict[str, Any]
    folder: Path
    after: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a StudyConfig comes to. arms: in the order written, parents before children. judges: {folder of a cell for
    what is judged: (shipped YAMLs, settings)}."""

    out: Path
    prepare: list[Step]
    arms: dict[str, list[Step]]
    judges: dict[str, tuple[list[str], dict[str, Any]]]
    against: str

    def cells(self) -> list[Step]:
        """All cells, parents before children, the seeds of an arm side by side."""
        return [step for steps in self.arms.values() for step in steps]

    def evaluations(self, step: Step) -> list[str]:
        """The judges of a step, which are folders in its own: none of data; of a prepared model, fidelity alone."""
        return [] if step.verb == "prep" else [FIDELITY] if step.seed is None else list(self.judges)

    def families(self) -> list[list[Step]]:
        """Cells that must run in one place, in order: an arm without `after`, and all that stand on it, by seed."""
        roots: dict[tuple[str, int], list[Step]] = {}
        for cell in self.cells():
            name = cell.name
            while (parent := self.arms[name][0].after) is not None:
                name = parent
            roots.setdefault((name, cell.seed or 0), []).append(cell)
        return list(roots.values())


def plan(config: StudyConfig, name: str) -> Plan:
    """Check a study and lay it out. `name`: the YAML's, for the folder. Raises UserError naming arm and key."""
    out = Path(config.out or Path("runs/studies") / name)
    prepare, wanted = ({k: v for k, v in part.items() if v is not None} for part in (config.prepare, config.arms))
    prepare = dict(sorted(prepare.items(), key=lambda item: isinstance(item[1], Mapping) and "prep" not in item[1]))
    if not wanted:
        raise UserError(f"study {name} has no arms: give arms: {{name: {{train: distill_lightening}}}}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise UserError(f"study {name}: seeds={config.seeds} must be different numbers, 0 or more")
    against = config.against or next(iter(wanted))
    if against not in wanted:
        raise UserError(f"study {name}: against={against} is no arm: {nearest(against, wanted)}")
    places = {key: out / key for key in prepare}
    for key in [*prepare, *wanted]:
        if not NAME.fullmatch(key):
            raise UserError(f"study {name}: '{key}' is no name of a folder: use letters, digits and . _ + -")
    if both := set(prepare) & set(wanted):
        raise UserError(f"study {name}: {sorted(both)[0]} is prepared and an arm: give one another name")
    prepared: list[Step] = []
    for key, spec in prepare.items():
        known = {step.name: step.folder for step in prepared}
        verb, yaml, settings, after = _split(f"study {name}, prepare.{key}", spec, VERBS)
        if after is not None:
            raise UserError(f"study {name}, prepare.{key}: `after` is for arms; name a prepared folder with @name")
        prepared.append(Step(key, verb, yaml, _placed(settings, known, f"prepare.{key}"), places[key]))
    arms: dict[str, list[Step]] = {}
    for key, spec in wanted.items():
        where = f"study {name}, arms.{key}"
        verb, yaml, settings, after = _split(where, spec, ARMS)
        if after is not None and after not in arms:
            raise UserError(f"{where}: after={after} must be an arm written above it: {nearest(after, arms)}")
        if after is None and verb == "quant" and not settings.get("checkpoint"):
            raise UserError(f"{where}: quantize what? give after: ARM, or checkpoint: MODEL")
        shared = config.recipes.get(Path(yaml).stem) or {}
        whole = _placed(merged(shared, settings), places, where)
        arms[key] = [Step(key, verb, yaml, whole, out / key / f"seed{k}", after, k) for k in config.seeds]
    judges = {FIDELITY: (["eval_fidelity"], _placed(dict(config.judge), places, f"study {name}, judge"))}
    for key, spec in config.everything.items():
        if not NAME.fullmatch(key) or not isinstance(spec, Mapping):
            raise UserError(
                f"study {name}, everything: give a name of letters and digits, and its settings: {{grid: {{data: …}}}}"
            )
        told = _placed(dict(spec), places, f"study {name}, everything.{key}")
        judges[EVERYTHING + key] = [], {"task": "everything", "pictures": 0, **told}
    return Plan(out, prepared, arms, judges, against)


def merged(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings; the second wins, mappings merge."""
    both = dict(first)
    for key, value in then.items():
        mine = both.get(key)
        both[key] = merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return both


def _split(where: str, spec: Any, verbs: Mapping[str, str]) -> tuple[str, str, dict[str, Any], str | None]:
    """(verb, YAML, settings, after) of one entry."""
    if not isinstance(spec, Mapping):
        raise UserError(f"{where} must be a mapping such as {{train: distill_lightening}}")
    said = [verb for verb in verbs if verb in spec]
    if len(said) != 1:
        raise UserError(f"{where} must say one of {', '.join(f'{verb}: YAML' for verb in verbs)}")
    settings = {str(key): value for key, value in spec.items() if key not in (said[0], "after")}
    after = spec.get("after")
    return verbs[said[0]], str(spec[said[0]]), settings, None if after is None else str(after)


def _placed(value: Any, places: Mapping[str, Path], where: str) -> Any:
    """`value` with every string "@name" replaced by that folder."""
    if isinstance(value, Mapping):
        return {key: _placed(inner, places, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, places, where) for inner in value]
    if isinstance(value, str) and value.startswith("@"):
        if value[1:] not in places:
            raise UserError(f"{where}: {value} is nothing prepared before it: {nearest(value[1:], places)}")
        return str(places[value[1:]])
    return value
