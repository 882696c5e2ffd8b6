"""The demo: three ways in which agents charge twice, without kb-mcp and with it.

Floor: a public face, beside the Lambda and Converse faces. It imports nothing of the product: it
starts the commands and talks HTTP, as a user would.
"""
