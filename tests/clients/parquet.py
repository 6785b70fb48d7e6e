"""An export as a data scientist reads it: parquet.py DIRECTORY ROWS"""

import sys

import duckdb

directory, rows = sys.argv[1], int(sys.argv[2])
table = duckdb.read_parquet(f"{directory}/**/*.parquet", union_by_name=True)
columns = dict(zip(table.columns, map(str, table.dtypes)))
for name, kind in {"device": "VARCHAR", "correlation_id": "VARCHAR", "received": "TIMESTAMP"}.items():
    assert columns[name].startswith(kind), columns
loads = [name for name in columns if name.startswith("input.load")]
assert len(loads) == 24 and all(columns[name] == "FLOAT" for name in loads), columns
assert columns["output.label"] == "BIGINT", columns
found, ids, labels = duckdb.sql(
    'SELECT count(*), count(DISTINCT correlation_id), count(DISTINCT "output.label") FROM table'
).fetchone()
assert found == rows, f"{rows} rows were expected, {found} are there"
assert ids == rows, f"{rows} rows have {ids} correlation ids"
assert labels == 2, f"{labels} classes were predicted"
