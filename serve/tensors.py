"""What a compiled graph takes and gives: names, dtypes, shapes, ranges; and the check of one call's inputs against it.

Shapes are tuples of sizes and names: ("B", "T") is two dynamic dimensions, ("B", 64) a dynamic and a fixed one. The
same name is the same size in all inputs and outputs of a call.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.dataclasses import dataclass

from serve.errors import InvalidInput

Array = NDArray[Any]
Dtype = Literal["float32", "float16", "int64", "int32", "bool"]
Precision = Literal["float32", "float16"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Size = Annotated[int, Field(ge=1, le=2**40, strict=True)]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

ABSENT_SCORE: Final = -1e30
"""A ranked item with this score or less is no item: it fills up a row that has fewer items than places."""


@dataclass(frozen=True, config=_STRICT)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: input or output name.
        dtype: numpy name of the element type; values of another type are refused, never converted.
        shape: sizes (fixed) and names (dynamic).
        low: least value allowed; None: no bound. Float inputs must be finite in any case.
        high: greatest value allowed; None: no bound.
        indexes: name of a dynamic dimension that the values index: each is 0 to its size - 1.
    """

    name: Name
    dtype: Dtype
    shape: tuple[Size | Name, ...]
    low: float | None = None
    high: float | None = None
    indexes: Name | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"{self.name}: low {self.low} is above high {self.high}")
        if self.dtype == "bool" and (self.low is not None or self.high is not None):
            raise ValueError(f"{self.name}: a bool has no low and high")
        if self.indexes is not None and self.dtype not in {"int64", "int32"}:
            raise ValueError(f"{self.name}: only integers can index {self.indexes}")
        return self

    def __str__(self) -> str:
        """As it reads in error messages: `int64 (B, T)`."""
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True, config=_STRICT)
class Ranking:
    """Says that a graph's outputs are a ranked list, so that two engines may order near-ties differently.

    Attributes:
        items: int64 output (B, K) that names the items, best first.
        score: float output (B, K) that they are ordered by; `ABSENT_SCORE` or less marks a place with no item.
    """

    items: Name
    score: Name


