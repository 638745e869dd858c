"""Decentralised logins for tests: an operator, its accounts, and users' credentials files, signed here."""

import base64
import json
import os
from pathlib import Path

import nkeys


def _key(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))


def _jwt(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, claims: dict[str, object], **rest: object) -> str:
    """A JWT as NATS has them: issuer and subject are public keys, the signature is the issuer's."""
    names = {"jti": name, "iat": 1, "iss": issuer.public_key.decode(), "sub": subject.public_key.decode()}
    parts: list[dict[str, object]] = [
        {"typ": "JWT", "alg": "ed25519-nkey"},
        {**names, "name": name, "nats": {"version": 2, **claims}, **rest},
    ]
    text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    return f"{text}.{_base64(issuer.sign(text.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Operator:
    """An operator with a system account and one account that may use JetStream without limits."""

    def __init__(self) -> None:
        self._key = _key(nkeys.PREFIX_BYTE_OPERATOR)
        self._system = _key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._account = _key(nkeys.PREFIX_BYTE_ACCOUNT)

    def config(self) -> str:
        """What the server's configuration needs to know: the operator, and its accounts in memory."""
        core = dict.fromkeys(["subs", "data", "payload", "imports", "exports", "conn", "leaf"], -1) | {
            "wildcards": True
        }
        storage = dict.fromkeys(["mem_storage", "disk_storage", "streams", "consumer"], -1)
        accounts = [(self._system, "SYS", core), (self._account, "APP", core | storage)]
        preload = "\n".join(
            f"{key.public_key.decode()}: {_jwt(self._key, key, name, {'type': 'account', 'limits': limits})}"
            for key, name, limits in accounts
        )
        own = _jwt(self._key, self._key, "OP", {"type": "operator"})
        system = self._system.public_key.decode()
        return f"operator: {own}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{\n{preload}\n}}"

    def write_creds(self, path: Path, **claims: object) -> Path:
        """Writes the credentials file of a new user of the account; ``exp`` ends it at an instant."""
        user = _key(nkeys.PREFIX_BYTE_USER)
        limits = {"type": "user", "subs": -1, "data": -1, "payload": -1}
        token = _jwt(self._account, user, "worker", limits, **claims)
        seed = user.seed.decode()
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n",
            encoding="ascii",
        )
        return path
