"""A Google service account that exists on loopback only: its key file, and the tokens it gets for it."""

import json
import pathlib
import secrets
import threading
import time
import urllib.parse

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

EMAIL = "emulator@emulator-project.iam.gserviceaccount.com"
LIFETIME = 3600  # s, of a token, as Google's


class ServiceAccount:
    """Checks signed assertions (RFC 7523) and hands out bearer tokens."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._tokens: dict[str, float] = {}
        self._lock = threading.Lock()

    def write_key(self, path: pathlib.Path, token_uri: str) -> pathlib.Path:
        """Writes the JSON key that GOOGLE_APPLICATION_CREDENTIALS can name; its key is worth nothing elsewhere."""
        form = serialization.PrivateFormat.PKCS8
        key = self._key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
        account = {"type": "service_account", "project_id": "emulator-project", "private_key_id": "1"}
        account |= {"private_key": key, "client_email": EMAIL, "client_id": "1", "token_uri": token_uri}
        path.write_text(json.dumps(account))
        return path

    def token(self, form: str) -> dict[str, object]:
        """The token endpoint's answer to a form-encoded request.

        Raises:
          ValueError: the assertion is not signed by the account's key, or asks for no scope.
        """
        fields = urllib.parse.parse_qs(form)
        pem = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        claims = jwt.decode(fields["assertion"][0], certs=pem)
        if not claims.get("scope"):
            raise ValueError("invalid_scope")
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._tokens[token] = time.monotonic() + LIFETIME
        return {"access_token": token, "expires_in": LIFETIME, "token_type": "Bearer"}

    def accepts(self, authorization: str) -> bool:
        """Whether a request's Authorization header carries a valid token."""
        kind, _, token = authorization.partition(" ")
        with self._lock:
            return kind == "Bearer" and self._tokens.get(token, 0.0) > time.monotonic()

    def revoke(self) -> None:
        """Makes all tokens invalid."""
        with self._lock:
            self._tokens.clear()
