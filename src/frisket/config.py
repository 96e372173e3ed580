"""Config: dataclass defaults <- YAML files <- key=value, later wins. Knows no knob; each lives beside its reader.

    config = load(TrainConfig, ["configs/distill_lightening.yaml", "configs/on/a100.yaml"], ["optim.lr=1e-4"])

The only module that imports OmegaConf (https://omegaconf.readthedocs.io), used as the merge engine: the dataclass is
the truth. A list in a later source replaces the earlier one; mappings merge. Open mappings (`dict[str, Any]`, used for
an encoder's own settings) are checked by whoever reads them. What a dataclass says of its fields is checked here:

    schedule: Literal["cosine", "constant"] = "cosine"            other words are refused, with the nearest right one
    steps: int = field(default=10, metadata={"least": 1})         bounds, also "most"; NaN and infinity never pass
    renamed: ClassVar[dict[str, str]] = {"trainer.accelerator": "place.accelerator", "generator": "everything"}
        old keys (or whole branches) and what they are now: a key, or words ("derived from data.global_batch")

A YAML of ours goes by its name too: "train_sam" is configs/train_sam.yaml, "on/a100" is configs/on/a100.yaml.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING, Container, DictConfig, ListConfig, OmegaConf, ValueNode
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from frisket.bounds import bounded
from frisket.errors import UserError, nearest

T = TypeVar("T")

SHIPPED = Path(__file__).parent / "configs"  # in a checkout a link to configs/
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
SPOKEN = {False: ("off", "no"), True: ("on", "yes", "auto")}  # YAML reads a bare off as false


def load(schema: type[T], files: Sequence[Path | str], overrides: Sequence[str] = ()) -> T:
    """Return an instance of the dataclass `schema`, filled from YAML `files` and then `key=value` overrides.

    Raises UserError for a missing file, bad YAML, an unknown key (with the nearest right one), a value of the wrong
    type or out of bounds, or a mandatory field left unset; the sentence names the file or the override.
    """
    merged = OmegaConf.structured(schema)
    for source, part in _sources(files, overrides):
        merged = _merge(schema, merged, part, source)
    config = _finish(merged, ", ".join(str(file) for file in files) or "the configuration")
    bounded(config)
    return config


def from_dict(schema: type[T], values: dict[str, Any], where: str) -> T:
    """The same checks for a plain mapping, whose keys may be dotted; `where` names it in errors."""
    part = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(part, key, value)
    config = _finish(_merge(schema, OmegaConf.structured(schema), part, where), where)
    bounded(config, f"{where}: ")
    return config


def find(word: Path | str) -> Path | None:
    """The YAML that a word means: the file it names, or ours of that name; None when it means neither."""
    path, ours = Path(word), SHIPPED / f"{word}.yaml"
    if path.suffix.lower() in (".yaml", ".yml"):
        ours = SHIPPED / path
        return ours.resolve() if not path.is_absolute() and not path.exists() and ours.is_file() else path
    return ours.resolve() if not path.is_absolute() and ours.is_file() and not path.exists() else None


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(YAMLs, other words) of a command that also takes pictures or folders."""
    return [word for word in words if find(word)], [word for word in words if not find(word)]


def peek(files: Sequence[Path | str], overrides: Sequence[str], key: str) -> Any:
    """Return one (dotted) key before the schema is known, or None when no source sets it."""
    merged = OmegaConf.create({})
    for source, part in _sources(files, overrides):
        try:
            merged = OmegaConf.merge(merged, part)
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_line(error)}") from error
    try:
        value = OmegaConf.select(merged, key)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {_line(error)}") from error
    return OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value


def show(config: Any) -> str:
    """Return a loaded configuration, or a plain mapping, as YAML text; what `unset_kept` kept stands as written."""
    return OmegaConf.to_yaml(OmegaConf.create(config) if isinstance(config, dict) else OmegaConf.structured(config))


class Knob(NamedTuple):
    """One field of a schema, for a person to read."""

    key: str
    """Dotted."""
    default: str
    """As one would write it; "required" where there is none."""
    about: str
    """The string literal below the field, on one line, with the choices of a Literal; empty where there is none."""


def describe(schema: type, prefix: str = "", made: Any = None) -> list[Knob]:
    """All fields of a config dataclass, inherited and nested ones included, in their order; `made`: the instance whose
    values are the defaults, where one is made by another dataclass."""
    hints, about, knobs = get_type_hints(schema), _abouts(schema), []
    for part in dataclasses.fields(schema):
        factory = part.default_factory
        value = part.default if factory is dataclasses.MISSING else factory()
        value, key, kind = value if made is None else getattr(made, part.name), f"{prefix}{part.name}", hints[part.name]
        if dataclasses.is_dataclass(value):
            knobs += describe(type(value), f"{key}.", value)
            continue
        choices = [", ".join(map(str, get_args(k))) for k in (kind, *get_args(kind)) if get_origin(k) is Literal]
        lines = [about.get(part.name, ""), *(f"One of {choice}." for choice in choices)]
        knobs.append(Knob(key, written(value), " ".join(line for line in lines if line)))
    return knobs


