"""A bucket to work in: a real S3 client, a server on loopback."""

import uuid

import pytest


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    from tests.loopback_bucket import LoopbackBuckets

    with LoopbackBuckets() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    """Clients find the server by their environment, as they do elsewhere."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(server, client):
    """The address of a new bucket."""
    server.faults.clear()
    server.log.clear()
    name = uuid.uuid4().hex
    client.mkdir(name)
    return f"s3://{name}"
