"""Config: dataclass defaults <- YAML files <- key=value, later wins. Knows no knob; each lives beside its reader.

    config = load(TrainConfig, ["configs/distill_lightening.yaml", "configs/on/a100.yaml"], ["optim.lr=1e-4"])

The only module that imports OmegaConf (https://omegaconf.readthedocs.io), used as the merge engine: the dataclass is
the truth. A list in a later source replaces the earlier one; mappings merge. Unknown keys are refused with the nearest
right one. Open mappings (`dict[str, Any]`, used for an encoder's own settings) are checked by whoever reads them.
"""

import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from frisket.errors import UserError, nearest
from frisket.files import write_text

T = TypeVar("T")


def load(schema: type[T], files: Sequence[Path | str], overrides: Sequence[str] = ()) -> T:
    """Return an instance of the dataclass `schema`, filled from YAML `files` and then `key=value` overrides.

    Raises UserError for a missing file, bad YAML, an unknown key (with the nearest right one), a value of the wrong
    type, or a mandatory field left unset; the sentence names the file or the override.
    """
    merged = OmegaConf.structured(schema)
    for source, part in _sources(files, overrides):
        merged = _merge(schema, merged, part, source)
    return _finish(merged, ", ".join(str(file) for file in files) or "the configuration")


def from_dict(schema: type[T], values: dict[str, Any], where: str) -> T:
    """The same checks for a plain mapping; `where` names it in errors."""
    return _finish(_merge(schema, OmegaConf.structured(schema), OmegaConf.create(values), where), where)


def peek(files: Sequence[Path | str], overrides: Sequence[str], key: str) -> Any:
    """Return one (dotted) key before the schema is known, or None when no source sets it."""
    merged = OmegaConf.create({})
    for source, part in _sources(files, overrides):
        try:
            merged = OmegaConf.merge(merged, part)
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_line(error)}") from error
    return OmegaConf.select(merged, key)


def show(config: Any) -> str:
    """Return a loaded configuration as YAML text; what `unset_kept` kept stands in it as written."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


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


def save(config: Any, path: Path | str) -> None:
    """Write `show(config)` to `path` atomically."""
    write_text(path, show(config))


def flatten(config: Any) -> dict[str, Any]:
    """Return {dotted key: value} of a config dataclass, for loggers and for comparing two runs."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {k: v for key, inner in value.items() for k, v in walk(f"{prefix}{key}.", inner).items()}
        return {prefix.rstrip("."): value}

    return walk("", OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True))


def read(path: Path | str) -> dict[str, Any]:
    """Return a YAML file as plain containers (a saved run's config.yaml, say)."""
    _, part = next(iter(_sources([path], [])))
    return OmegaConf.to_container(part, resolve=True)  # type: ignore[return-value]


def _sources(files: Sequence[Path | str], overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    parts: list[tuple[str, DictConfig]] = []
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"config file {file} does not exist: {_beside(Path(file))}")
        try:
            part = OmegaConf.load(file)
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{file} is not valid YAML: {_line(error)}") from error
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
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"override '{override}': {_line(error)}") from error
    return parts


def _beside(missing: Path) -> str:
    """A hint: the YAML beside `missing`, or else under configs/, whose name is nearest."""
    for folder in (missing.parent, Path("configs")):
        names = {path.stem: str(path) for path in folder.glob("*.yaml")}
        close = difflib.get_close_matches(missing.stem, names, n=1, cutoff=0.5)
        if close:
            return f"did you mean {names[close[0]]}?"
    return "give the path of a YAML file, and `ls configs` shows ours"


def _merge(schema: type, merged: Any, part: DictConfig, source: str) -> Any:
    try:
        return OmegaConf.merge(merged, _listed(merged, part))
    except ConfigKeyError as error:
        raise UserError(f"{source}: {_unknown(schema, error)}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_empty(part, error) or _line(error) + _key(error)}") from error


def _listed(merged: Any, part: DictConfig) -> DictConfig:
    """The part, with a single word written as a list of one wherever the schema wants a list (checkpoint=runs/a)."""
    for key in part:
        mine = merged._get_node(key) if isinstance(merged, DictConfig) and key in merged else None
        given = part._get_node(key)
        if isinstance(mine, DictConfig) and isinstance(given, DictConfig):
            _listed(mine, given)
        elif _is_list(mine) and isinstance(given, ValueNode) and given._value() is not None:
            part[key] = [given._value()]
    return part


def _is_list(node: Any) -> bool:
    """Whether a node of the schema is a list, not a tuple: a pair of numbers is never meant by one."""
    return isinstance(node, ListConfig) and get_origin(node._metadata.ref_type) is list


def _finish(merged: Any, where: str) -> Any:
    missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"{where} leaves {', '.join(missing)} unset: give it in the YAML or as {missing[0]}=…")
    try:
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


def is_config(value: Any) -> bool:
    """Whether `value` is a config dataclass instance."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