def written(value: Any) -> str:
    """A field's value as one would write it in YAML; "required" for none at all."""
    if value is dataclasses.MISSING or value == MISSING:
        return "required"
    plain = str(list(value) if isinstance(value, tuple) else value)
    return {"True": "true", "False": "false", "None": "null", "": "''"}.get(plain, plain)


@functools.cache
def _abouts(schema: type) -> dict[str, str]:
    """{field: the string literal below it}, read from the source of the dataclass and of those it extends."""
    abouts: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:]):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                abouts[ast.unparse(field.target)] = " ".join(text.value.split())
    return abouts


@contextlib.contextmanager
def unset_kept() -> Iterator[None]:
    """Inside, `load` leaves ${oc.env:NAME} as written where NAME is not set: for looking at a configuration."""

    def keep(name: str, *default: Any) -> Any:
        return oc.env(name, *default) if default or name in os.environ else f"${{oc.env:{name}}}"

    OmegaConf.register_resolver("oc.env", keep, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True)


def flatten(config: Any) -> dict[str, Any]:
    """Return {dotted key: value} of a config dataclass or a nested mapping, for loggers and for comparing two runs."""
    if dataclasses.is_dataclass(config):
        config = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping) and value:
            return {k: v for key, inner in value.items() for k, v in walk(f"{prefix}{key}.", inner).items()}
        return {prefix.rstrip("."): list(value) if isinstance(value, tuple) else value}

    return walk("", config) if config else {}


def read(path: Path | str) -> dict[str, Any]:
    """Return a YAML file as plain containers (a saved run's config.yaml, say)."""
    _, part = next(iter(_sources([path], [])))
    return OmegaConf.to_container(part, resolve=True)  # type: ignore[return-value]


def _sources(files: Sequence[Path | str], overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    parts: list[tuple[str, DictConfig]] = []
    for file in files:
        path = find(file) or Path(file)
        if not path.is_file():
            if path.exists():
                raise UserError(f"config file {file} is a folder or a pipe: give a YAML file")
            raise UserError(f"config file {file} does not exist: {_beside(path)}")
        try:
            part = OmegaConf.load(path)
        except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}: {getattr(error, 'problem', None) or _line(error)}" if mark else ""
            raise UserError(f"{file} is not valid YAML{where or ': ' + _line(error)}") from error
        except OSError as error:  # OmegaConf's word for a top level that is a number
            raise UserError(f"{file} cannot be read as YAML: {_line(error)}") from error
        if not isinstance(part, DictConfig):
            raise UserError(f"{file} must hold 'key: value' lines at its top level")
        parts.append((str(file), part))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}' is not an override: write key=value, e.g. optim.lr=1e-4")
        try:
            parts.append((f"override '{override}'", OmegaConf.from_dotlist([override])))
        except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            mend = f"; if it is a word, quote it: {key}=\"'…'\"" if isinstance(error, YAMLError) else ""
            raise UserError(f"override '{override}': {_line(error)}{mend}") from error
    return parts


def _beside(missing: Path) -> str:
    """A hint: the YAML beside `missing`, or else under configs/, whose name is nearest."""
    ours = {path.stem: path.stem for path in SHIPPED.glob("*.yaml")}
    for names in ({path.stem: str(path) for path in missing.parent.glob("*.yaml")}, ours):
        close = difflib.get_close_matches(missing.stem, names, n=1, cutoff=0.5)
        if close:
            return f"did you mean {names[close[0]]}?"
    return f"give the path of a YAML file, or one of ours by name: {', '.join(sorted(ours))}"


def _merge(schema: type, merged: Any, part: DictConfig, source: str) -> Any:
    for key in flatten(OmegaConf.to_container(part)):
        if now := _renamed(schema, key):
            raise UserError(f"{source}: {key} is now {now}")
    try:
        _fit(merged, part, "")
        return OmegaConf.merge(merged, part)
    except ConfigKeyError as error:
        raise UserError(f"{source}: {_unknown(schema, error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_empty(part, error) or _kind(merged, part, error)}") from error
    except (UserError, OverflowError) as error:  # a whole number too large to be a float
        raise UserError(f"{source}: {error}") from error


def _renamed(schema: type, key: str) -> str:
    """What became of an old key: the longest entry of the schema's `renamed` that covers it; '' when none does."""
    renamed: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        renamed |= vars(kind).get("renamed", {})
    old = max((old for old in renamed if f"{key}.".startswith(f"{old}.")), key=len, default=None)
    if old is None:
        return ""
    return renamed[old] + ("" if " " in renamed[old] else key[len(old) :])


