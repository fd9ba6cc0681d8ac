"""What is served under /monitor: the shell, the screens, the dialogs of actions.

The shell holds no data; each screen is a stream of itself.
The shell asks for a token and keeps it for its tab; scripts send it in the Authorization header.
There is no cookie, so no other site's page can act for whoever is signed in.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

from litestar import Request, Response, Router, get, post
from litestar.datastructures import CacheControlHeader, State
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.params import FromPath
from litestar.response import Stream
from litestar.static_files import create_static_files_router

from darkpearl import __version__
from darkpearl.errors import (
    BadRequestError,
    DarkPearlError,
    ForbiddenError,
    NotFoundError,
    RateLimitError,
    UnavailableError,
)
from darkpearl.monitor.actions import ACTIONS, TYPED_ABOVE, Action, filter_in_words
from darkpearl.monitor.looks import Looks
from darkpearl.monitor.rendering import keep_cell, render
from darkpearl.monitor.screens import FOUND_ID, FOUND_NUMBER, MENU, Sight, find_sight
from darkpearl.monitor.viewer import Statement, Viewer

STATIC = Path(__file__).with_name("static")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""For the page alone: its own scripts and styles, and requests to its own origin."""
PING_SECONDS = 10.0
MOST_DIGITS = 19
"""Of a number that may be an order's."""
HTML = "text/html"

_Request = Request[Any, Any, Any]
logger = logging.getLogger(__name__)


@get(["/", "/{place:path}"], media_type=HTML, sync_to_thread=False)
def get_shell(place: FromPath[str] = "") -> Response[str]:
    """The page without data: its menu, and what asks for a token. The same at every address."""
    del place
    return Response(_SHELL, media_type=HTML)


_SHELL = render("shell.html", menu=MENU, version=__version__)


