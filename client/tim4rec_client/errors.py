"""What goes wrong with a request."""

from __future__ import annotations


class ServiceError(Exception):
    """One line that says what is wrong.

    Attributes:
        status: of the answer; None: there was none.
        request_id: under which the service's log has it, where the answer named it.
    """

    def __init__(
        self, detail: str, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.request_id = status, request_id


class Refused(ServiceError):
    """The service won't do it: sending it again does not help."""


class Unavailable(ServiceError):
    """No answer, or one that says to come again: whether it was done is unknown. Sending the same
    again is safe."""
