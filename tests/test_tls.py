"""Ray's own TLS between processes of one machine, with certificates of a CA of our own."""

import datetime
import ipaddress
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import RAY, free_ports
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ray.util import get_node_ip_address
from raylets import driver_of
from tiny import flat_folder, folder_per_class, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.trial]

HERE = get_node_ip_address()
"""What Ray makes of 127.0.0.1, too."""


def certified(folder: Path, *addresses: str) -> dict[str, str]:
    """A new CA, a certificate of it for the addresses of this machine, or for these, and what tells
    Ray so."""
    folder.mkdir()
    authority, key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"CA of {folder.name}")])

    def signed(public: ec.EllipticCurvePublicKey, subject: x509.Name, is_ca: bool) -> bytes:
        places = addresses or ("127.0.0.1", HERE)
        names = [x509.IPAddress(ipaddress.ip_address(place)) for place in places]
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(authority, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    ours = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    (folder / "ca.crt").write_bytes(signed(authority.public_key(), name, True))
    (folder / "tls.crt").write_bytes(signed(key.public_key(), ours, False))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": f"{folder}/tls.crt",
        "RAY_TLS_SERVER_KEY": f"{folder}/tls.key",
        "RAY_TLS_CA_CERT": f"{folder}/ca.crt",
    }


@contextmanager
def encrypted(tls: dict[str, str]) -> Iterator[str]:
    """The address of a head without CPUs, with a node of four, as `ray start` makes them."""
    import psutil  # comes with Ray

    port = free_ports(1)[0]
    temporary = tempfile.mkdtemp(prefix="nsr", dir="/tmp")
    shared = ("--block", "--object-store-memory=100000000", "--disable-usage-stats")
    starts = [
        ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"],
        [f"--address={HERE}:{port}", "--num-cpus=4"],
    ]
    starts[0].append(f"--temp-dir={temporary}")
    started, env = [], {**os.environ, **tls}
    try:
        for arguments in starts:
            started.append(
                subprocess.Popen(
                    [RAY, "start", *shared, *arguments],
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
            # A node that comes before its head can answer gives up.
            healthy = [RAY, "health-check", "--address", f"{HERE}:{port}"]
            for _ in range(60):
                if subprocess.run(healthy, env=env, capture_output=True).returncode == 0:
                    break
                time.sleep(0.5)
        yield f"{HERE}:{port}"
    finally:
        below = [p for one in started for p in psutil.Process(one.pid).children(recursive=True)]
        for one in started:
            one.terminate()
        for process in psutil.wait_procs(below, timeout=10)[1]:
            process.kill()
        for one in started:
            one.kill()
            one.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_run_over_tls_ends_well_and_who_has_no_certificate_is_refused(tmp_path: Path) -> None:
    tls, others = certified(tmp_path / "ours"), certified(tmp_path / "others")
    config = write_config(
        tmp_path / "run.yaml",
        {
            "storage": str(tmp_path / "runs"),
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(tmp_path / "pile", 30, start=500))],
            "data.validation_size": 12,
            "train.epochs": 1,
        },
    )
    command = ["-m", "ns_ray.run", "--config", str(config)]
    with encrypted(tls) as address:
        with driver_of(command, address) as driver:
            assert driver.ended(60) == 4, driver.text
        assert driver.lines[-1].startswith(
            f"error: RAY_ADDRESS={address}: what answers there is no"
        )
        assert "RAY_USE_TLS" in driver.lines[-1]
        with driver_of(command, address, **others) as driver:
            assert driver.ended(60) == 4, driver.text
        assert f"error: RAY_ADDRESS={address}: " in driver.lines[-1]
        assert "RAY_TLS_CA_CERT" in driver.lines[-1]
        assert not (tmp_path / "runs/tiny/gen-00").exists()
        with driver_of(command, address, **tls) as driver:
            assert driver.ended() in (0, 5), driver.text
    assert (tmp_path / "runs/tiny/result.json").exists()
