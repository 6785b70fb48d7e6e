"""What a JSON schema says of documents: schema.py SCHEMA FILE...

Fails if the schema is none. Prints a JSON list with, for each FILE, the list of its mistakes as {path, error}; a path,
such as routes[0].input, goes as deep as the rule that was broken can tell.
"""

import json
import pathlib
import sys

from jsonschema import Draft202012Validator

schema, *documents = [json.loads(pathlib.Path(name).read_text()) for name in sys.argv[1:]]
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)


def mistakes(document):
    for error in validator.iter_errors(document):
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        yield {"path": "".join(parts).removeprefix("."), "error": error.message}


print(json.dumps([list(mistakes(document)) for document in documents]))
