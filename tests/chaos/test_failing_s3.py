"""A run over several nodes whose object store is slow, fails now and then, and is away for half a
minute in the first training."""

import json
import logging
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from failing_s3 import failing
from moto.server import ThreadedMotoServer
from raylets import cluster_of
from tiny import flat_folder, folder_per_class, write_config
from trials import Stubborn

from ns_ray import store
from ns_ray.store.labels import open_labels

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.trial]

PILE, AWAY_SECONDS = 30, 30.0
logging.getLogger("werkzeug").setLevel(logging.ERROR)


def test_a_store_that_fails_costs_time_and_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "anybody"),
        ("AWS_SECRET_ACCESS_KEY", "anything"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    bucket = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
    urllib.request.urlopen(bucket).close()
    try:
        with failing(port, seed=0) as proxy, cluster_of(2, 2, 2) as (cluster, _):
            config = write_config(
                tmp_path / "run.yaml",
                {
                    "storage": f"s3://bucket?endpoint_override=http://127.0.0.1:{proxy.port}",
                    "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
                    "data.unlabeled": [str(flat_folder(tmp_path / "pile", PILE, start=500))],
                    "data.rows_per_shard": 10,
                    "train.epochs": 8,
                    "resources.num_workers": 2,
                    "resources.cpus_per_worker": 1,
                    "resources.label_actors": 2,
                },
            )
            user = Stubborn(["-m", "ns_ray.run", "--config", str(config)], cluster.address)
            try:
                user.until(lambda lines: any("gen-00 train: 1/" in line for line in lines))
                proxy.be_away(AWAY_SECONDS)
                user.until(lambda _: False)
            finally:
                user.give_up()
        told = "\n".join(user.lines)
        assert user.codes[-1] in (0, 5), told
        assert set(user.codes[:-1]) <= {4}, told
        assert min(proxy.counts[what] for what in ("busy", "dropped", "cut", "away")) > 0
        root = f"s3://bucket?endpoint_override=http://127.0.0.1:{port}/tiny"
        labels = open_labels(f"{root}/gen-01/pseudo_labels")
        rows = [row for shard in labels.files for row in labels.read(shard).to_pylist()]
        counts = Counter(row["key"] for row in rows)
        assert len(counts) == PILE
        assert set(counts.values()) == {1}
        result = json.loads(store.read_bytes(f"{root}/result.json"))
        assert result["generations"][-1]["val_top1"] > 0.8
        left = store.list_files(root, recursive=True)
        assert [name for name in left if name.endswith((".tmp", ".damaged", "owner.json"))] == []
    finally:
        server.stop()
