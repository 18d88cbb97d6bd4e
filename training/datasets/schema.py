"""The tables that a company brings, as columns: derived from the contracts, so that they cannot drift apart.

events has the fields of features.events.Event, titles those of features.titles.Title, profiles those of Profile below.
Units: ts and added_ts are UTC milliseconds; position_s and duration_s are seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from features.events import Event, Identifier
from features.titles import Title

TableName = Literal["events", "titles", "profiles"]
TABLES: Final[tuple[TableName, ...]] = ("events", "titles", "profiles")


class Profile(BaseModel):
    """One viewer.

    Attributes:
        profile_id: id.
        region: where the viewer is; empty where unknown.
        kids: whether only kids titles may be shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile_id: Identifier
    region: Annotated[str, Field(max_length=64)] = ""
    kids: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one column may hold.

    Attributes:
        name: the column's name.
        dtype: the stored polars type: String, Int64, Float64, Boolean or List(String).
        required: whether the column must be there; where it may be left out, `default` fills it.
        nullable: whether single values may be null.
        default: the value of a column that was left out.
        low: smallest number, inclusive.
        high: largest number, inclusive.
        min_length: fewest characters.
        max_length: most characters.
        pattern: regular expression that a string must match.
        values: the allowed strings, where they are a closed set.
    """

    name: str
    dtype: pl.DataType
    required: bool
    nullable: bool
    default: str | float | bool | tuple[str, ...] | None
    low: float | None = None
    high: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    values: tuple[str, ...] | None = None

    @property
    def expected(self) -> str:
        """The rule in words, for messages."""
        null = " or null" if self.nullable else ""
        if self.values is not None:
            return "one of " + ", ".join(self.values) + null
        if isinstance(self.dtype, pl.List):
            return "a list of strings" + null
        if self.dtype == pl.Boolean:
            return "true or false" + null
        if self.dtype == pl.String:
            span = f"{self.min_length or 0} to {self.max_length} characters" if self.max_length else "a string"
            return span + (" of printable ASCII without spaces" if self.pattern else "") + null
        kind = "a whole number" if self.dtype == pl.Int64 else "a finite number"
        low = "" if self.low is None else f" from {self.low:.0f}"
        high = "" if self.high is None else f" to {self.high:.0f}"
        return kind + low + high + null


_TYPES: Final[dict[str, pl.DataType]] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "array": pl.List(pl.String()),
}


def _column(name: str, rule: Mapping[str, Any], definitions: Mapping[str, Any], *, required: bool) -> Column:
    nullable = "anyOf" in rule
    default = rule.get("default")
    if nullable:
        rule = next(option for option in rule["anyOf"] if option.get("type") != "null")
    if "$ref" in rule:
        rule = definitions[rule["$ref"].rsplit("/", 1)[1]]
    return Column(
        name=name,
        dtype=_TYPES[rule["type"]],
        required=required,
        nullable=nullable,
        default=tuple(default) if isinstance(default, list) else default,
        low=rule.get("minimum"),
        high=rule.get("maximum"),
        min_length=rule.get("minLength"),
        max_length=rule.get("maxLength"),
        pattern=rule.get("pattern"),
        values=tuple(rule["enum"]) if "enum" in rule else None,
    )


@cache
def columns(table: TableName) -> tuple[Column, ...]:
    """The columns of a table, in the order in which they are stored."""
    models: dict[TableName, type[BaseModel]] = {"events": Event, "titles": Title, "profiles": Profile}
    model = models[table]
    rules = model.model_json_schema()
    required = set(rules["required"])
    return tuple(
        _column(name, rule, rules.get("$defs", {}), required=name in required)
        for name, rule in rules["properties"].items()
    )


def polars_schema(table: TableName) -> dict[str, pl.DataType]:
    """Column name -> stored polars type."""
    return {column.name: column.dtype for column in columns(table)}


def conform(frame: pl.DataFrame, table: TableName) -> pl.DataFrame:
    """Bring a frame to the stored form: all columns, in order, in their types, the left-out ones at their default.

    Values are not judged: training.datasets.importing does that.

    Raises:
        polars.exceptions.PolarsError: a required column is not there, or a value does not fit its column's type.
    """
    return frame.select(
        pl.col(column.name).cast(column.dtype)
        if column.required or column.name in frame.columns
        else pl.lit(
            list(column.default) if isinstance(column.default, tuple) else column.default, dtype=column.dtype
        ).alias(column.name)
        for column in columns(table)
    )
