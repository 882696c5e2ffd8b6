"""The MCP door, on stdio and on streamable HTTP.

Floor: wing A, a door. Nothing is imported here: a client over stdio is greeted before the SDK is.
"""
