"""Query parameters that lists share."""

from typing import Annotated

from litestar.params import QueryParameter

from darkpearl.models import MAX_OFFSET, MAX_PAGE

DEFAULT_LIMIT = 100

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="Rows at most")]
Offset = Annotated[
    int, QueryParameter(ge=0, le=MAX_OFFSET, description="Rows to leave out at the start")
]
IsActive = Annotated[
    bool | None, QueryParameter(description="Only active ones, or only inactive ones")
]
