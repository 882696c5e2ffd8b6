"""Which of other people's clients are tried, and in which environment each is installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

BOTH: Final = ("stdio", "http")


@dataclass(frozen=True, slots=True)
class Other:
    """A client: `lock` names its environment, `package` what is shown of it with its version.

    `program` is a function of `python_clients.py` or `node_clients.mjs`. `by` says what stands
    between client and server, or which command is run in place of a program (`bridges.py`).
    """

    name: str
    lock: str
    package: str
    program: str
    language: Literal["python", "node"] = "python"
    transports: tuple[str, ...] = BOTH
    by: str = "itself"


def _python(name: str, package: str, program: str, lock: str | None = None) -> Other:
    return Other(name, lock or program.replace("_", "-"), package, program)


def _node(name: str, lock: str, package: str, program: str) -> Other:
    return Other(name, lock, package, program, "node")


def _stripe(language: Literal["python", "node"], release: str = "") -> Other:
    lock = ("stripe" if language == "python" else "stripe-node") + (
        f"-{release}" if release else ""
    )
    return Other(f"stripe-{language}", lock, "stripe", f"stripe_{language}", language, ("http",))


OTHERS: Final = (
    _python("MCP SDK for Python", "mcp", "python_sdk", "fastmcp"),
    _python("FastMCP", "fastmcp", "fastmcp"),
    _python("OpenAI Agents, strict", "openai-agents", "openai_agents_strict", "openai-agents"),
    _python("OpenAI Agents, not strict", "openai-agents", "openai_agents_plain", "openai-agents"),
    _python("Pydantic AI", "pydantic-ai-slim", "pydantic_ai"),
    _python("Google ADK", "google-adk", "google_adk"),
    _python("mcp-use", "mcp-use", "mcp_use"),
    _python("LlamaIndex", "llama-index-tools-mcp", "llama_index"),
    _python("CrewAI", "crewai-tools", "crewai"),
    _python("Semantic Kernel", "semantic-kernel", "semantic_kernel"),
    _python("AutoGen", "autogen-ext", "autogen"),
    _python("Agent Framework", "agent-framework-core", "agent_framework"),
    _python("smolagents", "smolagents", "smolagents"),
    _python("Agno", "agno", "agno"),
    _python("DSPy", "dspy", "dspy"),
    _node("MCP SDK for TypeScript", "typescript-sdk", "@modelcontextprotocol/sdk",
          "typescript_sdk"),
    _node("AI SDK", "ai-sdk", "@ai-sdk/mcp", "ai_sdk"),
    _node("LangChain for JavaScript", "langchain-js", "@langchain/mcp-adapters", "langchain_js"),
    _node("Mastra", "mastra", "@mastra/mcp", "mastra"),
    Other("mcp-remote", "mcp-remote", "mcp-remote", "python_sdk", "node", ("stdio",), "mcp-remote"),
    Other("supergateway", "supergateway", "supergateway", "python_sdk", "node", ("http",),
          "supergateway"),
    Other("LiteLLM's gateway", "litellm", "litellm", "python_sdk", "python", ("http",), "litellm"),
    Other("Claude Code, `mcp list`", "claude-code", "@anthropic-ai/claude-code", "", "node", BOTH,
          "claude"),
    Other("Gemini CLI, `mcp list`", "gemini-cli", "@google/gemini-cli", "", "node", BOTH, "gemini"),
    Other("opencode, `mcp list`", "opencode", "opencode-linux-x64", "", "node", BOTH, "opencode"),
    *(_stripe("python", each) for each in ("7", "10", "12", "")),
    *(_stripe("node", each) for each in ("10", "14", "17", "19", "")),
    Other("localstripe as the upstream", "localstripe", "localstripe", "python_sdk", "python",
          ("http",), "localstripe"),
    Other("Lambda's runtime client", "awslambdaric", "awslambdaric", "", "python", ("http",),
          "awslambdaric"),
    Other("Secrets Manager (moto)", "moto", "moto", "python_sdk", "python", ("stdio",), "moto"),
)  # fmt: skip

SIX: Final = (
    "FastMCP", "OpenAI Agents, strict", "Pydantic AI", "MCP SDK for TypeScript", "AI SDK",
    "mcp-remote",
)  # fmt: skip
"""Those that `make prove` tries, too: different makers, transports and eras."""
