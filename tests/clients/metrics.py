"""prometheus_client's parser against an agent's /metrics, and every name in the dashboard: metrics.py URL DASHBOARD.json"""

import json
import re
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

url, path = sys.argv[1:]
text = urllib.request.urlopen(url, timeout=10).read().decode()
families = list(text_string_to_metric_families(text))

samples = {}
for family in families:
    for sample in family.samples:
        key = (sample.name, tuple(sorted(sample.labels.items())))
        assert key not in samples, f"{key} stands twice"
        samples[key] = sample.value

for name in ("request", "queue", "compute"):
    [family] = [family for family in families if family.name == f"edgewise_{name}_seconds"]
    assert family.type == "histogram", family
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    counts = [sample.value for sample in buckets]
    assert counts == sorted(counts), f"{name}: buckets must be cumulative: {counts}"
    [count] = [sample.value for sample in family.samples if sample.name.endswith("_count")]
    [total] = [sample.value for sample in family.samples if sample.name.endswith("_sum")]
    assert buckets[-1].labels["le"] == "+Inf" and counts[-1] == count > 0 and 0 < total < 60, family

# A family without a sample yet is known by its name, which the parser gives without its suffix.
known = {name for name, _ in samples}
known |= {family.name + suffix for family in families for suffix in ("", "_total")}


def strings(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from [inner] if key in ("expr", "query") and isinstance(inner, str) else strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


named = set()
with open(path, encoding="utf-8") as file:
    for query in strings(json.load(file)):
        query = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)|, \w+\)$", " ", query)
        # What is called is a function.
        named |= set(re.findall(r"\b[A-Za-z_:][\w:]*\b(?!\s*\()", query)) - {"prometheus", "by"}
unknown = named - known
assert len(named) > 20 and not unknown, f"the dashboard names what no agent exposes: {unknown}"
print(len(families), "families,", len(named), "of them in the dashboard")
