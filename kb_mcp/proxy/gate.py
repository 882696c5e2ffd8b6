"""The gate: whether this process may send, which it may not while its store may lack records.

Floor: wing B, below the governor. What holds for all processes on a store is a row of the store;
this is what one process knows by itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Gate:
    """Why nothing is sent, as far as this process knows.

    `heads_behind`: the store does not reach its exported heads. `unwalked`: no walk of Stripe's
    lists was whole since this process started. `gap`: the store lacks objects that it made.
    """

    heads_behind: bool = False
    unwalked: bool = False
    gap: bool = False

    @property
    def closed(self) -> bool:
        """Say whether nothing may be sent."""
        return self.heads_behind or self.unwalked or self.gap