@dataclass(frozen=True, config=_STRICT)
class GraphSpec:
    """Inputs, outputs and limits of one graph.

    Attributes:
        inputs: in the order of the module's arguments.
        outputs: in the order of the module's results.
        limits: dynamic dimension -> (least, greatest size), for each dynamic dimension of the inputs.
        ranking: set where the outputs are a ranked list.
        tolerance: greatest error of a float output against torch, relative to max(1, |torch's value|).
        buckets: sizes that occur together: per bucket, dynamic dimension -> (least, usual, greatest size); dimensions
            that a bucket leaves out have their limits. Each call must fit one bucket; the first that fits is used, so
            put small ones first. Empty: every combination within the limits. Compilers reserve memory for the
            greatest combination of a bucket, and choose kernels for the usual one.
        precision: least precision that an engine may multiply matrices in; one that does must still keep the
            tolerance. Everything else is computed in the types of the graph.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: dict[Name, tuple[Size, Size]]
    ranking: Ranking | None = None
    tolerance: Annotated[float, Field(gt=0, le=0.1)] = 1e-4
    # Left out of the manifest where they say nothing: the versions of artifacts that are older than they are stay.
    buckets: Annotated[
        tuple[Annotated[dict[Name, tuple[Size, Size, Size]], Field(min_length=1)], ...],
        Field(max_length=16, exclude_if=lambda buckets: not buckets),
    ] = ()
    precision: Annotated[Precision, Field(exclude_if=lambda precision: precision == "float32")] = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError(f"names of inputs and outputs must differ: {names}")
        if not self.inputs or not self.outputs:
            raise ValueError("a graph has at least one input and one output")
        dynamic = {size for tensor in self.inputs for size in tensor.shape if isinstance(size, str)}
        used = {size for tensor in self.outputs for size in tensor.shape if isinstance(size, str)}
        used |= {tensor.indexes for tensor in (*self.inputs, *self.outputs) if tensor.indexes is not None}
        if dynamic != set(self.limits):
            raise ValueError(
                f"limits must name the inputs' dynamic dimensions {sorted(dynamic)}, not {sorted(self.limits)}"
            )
        if used - dynamic:
            raise ValueError(f"dimensions that no input has: {sorted(used - dynamic)}")
        for dimension, (least, greatest) in self.limits.items():
            if least > greatest:
                raise ValueError(f"limits of {dimension}: {least} is above {greatest}")
        if self.ranking is not None:
            ranked = {tensor.name: tensor for tensor in self.outputs}
            for name, kind in ((self.ranking.items, "int"), (self.ranking.score, "float")):
                if name not in ranked or len(ranked[name].shape) != 2 or not ranked[name].dtype.startswith(kind):
                    raise ValueError(f"ranking needs a two-dimensional {kind} output {name}")
        return self

    @model_validator(mode="after")
    def _buckets_within_limits(self) -> Self:
        for bucket in self.buckets:
            for dimension, (least, usual, greatest) in bucket.items():
                low, high = self.limits.get(dimension, (0, 0))
                if not low <= least <= usual <= greatest <= high:
                    raise ValueError(f"bucket {bucket}: {dimension} must rise and be within {low} to {high}")
        return self

    def bucket(self, sizes: Mapping[str, int]) -> int | None:
        """Place of the first bucket that sizes fit, or None; where there are no buckets, 0: the limits.

        Args:
            sizes: dynamic dimension -> size, within the limits; dimensions that are left out fit.
        """
        if not self.buckets:
            return 0
        for place, bucket in enumerate(self.buckets):
            if all(bucket[name][0] <= size <= bucket[name][2] for name, size in sizes.items() if name in bucket):
                return place
        return None

    def fixed(self, sizes: Mapping[str, int]) -> "GraphSpec":
        """The spec of this graph where some dynamic dimensions always have the same size.

        Raises:
            InvalidInput: if no bucket holds these sizes together.
        """
        limits = self.limits | {name: (size, size) for name, size in sizes.items()}
        same = {name: (size, size, size) for name, size in sizes.items()}
        fitting = [bucket for bucket in self.buckets if replace(self, buckets=(bucket,)).bucket(sizes) is not None]
        if self.buckets and not fitting:
            raise _no_bucket("sizes", sizes)
        return replace(self, limits=limits, buckets=tuple(bucket | same for bucket in fitting))


class InputCheck:
    """Checks the inputs of each call of one graph against its spec.

    It reads each array twice at most (least and greatest value, which also finds NaN and infinity), and not at all
    where the spec gives an integer no range.

    Args:
        graph: its name, for messages.
        spec: its spec.
    """

    def __init__(self, graph: str, spec: GraphSpec) -> None:
        self._graph = graph
        self._specs = {tensor.name: tensor for tensor in spec.inputs}
        self._limits = dict(spec.limits)
        self._bucket = spec.bucket if spec.buckets else None
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in spec.inputs}
        self._ranges = {
            tensor.name: _bounds(tensor) for tensor in spec.inputs if tensor.dtype != "bool" and not _unbounded(tensor)
        }

    def __call__(
        self, inputs: Mapping[str, Any], resident: Mapping[str, Any], sizes: Mapping[str, int], *, partial: bool = False
    ) -> tuple[dict[str, Array], dict[str, int]]:
        """Check one call's inputs.

        Args:
            inputs: input name -> array.
            resident: inputs that the engine holds already; they must not come again.
            sizes: sizes of the dynamic dimensions that the resident inputs fix.
            partial: whether inputs may be missing (they come with the call).

        Returns:
            The arrays, contiguous; and the sizes of all dynamic dimensions seen.

        Raises:
            InvalidInput: naming the input, with what came and what was expected.
        """
        known = dict(sizes)
        for name in inputs:
            if name not in self._specs:
                raise self._error(
                    name, "an unknown input", f"one of {sorted(self._specs)}", "Leave it out, or correct its name."
                )
            if name in resident:
                raise self._error(
                    name, "an input that is bound already", "no value", "Leave it out, or bind the new value."
                )
        checked: dict[str, Array] = {}
        for name, spec in self._specs.items():
            if name in resident:
                continue
            if name not in inputs:
                if partial:
                    continue
                raise self._error(name, "nothing", str(spec), "Pass it with the call, or bind it before.")
            checked[name] = self._shaped(name, spec, inputs[name], known)
        self._fits_a_bucket(known)
        for name, array in checked.items():
            if name in self._ranges:
                self._within(name, array, known)
        return checked, known

    def _shaped(self, name: str, spec: TensorSpec, value: Any, known: dict[str, int]) -> Array:
        if type(value) is not np.ndarray:
            raise self._error(name, type(value).__name__, f"a numpy array, {spec}", "Pass a numpy array.")
        if value.dtype != self._dtypes[name]:
            raise self._error(name, f"dtype {value.dtype}", str(spec), f"Convert it with astype({spec.dtype!r}).")
        shape = value.shape
        if len(shape) != len(spec.shape):
            raise self._error(name, f"shape {shape}", str(spec), f"Give it {len(spec.shape)} dimensions.")
        for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(wanted, int):
                if size != wanted:
                    raise self._error(name, f"shape {shape}", str(spec), f"Make axis {axis} {wanted} long.")
                continue
            seen = known.get(wanted)
            if seen is None:
                least, greatest = self._limits[wanted]
                if not least <= size <= greatest:
                    raise self._error(
                        name, f"{wanted} = {size}", f"{least} to {greatest}", f"Change the size of axis {axis}."
                    )
                known[wanted] = size
            elif seen != size:
                raise self._error(
                    name, f"{wanted} = {size}", f"{wanted} = {seen}, as in the other inputs", f"Change axis {axis}."
                )
        return value if value.flags.c_contiguous else np.ascontiguousarray(value)

    def _fits_a_bucket(self, known: Mapping[str, int]) -> None:
        if self._bucket is not None and self._bucket(known) is None:
            raise _no_bucket(self._graph, known)

    def _within(self, name: str, array: Array, known: Mapping[str, int]) -> None:
        spec = self._specs[name]
        low, high = self._ranges[name]
        if spec.indexes is not None and spec.indexes in known:
            high = min(high, known[spec.indexes] - 1)
        if low <= array.min() and array.max() <= high:  # false where NaN is in it: min and max are NaN then
            return
        wrong = ~((array >= low) & (array <= high))
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        expected = f"{'finite and ' if spec.dtype.startswith('float') else ''}{low:g} to {high:g}"
        raise self._error(
            name, f"{array[place]} at {list(place)}", expected, "Correct the values, or look where they come from."
        )

    def _error(self, name: str, got: str, expected: str, next_step: str) -> InvalidInput:
        return InvalidInput(field=f"{self._graph}.{name}", got=got, expected=expected, next_step=next_step)


def _no_bucket(field: str, sizes: Mapping[str, int]) -> InvalidInput:
    return InvalidInput(
        field=field,
        got=", ".join(f"{dimension} = {size}" for dimension, size in sizes.items()),
        expected="sizes that one of the graph's buckets holds together",
        next_step="Make the batch or the other dimensions smaller; the manifest's buckets say what fits.",
    )


def _bounds(spec: TensorSpec) -> tuple[float, float]:
    limit = float(np.finfo(spec.dtype).max) if spec.dtype.startswith("float") else math.inf
    low = -limit if spec.low is None else spec.low
    if spec.indexes is not None:
        low = max(low, 0)
    return low, limit if spec.high is None else spec.high


def _unbounded(spec: TensorSpec) -> bool:
    return not spec.dtype.startswith("float") and spec.low is None and spec.high is None and spec.indexes is None


def resized(spec: GraphSpec, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Repeat or cut example inputs, or outputs, to other sizes of the dynamic dimensions.

    Values that index a resized dimension are taken modulo its new size.

    Args:
        spec: the graph's spec.
        inputs: valid inputs or outputs of the graph.
        sizes: dynamic dimension -> wanted size; dimensions that are not named keep theirs.
    """
    result = {}
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.name not in inputs:
            continue
        array = inputs[tensor.name]
        for axis, dimension in enumerate(tensor.shape):
            if isinstance(dimension, str) and dimension in sizes and array.shape[axis] != sizes[dimension]:
                array = np.take(array, np.arange(sizes[dimension]) % array.shape[axis], axis=axis)
        if tensor.indexes is not None and tensor.indexes in sizes:
            array = array % sizes[tensor.indexes]
        result[tensor.name] = np.ascontiguousarray(array)
    return result


def check_outputs(
    graph: str, spec: GraphSpec, outputs: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, tuple[str, str]]:
    """Compare the names, dtypes and shapes of a graph's outputs with its spec.

    Returns:
        `graph.output` -> (got, expected) for each that differs; empty where all is right.
    """
    wrong = {
        f"{graph}.{name}": ("an output", f"one of {[tensor.name for tensor in spec.outputs]}")
        for name in outputs
        if name not in {tensor.name for tensor in spec.outputs}
    }
    for tensor in spec.outputs:
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)
        expected = f"{tensor.dtype} {shape}"
        array = outputs.get(tensor.name)
        got = "nothing" if array is None else f"{array.dtype} {array.shape}"
        if got != expected:
            wrong[f"{graph}.{tensor.name}"] = (got, expected)
    return wrong
