"""How to log in to NATS: a credentials file and TLS files, read and checked before anything connects."""

import re
import ssl
from pathlib import Path

import attrs
import nkeys  # type: ignore[import-untyped]  # it has no types

from models.errors import BrokerError

_CREDS_PART = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s+(\S+)\s+-+END")


@attrs.frozen(kw_only=True)
class Access:
    """How to log in: a credentials file, and TLS files; None where not used."""

    creds: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def tls_context(self) -> ssl.SSLContext | None:
        """Builds the TLS context, or None when no TLS file is set.

        Raises:
            BrokerError: a file can't be read as what it should be.
        """
        if not (self.tls_ca or self.tls_cert):
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"NATS_TLS_CA, NATS_TLS_CERT, NATS_TLS_KEY: can't be used ({error})") from error
        return context

    def check_creds(self) -> None:
        """Reads the credentials file once, for nats-py reads it only in the middle of a connect.

        Raises:
            BrokerError: it can't be read, or holds no user's JWT and seed.
        """
        if self.creds is None:
            return
        try:
            found = dict(_CREDS_PART.findall(self.creds.read_bytes()))
            if not found.keys() >= {b"NATS USER JWT", b"USER NKEY SEED"}:
                raise ValueError("expected the JWT and the seed of a user")
            nkeys.from_seed(bytearray(found[b"USER NKEY SEED"])).wipe()
        except (OSError, ValueError, nkeys.NkeysError) as error:
            raise BrokerError(f"NATS_CREDS: {self.creds} can't be used ({error})") from error
