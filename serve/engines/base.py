"""What every engine does: check a call's inputs by name, keep bound inputs on the device, warm up, run."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from serve.artifacts import Artifact
from serve.engines.parity import differences
from serve.errors import ArtifactError
from serve.tensors import Array, GraphSpec, InputCheck, check_outputs, resized

BATCH: Final = "B"
"""Name of the dynamic dimension that engines are warmed up over."""


class Engine(ABC):
    """One graph of an artifact, ready to run. Immutable: any number of threads may call it at once.

    Args:
        version: version of the artifact.
        graph: name of the graph.
        spec: its spec.
        device: where it runs, for logs and metrics, such as `cpu` or `cuda:sm90`.
    """

    def __init__(self, *, version: str, graph: str, spec: GraphSpec, device: str) -> None:
        self.version = version
        self.graph = graph
        self.spec = spec
        self.device = device
        self._check = InputCheck(graph, spec)
        self._resident: Mapping[str, Any] = {}  # input name -> the device's own handle
        self._resident_sizes: Mapping[str, int] = {}

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once.

        Args:
            inputs: input name -> array, all but the bound ones, with the spec's dtypes and shapes.

        Returns:
            Output name -> array, the caller's own.

        Raises:
            InvalidInput: naming the input that does not fit the spec.
        """
        arrays, _ = self._check(inputs, self._resident, self._resident_sizes)
        return self._run(arrays)

    @property
    def is_beside(self) -> bool:
        """Whether a process that gives way to answers runs the graph, too; see run_beside."""
        return False

    def run_beside(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once, by a process that gives way to answers where there is one; for work before them.

        One thread at a time may ask for it. Outputs may be read-only.

        Raises:
            InvalidInput: as a call.
            RuntimeError: that process failed.
        """
        return self(inputs)

    def bind(self, inputs: Mapping[str, Array]) -> Self:
        """Engine on the same compiled graph that holds these inputs: checked and copied to the device once.

        This engine stays as it is, so a caller swaps both what it bound and what belongs to it in one step. Binding
        what is bound already replaces it; dimensions that only the old value had may change then.

        Args:
            inputs: input name -> array. The arrays are copied: changing them later changes nothing here.

        Raises:
            InvalidInput: naming the input that does not fit the spec.
        """
        kept = {name: handle for name, handle in self._resident.items() if name not in inputs}
        shapes = {tensor.name: tensor.shape for tensor in self.spec.inputs}
        fixed = {size for name in kept for size in shapes[name] if isinstance(size, str)}
        sizes = {dimension: size for dimension, size in self._resident_sizes.items() if dimension in fixed}
        arrays, seen = self._check(inputs, kept, sizes, partial=True)
        view = copy.copy(self)
        view._resident = {**kept, **{name: self._place(array) for name, array in arrays.items()}}  # noqa: SLF001
        view._resident_sizes = seen  # noqa: SLF001
        view._rebound()  # noqa: SLF001
        return view

    def sibling(self) -> "Engine":
        """An engine on the same graph for calls of other shapes; this one, where another shape costs it nothing.

        It costs a fraction of loading the graph once more.

        Raises:
            ArtifactError: the runtime does not make one.
        """
        return self

    @property
    def bound(self) -> frozenset[str]:
        """Names of the inputs that calls leave out."""
        return frozenset(self._resident)

    def warm_up(self, artifact: Artifact, batches: Sequence[int] = ()) -> dict[str, float]:
        """Run the artifact's example, compare with what torch made of it, then run it at other batch sizes.

        Where this engine's sizes are fixed, the example's lines are repeated or cut to them, and so are torch's.

        Args:
            artifact: the artifact that this engine was loaded from.
            batches: sizes of the dimension `B`; those beyond the graph's limits are left out.

        Returns:
            Output name -> error against torch's output.

        Raises:
            ArtifactError: if the outputs do not fit the spec, or are not torch's within its tolerance.
        """
        inputs, expected = artifact.example(self.graph)
        fixed = {name: least for name, (least, greatest) in self.spec.limits.items() if least == greatest}
        inputs = resized(self.spec, inputs, fixed)
        expected = resized(self.spec, expected, fixed)
        actual = self._warm(inputs)
        errors = differences(self.spec, expected, actual)
        for name, error in errors.items():
            if error > self.spec.tolerance:
                raise ArtifactError(
                    field=f"{self.graph}.{name} on {self.device}",
                    got=f"an error of {error:.3g} against torch",
                    expected=f"at most {self.spec.tolerance:g}",
                    next_step="Use another device, or export the model again on this kind of machine.",
                )
        least, greatest = self.spec.limits.get(BATCH, (1, 0))
        _, sizes = self._check(inputs, {}, {})
        for size in batches:
            if least <= size <= greatest and self.spec.bucket({**sizes, BATCH: size}) is not None:
                self._warm(resized(self.spec, inputs, {BATCH: size}))
        return errors

    def _warm(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays, sizes = self._check(inputs, {}, {})
        outputs = self._run(arrays)
        for name, (got, expected) in check_outputs(self.graph, self.spec, outputs, sizes).items():
            raise ArtifactError(
                field=f"{name} on {self.device}", got=got, expected=expected, next_step="Export the model again."
            )
        return outputs

    @abstractmethod
    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked inputs together with the resident ones."""

    def _rebound(self) -> None:  # noqa: B027 - most engines keep nothing that depends on what is bound
        """Part with what belongs to the engine that this one was copied from; other inputs are bound now."""

    @abstractmethod
    def _place(self, array: Array) -> Any:
        """Copy a checked input to the device, for good."""
