from __future__ import annotations

from common.tables import Column, decimals, format_table, whole


def test_table_is_aligned() -> None:
    columns = (
        Column("name", "network", left=True),
        Column("count", "parameters", whole),
        Column("accuracy", "%", decimals(1)),
    )
    rows = [
        {"name": "dense", "count": 969802, "accuracy": 99.15},
        {"name": "a much longer name", "count": 1000, "accuracy": None},
    ]
    assert format_table(rows, columns).splitlines() == [
        "network             parameters     %",
        "------------------------------------",
        "dense                  969,802  99.2",
        "a much longer name       1,000     -",
    ]
    assert format_table(rows, columns, markdown=True).splitlines() == [
        "| network | parameters | % |",
        "| --- | ---: | ---: |",
        "| dense | 969,802 | 99.2 |",
        "| a much longer name | 1,000 | - |",
    ]
