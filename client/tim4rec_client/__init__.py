"""A client of the recommendation service; it needs httpx and nothing else.

    with Client("http://127.0.0.1:8000") as service:
        service.post(Interaction("ann", "50"))
        for item in service.recommend("ann", k=10)["items"]:
            print(item["item_id"])

`AsyncClient` has the same methods, to be awaited.
"""

from .clients import AsyncClient, Client
from .errors import Refused, ServiceError, Unavailable
from .interaction import Interaction

__all__ = ["AsyncClient", "Client", "Interaction", "Refused", "ServiceError", "Unavailable"]