@get(["/live", "/live/{place:path}"], exclude_from_compression=True)
async def follow_screen(
    request: _Request, viewer: NamedDependency[Any], state: State, place: FromPath[str] = ""
) -> Stream:
    """A screen as a stream of server-sent events: whole at first, and again when it has changed.

    Raises:
        NotFoundError: there is no such screen, or nothing that it could show.
        RateLimitError: the viewer has too many streams.
    """
    asked = _asked(request.query_params.dict())
    viewer = _in_cell(viewer, asked)
    sight = find_sight(place.strip("/"), asked)
    if sight is None or (sight.is_of_all and not viewer.cells):
        raise NotFoundError("There is no such screen.")
    viewer = await _where_it_is(viewer, sight)
    sight = replace(sight, cell=viewer.cell)
    state.screens.check(viewer.key, is_staff=True)
    looks: Looks = state.monitor
    try:
        with looks.watching(viewer, sight) as watch:
            first = await watch.first()
    except UnavailableError as error:
        first = _away(error, viewer, sight)
    return Stream(
        _follow(viewer, state, sight, first),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _follow(viewer: Viewer, state: State, sight: Sight, first: str) -> AsyncIterator[bytes]:
    """Messages until the token has expired, the viewer is gone or the server stops."""
    shown, said = "", 0.0
    now: str | None = first
    looks: Looks = state.monitor
    with (
        state.screens.held(viewer.key, is_staff=True),
        looks.watching(viewer, sight) as watch,
    ):
        while now is not None and not viewer.has_expired:
            if now != shown:
                shown, said = now, time.monotonic()
                yield _message(now)
            elif time.monotonic() - said >= PING_SECONDS:
                said = time.monotonic()
                yield b": ping\n\n"
            try:
                now = await _unless(state.stopping, watch.next())
            except UnavailableError as error:
                logger.warning("a screen is not to be seen: %s (%s)", error, error.__cause__)
                now = _state_line(None, viewer, sight)  # what was seen last stays
            except DarkPearlError as error:
                yield _message(_problem(error))
                return


async def _unless(stopping: asyncio.Event, awaited: Coroutine[Any, Any, str]) -> str | None:
    """What is awaited, or None when the server stops first."""
    result, stop = asyncio.create_task(awaited), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({result, stop}, return_when=asyncio.FIRST_COMPLETED)
        return None if stop.done() else result.result()
    finally:
        result.cancel()
        stop.cancel()


def draw(
    sight: Sight, state: Mapping[str, Any], seen: Mapping[str, Any] | None, viewer: Viewer
) -> str:
    """A screen and the state line above it, as HTML.

    Raises:
        NotFoundError: there is nothing that the screen could show.
    """
    screen = sight.screen
    if seen is None:
        raise NotFoundError(f"There is no such {screen.title.lower()}, or it is gone.")
    html = render(
        screen.template,
        **seen,
        health=state,
        asked={name: each for name, each in sight.asked if name != "cell"},
        here=sight.path,
        may_act=viewer.may_act,
    )
    return _state_line(state, viewer, sight) + keep_cell(html, sight.cell)


def _state_line(state: Mapping[str, Any] | None, viewer: Viewer, sight: Sight) -> str:
    """The line above a screen: how its cell is, and which there are, if there are several."""
    html = render(
        "state.html",
        state=state,
        may_act=viewer.may_act,
        cells=viewer.cells,
        cell=None if sight.is_of_all else sight.cell,
        section="" if sight.is_of_all else sight.screen.section,
    )
    return keep_cell(html, sight.cell)


def _away(error: UnavailableError, viewer: Viewer, sight: Sight) -> str:
    return _state_line(None, viewer, sight) + render("away.html", error=error)


def _in_cell(viewer: Viewer, asked: Mapping[str, str]) -> Viewer:
    """Who looks at the cell that the address asks for.

    Raises:
        NotFoundError: there is none of that number.
    """
    number = asked.get("cell")
    if number is None or not viewer.cells:
        return viewer
    if number not in map(str, viewer.cells):
        raise NotFoundError(f"There is no cell {number}.")
    return viewer.in_cell(int(number))


async def _where_it_is(viewer: Viewer, sight: Sight) -> Viewer:
    """Who looks at the cell that has what is asked for.

    That is an order whose number is searched for, whichever cell is looked at, or an order or a
    saga at an address that names no cell.

    Raises:
        UnavailableError: nobody who answers has what has the id.
    """
    asked = dict(sight.asked)
    is_named = sight.screen.section in {"orders", "sagas"} and "cell" not in asked
    of_id = dict(sight.ids).get("id") if is_named else None
    searched = asked.get("search", "").lstrip("#") if sight.path == "orders" else ""
    is_number = searched.isdecimal() and len(searched) < MOST_DIGITS
    if not viewer.cells or not (of_id or is_number):
        return viewer

    wanted: Statement = (
        (FOUND_ID, {"id": of_id}) if of_id else (FOUND_NUMBER, {"number": int(searched)})
    )

    away: list[UnavailableError] = []

    async def has(number: int) -> bool:
        try:
            return await viewer.in_cell(number).find(dict, wanted) is not None
        except UnavailableError as error:  # the others may have it
            away.append(error)
            return False

    found = await asyncio.gather(*map(has, viewer.cells))
    there = [number for number, is_there in zip(viewer.cells, found, strict=True) if is_there]
    if of_id and away and not there:
        raise away[0]
    return viewer.in_cell(there[0]) if there and viewer.cell not in there else viewer


def _message(html: str) -> bytes:
    return "".join(f"data: {line}\n" for line in html.splitlines()).encode() + b"\n"


@get("/act/{name:str}", media_type=HTML)
async def ask(
    request: _Request, viewer: NamedDependency[Any], name: FromPath[str]
) -> Response[str]:
    """The dialog of an action: what it is done to, what will come of it, and the reason.

    Raises:
        ForbiddenError: the viewer only reads.
        DarkPearlError: whatever the database says of what it is done to.
    """
    action = _action(viewer, name)
    asked = _asked(request.query_params.dict())
    return await _dialog(_in_cell(viewer, asked), name, action, asked)


@post("/act/{name:str}", media_type=HTML, status_code=HTTPStatus.OK)
async def act(
    request: _Request, viewer: NamedDependency[Any], state: State, name: FromPath[str]
) -> Response[str]:
    """Do it. What is refused is told in the dialog, where nothing that was typed is lost."""
    action = _action(viewer, name)
    viewer = _in_cell(viewer, _asked(request.query_params.dict()))
    asked = _asked(dict(await request.form()))
    try:
        _confirmed(action, asked)
        row = await viewer.find(dict, action.statement(asked))
    except DarkPearlError as error:
        if isinstance(error, ForbiddenError | RateLimitError):
            raise
        return await _dialog(viewer, name, action, asked, error)
    finally:
        state.monitor.forget()
    return Response(
        keep_cell(render("done.html", action=action, name=name, row=row or {}), viewer.cell),
        media_type=HTML,
        headers={"HX-Retarget": "#toast", "HX-Reswap": "innerHTML", "HX-Trigger": "acted"},
    )


def _action(viewer: Viewer, name: str) -> Action:
    if name not in ACTIONS:
        raise NotFoundError("There is no such action.")
    if not viewer.may_act:
        raise ForbiddenError("Your token may look at everything, and change nothing.")
    return ACTIONS[name]


def _confirmed(action: Action, asked: Mapping[str, str]) -> None:
    """Raises: BadRequestError: they are many, and their number wasn't typed."""
    if not action.bulk:
        return
    expected = asked.get("expected", "")
    if not expected.isdecimal():
        raise BadRequestError("Look at the preview first.")
    if int(expected) > TYPED_ABOVE and asked.get("typed", "").replace(",", "") != expected:
        raise BadRequestError(f"Type {int(expected):,} to confirm.")


async def _dialog(
    viewer: Viewer,
    name: str,
    action: Action,
    asked: Mapping[str, str],
    error: DarkPearlError | None = None,
) -> Response[str]:
    keys = {key: asked.get(key, "") for key in action.keys}
    operation = asked.get("operation") or str(uuid4())
    subject: Mapping[str, Any] | None = None
    preview: Mapping[str, Any] | None = None
    wanted: list[tuple[str, str]] = []
    if action.bulk:
        wanted = filter_in_words(keys["filter"])
        preview = await viewer.find(dict, action.preview(keys))
    elif action.subject:
        subject = await viewer.find(dict, (action.subject, keys))
    html = render(
        "dialog.html",
        name=name,
        action=action,
        asked=asked,
        keys={**keys, "operation": operation},
        first=(subject or {}).get("first") or {},
        subject=subject,
        preview=preview,
        wanted=wanted,
        typed_above=TYPED_ABOVE,
        error=error,
    )
    html = keep_cell(html, viewer.cell)
    return Response(html, media_type=HTML, status_code=error.status if error else HTTPStatus.OK)


def _asked(given: Mapping[str, Any]) -> dict[str, str]:
    """What is said, without what is left empty; of what is said twice the last."""
    last = {name: each[-1] if isinstance(each, list) else each for name, each in given.items()}
    return {name: str(each).strip() for name, each in last.items() if str(each).strip()}


def _problem(error: DarkPearlError) -> str:
    return render("problem.html", error=error)


def on_error(request: _Request, error: DarkPearlError) -> Response[str]:
    """An error of ours, as something to read."""
    del request
    return Response(_problem(error), media_type=HTML, status_code=error.status)


def on_exception(request: _Request, error: Exception) -> Response[str]:
    """Anything else: what HTTP says of it, or a bug, of which the log says all."""
    if isinstance(error, HTTPException):
        status, told = error.status_code, DarkPearlError(error.detail)
        told.title = HTTPStatus(status).phrase
        return Response(_problem(told), media_type=HTML, status_code=status)
    logger.error("%s %s: %s", request.method, request.scope["path"], error, exc_info=error)
    return on_error(request, DarkPearlError())


def router(viewer: Provide) -> Router:
    """The page.

    Args:
        viewer: finds the Viewer of a request, or refuses it.
    """
    return Router(
        "/monitor",
        route_handlers=[
            get_shell,
            follow_screen,
            ask,
            act,
            create_static_files_router(
                "/static",
                directories=[STATIC],
                include_in_schema=False,
                cache_control=CacheControlHeader(max_age=3600),
            ),
        ],
        dependencies={"viewer": viewer},
        include_in_schema=False,
        response_headers={"Content-Security-Policy": POLICY},
        exception_handlers={DarkPearlError: on_error, Exception: on_exception},
    )
