"""The one form in which a recipe keeps its method, options and parameters: complete, sorted and normalized.

People may write them in shorter forms, see `recipes.recipe`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from evomerge import plugins
from evomerge.errors import suggest
from evomerge.models.tensor_names import MODULES, TEXT_MODULES, is_pattern
from evomerge.recipes.parameters import Parameter

ANY = "*"  # the key of all tensors that no other key takes

Values = float | list[float]  # one number for all layers, or one for each layer

# Pattern, module group or ANY -> expert, or "" for all experts together -> values.
Table = dict[str, dict[str, Values]]


def at_place(values: Values, layer: int) -> float:
    """The value in one layer."""
    return values[layer] if isinstance(values, list) else values


def normalized(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's data with every option and parameter present, in canonical form.

    Raises:
        ValueError: with all faults of method, options and parameters, one a line.
    """
    method, faults = _methods(data["method"])
    if faults:
        raise ValueError("\n".join(faults))
    names = [method] if isinstance(method, str) else sorted(set(method.values()))
    experts = sorted(data["experts"]) if isinstance(data.get("experts"), Mapping) else []
    for name in names:
        faults += expert_faults(name, len(experts))
    faults += name_faults(experts)
    options, wrong = _options(data.get("options") or {}, names)
    faults += wrong
    tables, wrong = _parameters(data.get("parameters") or {}, names, experts, data.get("layers"))
    faults += wrong
    if faults:
        raise ValueError("\n".join(faults))
    return {**data, "method": method, "options": options, "parameters": tables}


def _methods(given: str | Mapping[str, Any]) -> tuple[str | dict[str, str], list[str]]:
    """The method, or the methods by module group and pattern in canonical order, and the faults."""
    rows = {ANY: given} if isinstance(given, str) else dict(given)
    faults = []
    for key, name in rows.items():
        where = "method" if isinstance(given, str) else f"method.{key}"
        if not (key in (*MODULES, ANY) or is_pattern(str(key))):
            faults.append(f"{where}: is no module group and no tensor pattern.{suggest(str(key), [*MODULES, ANY])}")
        if name not in plugins.names("methods"):
            faults.append(f"{where}: unknown method {name!r}.{suggest(str(name), plugins.names('methods'))}")
    if ANY not in rows:
        faults.append('method: has none for all other tensors; give method."*"')
    if faults:
        return "", faults
    by_key = _ordered(rows)
    if set(by_key.values()) == {by_key[ANY]}:
        return by_key[ANY], []
    rest = by_key[ANY]
    return {key: name for key, name in by_key.items() if key == ANY or is_pattern(key) or name != rest}, []


def _options(given: Any, methods: list[str]) -> tuple[dict[str, dict[str, bool]], list[str]]:
    """All options of each method, and the faults.

    Args:
        given: option -> bool for all methods that have it, method -> options, or both. What names a method wins.
    """
    known = {name: dict(plugins.load("methods", name).OPTIONS) for name in methods}
    if not isinstance(given, Mapping):
        return {}, ["options: must be a mapping"]
    faults = []
    everywhere = {key: value for key, value in given.items() if key not in methods}
    for key in everywhere:
        if not any(key in options for options in known.values()):
            names = {option for options in known.values() for option in options}
            faults.append(f"options.{key}: {' and '.join(methods)} has no such key.{suggest(str(key), names)}")
    complete = {}
    for name, defaults in known.items():
        own = given.get(name) or {}
        if not isinstance(own, Mapping):
            faults.append(f"options.{name}: must be a mapping of {name}'s options")
            continue
        faults += [
            f"options.{name}.{key}: {name} has no such key.{suggest(str(key), defaults)}"
            for key in own
            if key not in defaults
        ]
        complete[name] = {**defaults, **{key: value for key, value in everywhere.items() if key in defaults}, **own}
    return complete, faults


def _parameters(
    given: Any, methods: list[str], experts: list[str], layers: int | None
) -> tuple[dict[str, Table], list[str]]:
    """The canonical tables of all parameters that the methods have, and the faults."""
    if not isinstance(given, Mapping):
        return {}, ["parameters: must be a mapping"]
    wanted, faults = shared_parameters(methods)
    faults += [
        f"parameters.{key}: {' and '.join(methods)} has no such key.{suggest(str(key), wanted)}"
        for key in given
        if key not in wanted
    ]
    tables = {}
    for name, parameter in wanted.items():
        value = given.get(name, parameter.default)
        if value is None:
            faults.append(f"parameters.{name}: {' and '.join(methods)} needs it")
            continue
        tables[name], wrong = _table(value, f"parameters.{name}", parameter, experts, layers)
        faults += wrong
    return tables, faults


