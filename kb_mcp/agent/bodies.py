"""What an answer is as JSON: the result itself, or why there is none. Shared by the doors.

Floor: wing A, above calls; below the doors. No text of an exception and no secret gets in.
"""

from __future__ import annotations

from typing import assert_never

from kb_mcp.agent import wording
from kb_mcp.agent.arguments import Invalid
from kb_mcp.agent.calls import Answer, Answered, NotOffered, RateLimited, Unavailable

# Bedrock takes 25 KB; a result is a tenth of it, since every text in it is bounded.
Body = dict[str, str | int | bool]


def body_of(answer: Answer) -> Body:
    """Return the JSON object that `answer` is for a model; absent fields are left out."""
    match answer:
        case Answered():
            return answer.result.model_dump(mode="json", exclude_none=True)
        case Invalid():
            return _nothing("invalid", f"{wording.NOTHING_DONE} {answer.message}", wording.CORRECT)
        case NotOffered():
            return _nothing("unknown_tool", wording.NOT_OFFERED, wording.USE_ANOTHER)
        case RateLimited():
            return _nothing("rate_limited", answer.message, wording.wait(answer.retry_after_s))
        case Unavailable():
            return _nothing("unavailable", answer.message, wording.LATER)
        case _:
            assert_never(answer)


def is_unknown(answer: Answer) -> bool:
    """Say whether a charge may be under way, so that the caller must not charge again."""
    return isinstance(answer, Answered) and answer.result.status == "unknown"


def is_error(answer: Answer) -> bool:
    """Say whether the tool did not run at all; refusals and declines are answers."""
    return not isinstance(answer, Answered)


def _nothing(status: str, message: str, next_step: str) -> Body:
    return {"status": status, "message": message, "next_step": next_step}
