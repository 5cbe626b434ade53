"""Checks the OpenLineage events of runs with tools that aren't ours.

    pip install jsonschema rfc3339-validator rfc3987 openlineage-python
    python tests/openlineage/check.py STORE/lineage/PIPELINE/*.ndjson

Every line is validated against `OpenLineage.json` and each of its facets against its own schema, with PyPI's `jsonschema` and
the files in this folder; nothing is fetched. Then every line is made into the classes of `openlineage-python`: each member that
an event or facet has must be one that its class takes, and what the class writes must be the line again. Facets of ours, which
the package hasn't got, are `RunFacet`s with more members. Last, every run must have one START and one end.
"""

import collections
import inspect
import json
import pathlib
import sys
import typing

import attr
import jsonschema
import referencing
from openlineage.client import event_v2, facet_v2
from openlineage.client.generated import base
from openlineage.client.serde import Serde

HERE = pathlib.Path(__file__).parent


def schemas():
    found = {}
    for path in [HERE / "OpenLineage.json", *sorted((HERE / "facets").glob("*.json"))]:
        schema = json.loads(path.read_text())
        found[schema["$id"]] = schema
    return found


SCHEMAS = schemas()
REGISTRY = referencing.Registry().with_resources(
    (uri, referencing.Resource.from_contents(schema)) for uri, schema in SCHEMAS.items()
)


def validate(value, uri, place):
    identifier, _, _ = uri.partition("#")
    assert identifier in SCHEMAS, f"{place}: no schema {identifier} here"
    validator = jsonschema.Draft202012Validator(
        {"$ref": uri}, registry=REGISTRY, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    errors = [f"{place}: {error.json_path}: {error.message}" for error in validator.iter_errors(value)]
    assert not errors, "\n".join(errors)


def facets_of(event):
    yield from event["run"]["facets"].items()
    yield from event["job"]["facets"].items()
    for dataset in event["inputs"]:
        yield from dataset["facets"].items()
        yield from dataset["inputFacets"].items()
    for dataset in event["outputs"]:
        yield from dataset["facets"].items()
        yield from dataset["outputFacets"].items()


# The classes of facets by the name that their schema has.
CLASSES = {
    name: found
    for module in vars(facet_v2).values()
    if inspect.ismodule(module)
    for name, found in vars(module).items()
    if inspect.isclass(found) and attr.has(found) and issubclass(found, facet_v2.BaseFacet)
}


def made(kind, value, place):
    """`value` as an object of the class or type `kind`; a member that the class doesn't take is an error."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union or str(type(kind)) == "<class 'types.UnionType'>":
        return made(next(kind for kind in arguments if kind is not type(None)), value, place)
    if origin is list:
        return [made(arguments[0], item, place) for item in value]
    if origin is dict:
        if inspect.isclass(arguments[1]) and issubclass(arguments[1], facet_v2.BaseFacet):
            return {name: facet(body, f"{place}.{name}") for name, body in value.items()}
        return {name: made(arguments[1], item, f"{place}.{name}") for name, item in value.items()}
    if inspect.isclass(kind) and attr.has(kind):
        return object_of(kind, value, place)
    if inspect.isclass(kind) and issubclass(kind, event_v2.RunState):
        return kind(value)
    return value


def object_of(kind, value, place):
    types = typing.get_type_hints(kind)
    known = {field.name: field for field in attr.fields(kind)}
    # The class sets the URL of its schema by itself.
    fixed = {"schemaURL", "_schemaURL"}
    unknown = set(value) - set(known)
    assert not unknown, f"{place}: {kind.__name__} takes no {sorted(unknown)}"
    given = {
        known[name].alias: made(types[name], item, f"{place}.{name}") for name, item in value.items() if name not in fixed
    }
    return kind(**given)


def facet(body, place):
    name = body["_schemaURL"].rsplit("/", 1)[-1]
    if name in CLASSES:
        return object_of(CLASSES[name], body, place)
    assert name.startswith("Ingrain"), f"{place}: {name} is neither published nor ours"
    more = {key: item for key, item in body.items() if not key.startswith("_")}
    return base.RunFacet(producer=body["_producer"]).with_additional_properties(**more)


def without(value, leave_out):
    if isinstance(value, dict):
        return {key: without(item, leave_out) for key, item in value.items() if key not in leave_out and item not in ({}, [])}
    if isinstance(value, list):
        return [without(item, leave_out) for item in value]
    return value


def main(paths):
    lines, facets, kinds, versions = 0, 0, collections.Counter(), set()
    for path in paths:
        moments = collections.defaultdict(list)
        for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
            event, place = json.loads(line), f"{path}:{number}"
            validate(event, "https://openlineage.io/spec/2-0-2/OpenLineage.json", place)
            validate(event, event["schemaURL"], place)
            for name, body in facets_of(event):
                validate(body, body["_schemaURL"], f"{place} {name}")
                validate({name: body}, body["_schemaURL"].partition("#")[0], f"{place} {name}")
                facets += 1
            loaded = object_of(event_v2.RunEvent, event, place)
            # The package may know another version of a facet's schema, and says so in place of ours.
            again = without(json.loads(Serde.to_json(loaded)), {"schemaURL", "_schemaURL"})
            assert again == without(event, {"schemaURL", "_schemaURL"}), f"{place}: comes back as\n{again}"
            for name, body in facets_of(event):
                published = CLASSES.get(body["_schemaURL"].rsplit("/", 1)[-1])
                if published and published._get_schema() != body["_schemaURL"]:
                    versions.add((name, body["_schemaURL"].split("/")[-3].split("#")[0], published._get_schema()))
            moments[event["run"]["runId"]].append(event["eventType"])
            kinds[event["eventType"]] += 1
            lines += 1
        for run, types in moments.items():
            assert len(types) == 2 and types[0] == "START" and types[1] in ("COMPLETE", "FAIL", "ABORT"), f"{path}: {run} {types}"
    print(f"{len(paths)} files, {lines} events ({dict(kinds)}), {facets} facets: valid, and loaded as openlineage-python's classes")
    for name, ours, theirs in sorted(versions):
        print(f"note: `{name}` is of another version here than in openlineage-python: {theirs}")


if __name__ == "__main__":
    main(sys.argv[1:])
