"""What a client is told when something is wrong, in the form that OpenAI's clients read."""
from typing import Any

from vilg.yaml_files import shown


class ApiError(Exception):
    """An answer that is no result: HTTP ``status``, a sentence, the field at fault and a short code."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                429: "rate_limit_error"}.get(self.status,
                                             "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers beside it."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def from_validation(problems: list[dict[str, Any]]) -> ApiError:
    """The first of pydantic's problems as one sentence that names the field."""
    first = problems[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    field = ".".join(place) or None
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON; send an object of fields", None, "invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no field {field!r} here", field, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"the field {field!r} is missing" if field else "the body is missing", field,
                        "missing_required_parameter")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{field or 'the body'}: {message[:1].lower()}{message[1:]}, not {shown(first.get('input'))}"
                    f"{more}", field, "invalid_value")
