"""`/login`: a browser turns a one-time link into a session cookie; `/logout` ends it.

Opening the link only shows a button, so that a preview or a prefetch of it uses nothing up. The cookie is out of scripts'
reach and is sent from the gateway's own pages only.
"""

from __future__ import annotations

import html

from aiohttp import web

from moltbot.core.errors import InvalidRequest
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.auth import COOKIE
from moltbot.gateway.bodies import form_of, json_response
from moltbot.gateway.credentials import MAX_TOKEN_TEXT, SESSION_SECONDS
from moltbot.gateway.problems import Refused
from moltbot.gateway.visit import VISIT

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>moltbot</title>
<meta name="viewport" content="width=device-width"></head>
<body><h1>moltbot</h1>{body}</body></html>
"""
_FORM = """<p>This link signs this browser in, once.</p>
<form method="post" action="/login"><input type="hidden" name="code" value="{code}"><button autofocus>Sign in</button></form>"""

_SIGNED_IN = """<p>Signed in as {who}.</p>
<form method="post" action="/api/logout"><button>Sign out</button></form>"""

# Beyond what every answer has. Forms go back to this gateway only, and tell it where they came from.
_PAGE_HEADERS = {"X-Frame-Options": "DENY", "Referrer-Policy": "same-origin"}


async def get_login(request: web.Request) -> web.Response:
    """The page with the button."""
    code = request.query.get("code", "")[:MAX_TOKEN_TEXT]
    return _page(_FORM.format(code=html.escape(code, quote=True)))


async def post_login(request: web.Request) -> web.Response:
    """Use the link up and set the cookie."""
    code = (await form_of(request)).get("code", "")
    redeemed = await request[VISIT].edge.credentials.redeem(code)
    if redeemed is None:
        raise Refused(
            403, "link_used", "this link is no longer good: make a new one with `moltbot tokens link`"
        )
    session, text = redeemed
    who = "an operator" if session.user_id is None else session.user_id
    response = _page(_SIGNED_IN.format(who=html.escape(who)))
    secure = request[VISIT].edge.is_encrypted(request)
    response.set_cookie(
        COOKIE, text, max_age=int(SESSION_SECONDS), path="/", httponly=True, samesite="Strict", secure=secure
    )
    return response


async def post_logout(request: web.Request) -> web.Response:
    """End the session that the request came with."""
    credential = request[VISIT].caller
    if not credential.from_cookie:
        raise InvalidRequest("there is no session to end: this request came with a token")
    response = json_response({"signedOut": True})
    response.del_cookie(COOKIE, path="/")
    await request[VISIT].edge.credentials.revoke(credential.id)
    return response


def _page(body: str) -> web.Response:
    response = web.Response(text=_PAGE.format(body=body), content_type="text/html")
    response.headers.update(_PAGE_HEADERS)
    return response


ROUTES = (
    Route("GET", "/login", get_login, Scope.READ, "anyone", api=False),
    Route("POST", "/login", post_login, Scope.READ, "anyone", api=False),
    Route("POST", "/logout", post_logout, Scope.READ, "users"),
)