def shared_parameters(methods: Iterable[str]) -> tuple[dict[str, Parameter], list[str]]:
    """The parameters of several methods together, by name, and the faults.

    A parameter that several methods have takes the tightest bounds, and the default that all of them share.
    """
    shared: dict[str, Parameter] = {}
    faults = []
    for method in methods:
        for parameter in plugins.load("methods", method).PARAMETERS:
            other = shared.setdefault(parameter.name, parameter)
            if other.per_expert != parameter.per_expert:
                faults.append(
                    f"method: {method} and another one mean different things by {parameter.name} (one value for "
                    "each expert, one for all); take other methods together"
                )
            shared[parameter.name] = replace(
                other,
                low=max(other.low, parameter.low),
                high=min(other.high, parameter.high),
                open_low=other.open_low or parameter.open_low,
                default=other.default if other.default == parameter.default else None,
            )
    return shared, faults


def name_faults(experts: Iterable[str]) -> list[str]:
    """The faults of experts' names. In a recipe the names stand beside module groups, and must differ from them."""
    return [
        f"experts.{name}: is {'the name of a module group' if name in MODULES else 'no name'}; "
        "name the expert otherwise"
        for name in experts
        if name in ("", ANY, *MODULES)
    ]


def expert_faults(method: str, count: int) -> list[str]:
    """The faults of merging `count` experts by a method: one line if it takes fewer or more, else none."""
    fewest, most = plugins.load("methods", method).EXPERTS
    if count >= fewest and (most is None or count <= most):
        return []
    wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
    noun = "expert" if fewest == 1 else "experts"
    return [f"experts: {method} takes {wanted} {noun}, but there {'is' if count == 1 else 'are'} {count}"]


# --- one parameter -------------------------------------------------------------------------------------------


def _table(
    value: Any, path: str, parameter: Parameter, experts: list[str], layers: int | None
) -> tuple[Table, list[str]]:
    """A parameter's canonical table and its faults.

    Args:
        value: what a recipe file has for the parameter, see `recipes.recipe`.
        path: where `value` stands in the file.
        layers: the model's number of layers; None if it is not known.
    """
    keys = experts if parameter.per_expert else [""]
    faults: list[str] = []
    table: Table = {}

    def fill(node: Any, where: str, module: str, expert: str | None) -> None:
        if isinstance(node, Mapping):
            for key, child in node.items():
                here = f"{where}.{key}"
                if key in keys and expert is None:
                    fill(child, here, module, key)
                elif (key in (*MODULES, ANY) or is_pattern(str(key))) and module == "":
                    fill(child, here, key, expert)
                else:
                    faults.append(
                        f"{here}: is no {'expert, ' if parameter.per_expert else ''}module group or pattern here."
                        f"{suggest(str(key), [*(experts if parameter.per_expert else []), *MODULES, ANY])}"
                    )
            return
        values, wrong = _values(node, parameter, layers)
        faults.extend(f"{where}: {fault}" for fault in wrong)
        for key in keys if expert is None else [expert]:
            table.setdefault(module or ANY, {})[key] = values

    fill(value, path, "", None)
    if not faults:
        faults += _complete_rows(table, path, keys)
    return table, faults


def _complete_rows(table: Table, path: str, keys: list[str]) -> list[str]:
    """Completes a table in place, and returns the faults.

    Experts that a row lacks are filled in from the row ANY, rows are ordered, and rows that repeat ANY are dropped.
    """
    default = table.get(ANY, {})
    missing = [key for key in keys if key not in default]
    named = [module for module in table if module != ANY]
    if missing and not set(TEXT_MODULES) <= set(named):
        return [
            f"{path}: has no value for {key or 'the other module groups'}; "
            f"give {f'{path}.{key}' if key else f'{path}.*'}"
            for key in missing
        ]
    for module in named:
        row = {key: table[module].get(key, default.get(key)) for key in keys}
        if any(values is None for values in row.values()):
            return [f"{path}.{module}: has no value for {key}" for key in keys if row[key] is None]
        table[module] = row  # type: ignore[assignment]
    table.setdefault(ANY, table.get(TEXT_MODULES[-1], {}))
    rows = _ordered(table)
    table.clear()
    table.update(rows)
    for module in MODULES:
        if table.get(module) == table[ANY]:
            del table[module]
    return []


def _values(node: Any, parameter: Parameter, layers: int | None) -> tuple[Values, list[str]]:
    """The values in a number or a list of numbers, and the faults. Equal values of all layers become one number."""
    numbers = node if isinstance(node, list) else [node]
    faults = []
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return 0.0, [f"must be a number or a list of numbers, but is {number!r}"]
        if not math.isfinite(number):
            faults.append(f"must be finite, but is {number}")
        elif fault := parameter.fault(number):
            faults.append(fault)
    if isinstance(node, list) and layers is not None and len(node) != layers:
        faults.append(f"has {len(node)} values, but the model has {layers} layers")
    floats = [float(number) for number in numbers]
    if not isinstance(node, list) or (floats and all(number == floats[0] for number in floats)):
        return floats[0], faults
    return floats, faults


def _ordered(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows in canonical order: patterns as they stand, then module groups in the order of MODULES, then ANY."""
    patterns = [key for key in rows if is_pattern(key)]
    return {key: rows[key] for key in (*patterns, *MODULES, ANY) if key in rows}
