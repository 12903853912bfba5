"""What every query module does with single rows."""

from __future__ import annotations

from typing import TypeVar

from sqlmodel import Session, SQLModel

from reflect.errors import UnknownName

Row = TypeVar("Row", bound=SQLModel)


def get_row(s: Session, table: type[Row], key: int | None, name: str, hint: str) -> Row:
    """The row of this primary key. UnknownName where there is none."""
    row = s.get(table, key) if key is not None else None
    if row is None:
        raise UnknownName(f"There is no {name} {key}.", hint)
    return row


def save(s: Session, row: Row) -> Row:
    """Write the row now, so that it has its id."""
    s.add(row)
    s.flush()
    return row
