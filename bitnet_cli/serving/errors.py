"""What goes wrong with a request, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

openai-python repeats 408, 409, 429 and every 5xx; so what will not get better by itself is a 400, or says `x-should-retry: false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet_cli.errors import BadFileError, UnsupportedError, UsageError, printable
from bitnet_cli.model.chat import ContextFullError

# Types by status, as OpenAI names them; Anthropic's differ (anthropic.py).
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Ends a request. status: of HTTP; param: the wrong field; code: a word for programs; retry: seconds to wait before asking again."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, printable(message), param, code, retry

    @property
    def type(self) -> str:
        return TYPES.get(self.status, "server_error")

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        """What clients need beside the body."""
        found = {} if self.retry is None else {"retry-after": str(self.retry)}
        if self.status >= 500 and self.status != 503:
            found["x-should-retry"] = "false"
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def too_long(tokens: int, context: int) -> ApiError:
    """A prompt that does not fit. Clients know it by the first words, which are OpenAI's."""
    message = f"This model's maximum context length is {context} tokens; the prompt has {tokens}, and at least one is for the answer"
    return ApiError(400, message, param="messages", code="context_length_exceeded")


def of_exception(error: BaseException, hide: Mapping[str, str] | None = None) -> ApiError:
    """What a client is told of an exception: of one that is not ours, nothing. hide: paths in messages -> what stands for them."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, (UsageError, UnsupportedError, BadFileError)):
        return ApiError(500, "the server failed on this request; its log says how", code="internal_error")
    message = str(error)
    for path, name in (hide or {}).items():
        message = message.replace(path, name)
    code = "context_length_exceeded" if isinstance(error, ContextFullError) else None
    return ApiError(400, message, code=code)
