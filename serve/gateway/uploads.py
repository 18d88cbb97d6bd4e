"""Questions that bring their files: multipart/form-data, read within limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final, get_args

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from serve.gateway.errors import FieldError, Malformed, RequestRefused, Words, refused
from serve.gateway.requests import body_chunks
from serve.quality.schemas import QualityRequest, Side

MULTIPART: Final = "multipart/form-data"

_SIDES: Final[tuple[Side, ...]] = get_args(Side)
_MOST_FIELDS: Final = 16
_MOST_FIELD_BYTES: Final = 4096
_MOST_NAME: Final = 200


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form as read.

    Attributes:
        asked: the question; a file's name stands where a path would.
        files: what came as a file, open for reading.
    """

    asked: QualityRequest
    files: dict[Side, BinaryIO]


@asynccontextmanager
async def read_form(request: Request, limit_bytes: int, deadline: float) -> AsyncIterator[Form]:
    """The body as a form; its files are gone at the end.

    Args:
        request: whose content type is MULTIPART.
        limit_bytes: of the body; what is over is refused without reading the rest.
        deadline: when it must be there, on the event loop's clock.

    Raises:
        TooLarge: more than `limit_bytes`, declared or sent.
        BodyTimeout: the deadline came first.
        Malformed: no such form.
        RequestRefused: a field that the question does not have, a repeated one, or a value out of range.
    """
    parser = MultiPartParser(
        request.headers, body_chunks(request, limit_bytes, deadline), max_files=len(_SIDES), max_fields=_MOST_FIELDS,
        max_part_size=_MOST_FIELD_BYTES,
    )  # fmt: skip
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        raise Malformed(
            field="body", got=Words(str(getattr(error, "message", "") or "no form that can be read")[:200]),
            expected=f"{MULTIPART} with a boundary, up to {len(_SIDES)} files and short values",
            next_step="Send it as `curl -F distorted=@FILE -F reference=@FILE` does.",
        ) from error  # fmt: skip
    try:
        values: dict[str, str] = {}
        files: dict[Side, BinaryIO] = {}
        for name, value in form.multi_items():
            if name in values:
                raise RequestRefused([_told(name, "more than one", "one value", "Send it once.")])
            if isinstance(value, str):
                values[name] = value
                continue
            side = next((side for side in _SIDES if side == name), None)
            if side is None:
                raise RequestRefused([_told(name, "a file", "text", f"Files are {' and '.join(_SIDES)}.")])
            files[side] = value.file
            values[name] = _shown(value, side)
        try:
            asked = QualityRequest.model_validate(values, strict=False)
        except ValidationError as error:
            raise refused(error, QualityRequest) from error
        yield Form(asked=asked, files=files)
    finally:
        await form.close()


def _shown(file: UploadFile, side: Side) -> str:
    """A file's name as its sender has it, where it can be shown."""
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2][:_MOST_NAME]
    return name if name.strip() and name.isprintable() else side


def _told(field: str, got: str, expected: str, next_step: str) -> FieldError:
    return FieldError(field=field[:_MOST_NAME], got=got, expected=expected, next_step=next_step)
