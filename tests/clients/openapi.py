"""Whether a document is valid OpenAPI: openapi.py URL DIALECT"""

import json
import sys
import urllib.request

from openapi_spec_validator import validate

url, dialect = sys.argv[1:]
with urllib.request.urlopen(url) as answer:
    document = json.load(answer)
assert document.get("swagger", document.get("openapi")).startswith(dialect), document
validate(document)
