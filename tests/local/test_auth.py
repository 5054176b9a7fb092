"""Auth of the local stack: tokens that policies can read, and the admin API of a back end."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest
from supabase import Client
from supabase_auth.errors import AuthApiError, AuthWeakPasswordError

from tests.support.api import Api


def credentials() -> dict[str, Any]:
    """An address and a password that nobody has yet."""
    return {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_hex(16)}


@pytest.fixture
def back_end(app: Api) -> Client:
    """A client with the service key."""
    return app.client(app.service_key)


def refusal(call: Callable[[], Any]) -> AuthApiError:
    """The error that a call of Auth ends in."""
    with pytest.raises(AuthApiError) as caught:
        call()
    return caught.value


def test_a_created_user_signs_in_and_has_what_triggers_make(app: Api, back_end: Client) -> None:
    new = credentials()
    handle = secrets.token_hex(8)
    made = back_end.auth.admin.create_user(
        {
            **new,
            "email_confirm": True,
            "user_metadata": {"handle": handle},
            "app_metadata": {"tier": "gold"},
        }
    ).user
    assert (made.email, made.app_metadata["tier"]) == (new["email"], "gold")
    assert made.email_confirmed_at is not None
    client = app.client()
    session = client.auth.sign_in_with_password(new).session
    assert session is not None
    assert session.user.id == made.id
    assert [identity.provider for identity in session.user.identities or []] == ["email"]
    profile = client.table("profiles").select("handle").eq("id", made.id).single().execute().data
    assert profile == {"handle": handle}


def test_a_user_who_has_not_confirmed_the_address_does_not_sign_in(
    app: Api, back_end: Client
) -> None:
    new = credentials()
    made = back_end.auth.admin.create_user(new).user
    client = app.client()
    assert refusal(lambda: client.auth.sign_in_with_password(new)).code == "email_not_confirmed"
    back_end.auth.admin.update_user_by_id(made.id, {"email_confirm": True})
    assert client.auth.sign_in_with_password(new).session is not None


def test_users_are_listed_page_by_page_newest_first(back_end: Client) -> None:
    made = [back_end.auth.admin.create_user(credentials()).user.id for _ in range(3)]
    first = back_end.auth.admin.list_users(page=1, per_page=2)
    second = back_end.auth.admin.list_users(page=2, per_page=2)
    assert [user.id for user in first] == made[:0:-1]
    assert second[0].id == made[0]
    assert len(second) <= 2


def test_a_user_is_read_changed_and_deleted(app: Api, back_end: Client) -> None:
    client, user_id = app.sign_up()
    admin = back_end.auth.admin
    assert admin.get_user_by_id(user_id).user.id == user_id
    changed = credentials()
    admin.update_user_by_id(
        user_id, {**changed, "user_metadata": {"a": 1, "b": 2}, "app_metadata": {"tier": "gold"}}
    )
    after = admin.update_user_by_id(user_id, {"user_metadata": {"a": None}}).user
    assert (after.email, after.user_metadata["b"]) == (changed["email"], 2)
    assert "a" not in after.user_metadata
    assert after.app_metadata["tier"] == "gold"
    assert app.client().auth.sign_in_with_password(changed).session is not None
    admin.delete_user(user_id)
    assert refusal(lambda: admin.get_user_by_id(user_id)).code == "user_not_found"
    assert client.table("profiles").select("*").eq("id", user_id).execute().data == []
    assert refusal(lambda: app.client().auth.sign_in_with_password(changed)).status == 400


def test_the_admin_api_names_what_is_wrong_with_a_call(app: Api, back_end: Client) -> None:
    admin = back_end.auth.admin
    new = credentials()
    admin.create_user(new)
    assert refusal(lambda: admin.create_user(new)).code == "email_exists"
    assert refusal(lambda: admin.create_user({"password": "long enough"})).code == (
        "validation_failed"
    )
    short = {**credentials(), "password": "short"}
    with pytest.raises(AuthWeakPasswordError):
        admin.create_user(short)
    assert refusal(lambda: admin.delete_user(str(uuid.uuid4()))).code == "user_not_found"
    phone = {**credentials(), "phone": "+41790000000"}
    assert refusal(lambda: admin.create_user(phone)).code == "not_implemented"
    invited = refusal(lambda: admin.invite_user_by_email(credentials()["email"]))
    assert invited.code == "not_implemented"


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "", b"{", "bad_json"),
        ("POST", "", b"null", "bad_json"),
        ("POST", "", b'{"email": 7}', "validation_failed"),
        ("POST", "", b'{"email": "x@example.com", "password": 7}', "validation_failed"),
        ("POST", "", b'{"email": "x@example.com", "id": "1"}', "validation_failed"),
        ("GET", "?page=1.5", None, "validation_failed"),
        ("GET", "?per_page=0", None, "validation_failed"),
        ("GET", "/1", None, "validation_failed"),
        ("PATCH", "", None, "not_implemented"),
    ],
)
def test_a_malformed_call_of_the_admin_api_is_refused(
    method: str, path: str, body: bytes | None, code: str, app: Api
) -> None:
    url = f"{app.url}/auth/v1/admin/users{path}"
    answer = httpx.request(method, url, headers={"apikey": app.service_key}, content=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error_code"] == code


@pytest.mark.parametrize(
    "call",
    [
        "signInAnonymously()",
        'signInWithOtp({ phone: "+41790000000" })',
        'mfa.enroll({ factorType: "totp" })',
        'admin.generateLink({ type: "magiclink", email: "x@example.com" })',
    ],
)
def test_what_there_is_not_is_refused_with_an_error_that_has_a_code(
    call: str, run_js: Callable[[str], Any]
) -> None:
    new = credentials()
    error = run_js(f"""
        const client = connect(secretKey);
        await client.auth.signUp({{ email: "{new["email"]}", password: "{new["password"]}" }});
        return (await client.auth.{call}).error;
    """)
    assert error["name"] == "AuthApiError"
    assert error["code"]


def test_what_a_projects_trigger_refuses_is_created_not_at_all(back_end: Client) -> None:
    handle = {"user_metadata": {"handle": secrets.token_hex(8)}}
    back_end.auth.admin.create_user({**credentials(), **handle})
    second = credentials()
    failed = refusal(lambda: back_end.auth.admin.create_user({**second, **handle}))
    assert failed.code == "unexpected_failure"
    assert "profiles_handle_key" in failed.message
    assert second["email"] not in [user.email for user in back_end.auth.admin.list_users()]


def test_only_the_service_role_administers(app: Api) -> None:
    _, user_id = app.sign_up()
    url = f"{app.url}/auth/v1/admin/users"
    service = app.token(None, role="service_role")
    assert httpx.get(url, headers=app.headers(service)).status_code == 200
    refused = [
        app.headers(),
        app.headers(app.token(user_id)),
        app.headers(app.token(None, role="service_role", lifetime_s=-60)),
        app.headers(service[:-4] + "AAAA"),
    ]
    assert [httpx.get(url, headers=headers).status_code for headers in refused] == [403] * 4
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"apikey": "sb_secret_guess"}).status_code == 401


def test_a_token_carries_what_policies_read(app: Api, back_end: Client) -> None:
    new = credentials()
    user = back_end.auth.admin.create_user(
        {**new, "email_confirm": True, "app_metadata": {"tier": "gold"}}
    ).user
    client = app.client()
    client.auth.sign_in_with_password(new)
    for _ in range(2):
        claims = client.rpc("read_claims").execute().data
        assert (claims["sub"], claims["role"]) == (user.id, "authenticated")
        assert (claims["email"], claims["app_metadata"]["tier"]) == (new["email"], "gold")
        assert (claims["aal"], claims["is_anonymous"]) == ("aal1", False)
        client.auth.refresh_session()


def test_a_user_signs_out_and_the_session_is_gone(app: Api) -> None:
    client, _ = app.sign_up()
    session = client.auth.get_session()
    assert session is not None
    assert jwt.decode(
        session.access_token, app.keys.jwt_secret, ["HS256"], audience="authenticated"
    )
    assert client.auth.get_user(session.access_token) is not None
    client.auth.sign_out()
    assert refusal(lambda: app.client().auth.refresh_session(session.refresh_token)).status == 400
    gone = refusal(lambda: app.client().auth.get_user(session.access_token))
    assert gone.status == 403


def test_supabase_js_administers_as_supabase_py_does(run_js: Callable[[str], Any]) -> None:
    new = credentials()
    seen = run_js(f"""
        const {{ admin }} = connect(secretKey).auth;
        const credentials = {{ email: "{new["email"]}", password: "{new["password"]}" }};
        const made = await admin.createUser({{ ...credentials, email_confirm: true }});
        const {{ id }} = made.data.user;
        const signedIn = await connect(anonKey).auth.signInWithPassword(credentials);
        return {{
            id,
            read: (await admin.getUserById(id)).data.user.email,
            signedIn: signedIn.data.user.id,
            listed: (await admin.listUsers({{ page: 1, perPage: 1 }})).data,
            changed: (await admin.updateUserById(id, {{ user_metadata: {{ a: 1 }} }})).data.user,
            deleted: (await admin.deleteUser(id)).error,
            gone: (await admin.getUserById(id)).error.code,
            forbidden: (await connect(anonKey).auth.admin.listUsers()).error.code,
        }};
    """)
    assert (seen["read"], seen["signedIn"]) == (new["email"], seen["id"])
    assert [user["id"] for user in seen["listed"]["users"]] == [seen["id"]]
    assert seen["listed"]["total"] >= 1
    assert seen["changed"]["user_metadata"]["a"] == 1
    assert (seen["deleted"], seen["gone"], seen["forbidden"]) == (
        None,
        "user_not_found",
        "not_admin",
    )
