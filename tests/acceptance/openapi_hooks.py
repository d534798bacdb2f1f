"""Schemathesis knows no part of a resumable upload; it is bytes."""

import schemathesis

schemathesis.serializer.alias("application/partial-upload", "application/octet-stream")
