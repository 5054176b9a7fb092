"""A running REST and Auth server, as tests see it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

import jwt
from supabase import Client, create_client

from python_jobs.state import ApiKeys


@dataclass
class Api:
    """A running REST and Auth server over its own migrated database."""

    url: str
    database_url: str
    keys: ApiKeys
    _clients: list[Client] = field(default_factory=list)

    @property
    def anon_key(self) -> str:
        """The key that an app ships with."""
        return self.keys.publishable_key

    @property
    def service_key(self) -> str:
        """The key of a backend: role service_role."""
        return self.keys.secret_key

    def client(self, key: str | None = None) -> Client:
        """A supabase-py client that has not signed in; with the service key, a backend's."""
        return create_client(self.url, key or self.anon_key)

    def sign_up(self) -> tuple[Client, str]:
        """A new user's signed-in client, and the user's id."""
        client = self.client()
        answer = client.auth.sign_up(
            {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_hex(16)}
        )
        assert answer.user is not None
        return client, answer.user.id

    def token(self, user_id: str | None, role: str = "authenticated", lifetime_s: int = 600) -> str:
        """A signed access token with the claims of one's choice, also an expired one."""
        claims = {"role": role, "exp": int(time.time()) + lifetime_s}
        if user_id is not None:
            claims["sub"] = user_id
        return jwt.encode(claims, self.keys.jwt_secret, algorithm="HS256")

    def headers(self, token: str | None = None) -> dict[str, str]:
        """HTTP headers of an app's request, with a user's token or without."""
        headers = {"apikey": self.anon_key}
        return {**headers, "Authorization": f"Bearer {token}"} if token else headers
