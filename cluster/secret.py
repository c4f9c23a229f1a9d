"""The secret that the cluster's own connections prove, derived from the one that Ray's nodes already share."""

import hmac

import ray


def cluster_secret() -> str:
    """Derive it from Ray's auth token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token); "" without one.

    Ray's token itself never goes over these connections, and a leaked secret does not give access to Ray.
    """
    token = ray._raylet.AuthenticationTokenLoader.instance().get_raw_token()
    raw = token.encode() if isinstance(token, str) else bytes(token or b"")
    return hmac.digest(raw, b"ling cluster connections", "sha256").hex() if raw else ""
