"""All files of a model or dataset as one zip, written while it is sent.

Entries are stored, not compressed (weights do not compress), with a fixed date, so that the same
files give the same bytes. Memory holds one chunk at a time.
"""

import hashlib
import zipfile
from collections.abc import Mapping

from fastapi import Request, Response

from service.api.conditional import unchanged
from service.api.documents import answers, bytes_answer, header
from service.api.outflow import Outflow
from service.contract.storage import Chunks, LocalStorage, StoredFile

ZIP = "application/zip"
FIELDS = {
    "ETag": header("Changes with the files; strong.", '"5f70bf18a086007016e948b04aed3b82103a36be"'),
    "Content-Disposition": header("The archive's name.", 'attachment; filename="mdl_01ktcz5vwm9j6p2n4qe8rhsxtb.zip"'),
}
ANSWERS = answers(
    {
        200: bytes_answer("A zip of all files.", FIELDS, ZIP),
        304: {"description": "The client has it already.", "headers": FIELDS},
    },
    404,
)


class Outlet:
    """What the zip writes into: a buffer that is emptied after every chunk. It cannot be rewound."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        """Take bytes."""
        self._buffer += data
        return len(data)

    def flush(self) -> None:
        """Nothing to do; `take` empties the buffer."""

    def take(self) -> bytes:
        """Return and forget what was written."""
        content = bytes(self._buffer)
        self._buffer.clear()
        return content


def zipped(storage: LocalStorage, files: Mapping[str, StoredFile]) -> Chunks:
    """Yield a zip archive of the files, in chunks."""
    outlet = Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]  # needs only write
        for path, file in files.items():
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=file.size >= zipfile.ZIP64_LIMIT // 2) as target:
                for chunk in storage.read(file.sha256):
                    target.write(chunk)
                    yield outlet.take()
    yield outlet.take()


def archive_response(request: Request, storage: LocalStorage, name: str, files: Mapping[str, StoredFile]) -> Response:
    """Answer with the archive, or the word that the client has it."""
    listing = "\n".join(["zip 1", *(f"{path} {file.sha256}" for path, file in files.items())])
    fields = {
        "ETag": f'"{hashlib.sha256(listing.encode()).hexdigest()[:40]}"',
        "Content-Disposition": f'attachment; filename="{name}.zip"',
        "Cache-Control": "private, no-cache",
    }
    if unchanged(request, fields["ETag"]):
        return Response(status_code=304, headers=fields)
    return Outflow(zipped(storage, files), 200, fields, ZIP)
