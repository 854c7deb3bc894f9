"""Values as columns: enums by their value, nothing else changed; and one way to write a row by its names."""

import sqlite3
from collections.abc import Mapping
from enum import Enum

# Nothing is ever put off for longer; a time further ahead was set by a clock that has been corrected since.
LONGEST_WAIT_S = 660
# Of what was made in our future, by such a clock, the first looks come soon after each other.
FIRST_WAITS_S = 60


def plain(columns: Mapping[str, object]) -> dict[str, object]:
    """With enums as their values."""
    return {name: v.value if isinstance(v, Enum) else v for name, v in columns.items()}


def insert(db: sqlite3.Connection, table: str, columns: Mapping[str, object]) -> None:
    """A new row."""
    marks = ",".join("?" * len(columns))
    db.execute(f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})", [*columns.values()])


def update(
    db: sqlite3.Connection, table: str, columns: Mapping[str, object], key: str, value: str
) -> int:
    """Of the row with that key; how many rows there were."""
    sets = ",".join(f"{name} = ?" for name in columns)
    sql = f"UPDATE {table} SET {sets} WHERE {key} = ?"
    return db.execute(sql, [*columns.values(), value]).rowcount


def number(db: sqlite3.Connection, sql: str, *values: object) -> int:
    """The one number that a query answers."""
    return int(db.execute(sql, values).fetchone()[0])


def is_due(column: str) -> str:
    """The condition for a time in ``column`` that has come, or was set by a clock that was ahead; see `due_values`."""
    return f"({column} <= ? OR {column} > ? OR (created_at > ? AND {column} > ?))"


def due_values(now: int) -> tuple[int, int, int, int]:
    """What `is_due` asks for."""
    return now, now + LONGEST_WAIT_S, now, now + FIRST_WAITS_S
