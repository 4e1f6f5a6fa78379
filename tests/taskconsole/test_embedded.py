import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskconsole import embedded
from taskconsole.embedded import EmbeddedError, Postgres, Valkey

FAST = {"fsync": "off"}


@pytest.fixture(scope="module")
def directory():
    """Reachable for the account that runs the servers when the tests run as root, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="taskconsole-embedded-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def postgres(directory):
    with Postgres(directory / "postgres", settings=FAST) as server:
        query(server, "CREATE TABLE note (text text)")
        yield server


@pytest.fixture
def valkey(directory):
    with Valkey(directory / "valkey") as server:
        yield server


def query(server, sql):
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else None


def client(server):
    return redis.Redis.from_url(server.url, decode_responses=True)


def test_postgres_keeps_its_data_its_port_and_its_password_over_a_restart(postgres):
    query(postgres, "INSERT INTO note VALUES ('restart')")
    url = postgres.url
    postgres.stop()
    with Postgres(postgres.directory, settings=FAST) as again:
        assert query(again, "SELECT text FROM note WHERE text = 'restart'") == [("restart",)]
        assert again.url == url
    postgres.start()


def test_postgres_recovers_from_kill_9(postgres):
    query(postgres, "INSERT INTO note VALUES ('crash')")
    url = postgres.url
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.start()
    assert query(postgres, "SELECT text FROM note WHERE text = 'crash'") == [("crash",)]
    assert postgres.url == url


def test_a_stale_postmaster_pid_of_a_living_process_does_not_matter(postgres):
    postgres.stop()
    (postgres.state / "data/postmaster.pid").write_text(f"{os.getpid()}\n")
    postgres.start()
    assert query(postgres, "SELECT 1") == [(1,)]


def test_postgres_takes_its_settings(postgres):
    assert query(postgres, "SHOW fsync") == [("off",)]


def test_postgres_asks_for_the_password(postgres):
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url.replace(postgres.password, "guess"))


def test_a_port_taken_by_someone_else_is_replaced(postgres):
    postgres.stop()
    with socket.create_server(("127.0.0.1", postgres.port)), Postgres(postgres.directory, settings=FAST) as again:
        assert again.port != postgres.port
        assert query(again, "SELECT 1") == [(1,)]
        assert (again.state / "port").read_text() == str(again.port)
    postgres.start()


def test_a_second_server_on_the_same_data_is_refused(postgres, monkeypatch):
    monkeypatch.setattr(embedded, "LOCK_PATIENCE", 0.1)
    with pytest.raises(EmbeddedError, match=r"running in .* already"):
        Postgres(postgres.directory).start()
    assert query(postgres, "SELECT 1") == [(1,)]


def test_valkey_keeps_its_data_and_its_port_over_a_restart_and_kill_9(valkey):
    client(valkey).set("one", "1")
    url = valkey.url
    valkey.stop()
    valkey.start()
    client(valkey).set("two", "2")
    client(valkey).execute_command("WAITAOF", 1, 0, 5000)
    os.kill(valkey.pid, signal.SIGKILL)
    valkey.start()
    assert client(valkey).mget("one", "two") == ["1", "2"]
    assert valkey.url == url


def test_valkey_without_persistence_forgets(directory):
    with Valkey(directory / "forgetful", persistence=False) as server:
        client(server).set("one", "1")
        server.stop()
        server.start()
        assert client(server).get("one") is None


def test_valkey_asks_for_the_password_and_evicts_nothing(valkey):
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=valkey.port, retry=Retry(NoBackoff(), 0)).ping()
    assert client(valkey).config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_secrets_are_readable_by_their_owner_only(postgres, valkey):
    for file in (postgres.state / "password", valkey.state / "password", valkey.state / "valkey.conf"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_kill_9_of_the_parent_leaves_no_server_and_the_data(directory):
    script = f"""
import os, signal
from pathlib import Path
from taskconsole.embedded import Postgres, Valkey
directory = Path({str(directory)!r})
servers = Postgres(directory / "orphan", settings={FAST}).start(), Valkey(directory / "orphan-valkey").start()
print(*(server.pid for server in servers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    with Postgres(directory / "orphan", settings=FAST) as again:  # waits for the end of the other
        assert query(again, "SELECT 1") == [(1,)]
    for pid in map(int, killed.stdout.split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_root_moves_out_of_a_directory_that_its_account_cannot_reach(directory):
    private = directory / "private"
    private.mkdir(mode=0o700)
    server = Valkey(private / "valkey")
    try:
        with server:
            assert client(server).ping()
            assert server.state.parent == (embedded.SYSTEM_STATE if os.getuid() == 0 else private)
    finally:
        shutil.rmtree(server.state)


def test_programs_that_the_account_cannot_reach_are_copied(directory, monkeypatch):
    private = directory / "unreadable"
    private.mkdir(mode=0o700)
    shutil.copy2(embedded.valkey_program(), private / "valkey-server")
    monkeypatch.setenv("VALKEY_BIN", str(private / "valkey-server"))
    with Valkey(directory / "copied") as server:
        assert client(server).ping()
        assert (server.state / "programs").exists() == (os.getuid() == 0)


def test_data_of_another_major_version_are_refused(directory):
    data = directory / "old/data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match=r"written by PostgreSQL 12; here is PostgreSQL .*POSTGRES_BIN"):
        Postgres(directory / "old").start()


def test_half_of_an_initdb_is_thrown_away(directory):
    (directory / "half/data.new").mkdir(parents=True)
    (directory / "half/data.new/PG_VERSION").write_text("18\n")
    with Postgres(directory / "half", settings=FAST) as server:
        assert query(server, "SELECT 1") == [(1,)]


def test_a_wrong_postgres_bin_is_named(directory, monkeypatch):
    monkeypatch.setenv("POSTGRES_BIN", "/nowhere")
    with pytest.raises(EmbeddedError, match="POSTGRES_BIN=/nowhere holds no `postgres`"):
        Postgres(directory / "nowhere").start()


def test_a_wrong_valkey_bin_is_named(directory, monkeypatch):
    monkeypatch.setenv("VALKEY_BIN", "/nowhere")
    with pytest.raises(EmbeddedError, match="VALKEY_BIN=/nowhere is no program"):
        Valkey(directory / "nowhere").start()


def test_a_server_that_cannot_start_shows_the_end_of_its_log(directory):
    with pytest.raises(EmbeddedError, match="unrecognized configuration parameter"):
        Postgres(directory / "unstartable", settings={"no_such_setting": "1", "fsync": "off"}).start()
