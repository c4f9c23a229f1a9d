"""A certificate authority for tests, and a proxy that records all bytes that pass through it."""

import asyncio
import datetime
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"


def _builder(name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    signer = ec.generate_private_key(ec.SECP256R1())
    ca = _builder("ca", signer, _name("ca")).add_extension(x509.BasicConstraints(True, 0), True)
    return signer, ca.sign(signer, SHA256())


def authority() -> dict[str, bytes]:
    """Create an authority; returns its files as in a Secret of kind kubernetes.io/tls."""
    signer, ca = _authority()
    return {"tls.crt": ca.public_bytes(Encoding.PEM), "tls.key": _pem(signer)}


def environment(folder: Path) -> dict[str, str]:
    """Create an authority in `folder` and its certificate for loopback; returns Ray's variables that name them."""
    folder.mkdir(exist_ok=True)
    (signer, ca), key = _authority(), ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    leaf = _builder("ling", key, ca.subject).add_extension(names, False).sign(signer, SHA256())
    contents = {
        "RAY_TLS_SERVER_CERT": leaf.public_bytes(Encoding.PEM),
        "RAY_TLS_SERVER_KEY": _pem(key),
        "RAY_TLS_CA_CERT": ca.public_bytes(Encoding.PEM),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {"RAY_USE_TLS": "1"} | {name: str(folder / name) for name in contents}


@asynccontextmanager
async def recording(port: int) -> AsyncIterator[tuple[int, bytearray]]:
    """Run a proxy for a local port; yields its port and all bytes that it passes on in both directions."""
    seen = bytearray()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                seen.extend(data)
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, port)
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    async with await asyncio.start_server(serve, HOST, 0) as proxy:
        yield proxy.sockets[0].getsockname()[1], seen
