"""Who calls: the user of an access token, as Auth signed it."""

from __future__ import annotations

import uuid

import jwt


def read_caller(authorization: str, secret: str) -> uuid.UUID | None:
    """The id of the signed-in user; None for a token that is missing, forged or expired."""
    scheme, _, token = authorization.partition(" ")
    if scheme != "Bearer":
        return None
    try:
        claims = jwt.decode(
            token,
            secret,
            algorithms=["HS256"],
            options={"require": ["sub", "exp"], "verify_aud": False},
        )
        return uuid.UUID(claims["sub"]) if claims.get("role") == "authenticated" else None
    except (jwt.InvalidTokenError, ValueError):
        return None
