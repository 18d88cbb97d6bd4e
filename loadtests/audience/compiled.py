"""Loops over viewers, compiled by numba; compiled code is cached beside the bytecode (`__pycache__`)."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function as machine code; it may call other compiled functions, and keeps its type."""
    return cast("Function", numba.njit(cache=True, error_model="numpy")(function))