def _fit(mine: Any, part: DictConfig, prefix: str) -> None:
    """Bring `part` into the schema's types where its meaning is plain, in place: a single word where a list is wanted
    (checkpoint=runs/a), YAML's false for the word off. Raises UserError for a word that is none of a Literal's choices,
    for a mapping where a list is wanted, anything else where keys are, and a list of lists where words are wanted."""
    for key in part:
        node = mine._get_node(key) if isinstance(mine, DictConfig) and key in mine else None
        given: Any = part._get_node(key)
        name = f"{prefix}{key}"
        if isinstance(node, DictConfig) and isinstance(given, DictConfig):
            _fit(node, given, f"{name}.")
        elif isinstance(node, DictConfig) and not (given._is_none() or given._is_interpolation()):
            raise UserError(f"{name}={_plain(given)} must be keys, as in {{a: 1}}")
        elif isinstance(node, Container) and isinstance(given, DictConfig):
            raise UserError(f"{name}={_plain(given)} must be a list, as in [a, b]")
        if not isinstance(node, ListConfig):
            _choose(node._metadata.ref_type if node is not None else None, part, key, name)
            continue
        # a tuple is a pair of numbers, say: never meant by one
        if isinstance(given, ValueNode) and given._value() is not None and get_origin(node._metadata.ref_type) is list:
            part[key] = [given._value()]
        items: Any = part._get_node(key)
        for index in range(len(items) if isinstance(items, ListConfig) and not items._is_none() else 0):
            if isinstance(items._get_node(index), Container) and node._metadata.element_type in (str, int, float, bool):
                raise UserError(f"{name}[{index}]={OmegaConf.to_container(items[index])} must be a single value")
            _choose(node._metadata.element_type, items, index, f"{name}[{index}]")


def _choose(kind: Any, part: Any, key: Any, name: str) -> None:
    """Check part[key] against a Literal type."""
    node = part._get_node(key)
    if get_origin(kind) is not Literal or node._is_interpolation() or node._is_none():
        return
    choices, value = get_args(kind), _plain(node)
    meant = SPOKEN[value] if isinstance(value, bool) else (str(value),)
    chosen = next((choice for word in meant for choice in choices if str(choice) == word), None)
    if chosen is None:
        close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
        hint = f": did you mean '{close[0]}'?" if close else ""
        raise UserError(f"{name}={value} must be one of {', '.join(map(str, choices))}{hint}")
    part[key] = chosen


def _finish(merged: Any, where: str) -> Any:
    try:
        missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{where} leaves {', '.join(missing)} unset: give it in the YAML or as {missing[0]}=…")
        return OmegaConf.to_object(merged)  # resolves only now: an overridden ${oc.env:…} is never looked up
    except OmegaConfBaseException as error:
        unset = re.search(r"Environment variable '(\w+)' not found", str(error))
        if unset:
            key = getattr(error, "full_key", None) or "the key"
            mend = f"export {unset[1]}=… or give {key}=…"
            raise UserError(
                f"{where}: {key} names ${unset[1]}, an environment variable that is not set: {mend}"
            ) from error
        raise UserError(f"{where}: {_line(error)}{_key(error)}") from error


def _unknown(schema: type, error: ConfigKeyError) -> str:
    """Name the unknown key in full and its nearest neighbour among all keys of the schema."""
    full = error.full_key or str(error.key)
    parent, _, word = full.rpartition(".")
    siblings = keys(schema, parent)
    return f"unknown key '{full}', {nearest(word, siblings)}" if siblings else f"unknown key '{full}'"


def _empty(part: DictConfig, error: OmegaConfBaseException) -> str:
    """The sentence for a key that needs a value and has none (YAML's null); '' when that is not the mistake."""
    full = getattr(error, "full_key", None)
    if not full or OmegaConf.select(part, full, default="") is not None:
        return ""
    return f"{full} is empty: give a value, or leave it out for the default"


def _kind(merged: Any, part: DictConfig, error: OmegaConfBaseException) -> str:
    """The sentence for a value that is not of its field's kind."""
    full = getattr(error, "full_key", None) or ""
    field, inner, _ = full.partition("[")  # of a list's item
    above, _, key = field.rpartition(".")
    node = OmegaConf.select(merged, above)._get_node(key) if key else None
    wanted = (
        KINDS.get(getattr(node._metadata, "element_type" if inner else "ref_type", None)) if node is not None else None
    )
    return f"{full}={OmegaConf.select(part, full)} must be {wanted}" if wanted else _line(error) + _key(error)


def _plain(node: Any) -> Any:
    return node._value() if isinstance(node, ValueNode) else OmegaConf.to_container(node)


def keys(schema: type, parent: str = "") -> list[str]:
    """Return the field names of the dataclass found at the dotted path `parent` inside `schema`."""
    node: Any = OmegaConf.structured(schema)
    if parent:
        node = OmegaConf.select(node, parent)
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def _line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error).splitlines()[0] if str(error) else type(error).__name__)


def _key(error: OmegaConfBaseException) -> str:
    full = getattr(error, "full_key", None)
    return f" (key '{full}')" if full else ""
