"""What the engines are told, compared whole: a field that nobody planned is a change that somebody must see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fumehood.broker.engines import MASKED, READ_ONLY, Spec
from fumehood.broker.engines.oci import runtime_spec
from fumehood.model import Frame, SeccompPolicy, UserNamespace

docker = pytest.importorskip("fumehood.broker.engines.docker", reason="the extra `docker` is not installed")

FRAME = Frame(
    image="sha256:" + "a" * 64, docker_image="sha256:" + "b" * 64, engine=None, runtime=None, cpu=1.5, memory_bytes=2**29, pids=128,
    open_files=1024, tmp_bytes=2**26, seccomp=SeccompPolicy(name="p", default_errno=1, rules=()),
    user_namespace=UserNamespace.WHEN_POSSIBLE, accept_risk=(),
)  # fmt: skip
SPEC = Spec(task="0" * 26, runtime_id="1" * 26, frame=FRAME, folder=Path("/run/box"), id_base=600_000)
SECRETS = ("argv", "workspace", "HOME", "PATH=")


def test_the_oci_bundle_is_exactly_this() -> None:
    ids = [{"containerID": 0, "hostID": 600_000, "size": 65_536}]
    assert runtime_spec(SPEC, Path("/run/box/root"), Path("/state/bin/abc"), "/fumehood/r/t.rt") == {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 1000, "gid": 1000},
            "args": ["/.fumehood/init"],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {"bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": []},
        },
        "root": {"path": "/run/box/root", "readonly": True},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/.fumehood", "type": "bind", "source": "/state/bin/abc", "options": ["bind", "ro", "nosuid", "nodev"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network", "user", "cgroup")],
            "uidMappings": ids,
            "gidMappings": ids,
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            "cgroupsPath": "/fumehood/r/t.rt",
        },
    }


def test_the_docker_container_is_exactly_this() -> None:
    assert docker.container_config(SPEC, Path("/run/control")) == {
        "Image": "sha256:" + "b" * 64,
        "Entrypoint": ["/.fumehood/init", "/.fumehood/s"],
        "Cmd": [],
        "Env": [],
        "User": "601000:601000",
        "Hostname": "box",
        "WorkingDir": "/",
        "Tty": False,
        "OpenStdin": False,
        "NetworkDisabled": False,
        "Labels": {"fumehood": "1" * 26, "fumehood.task": "0" * 26},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Binds": ["/run/control:/.fumehood:ro"],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", "seccomp=unconfined"],
            "Privileged": False,
            "Init": False,
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "OomScoreAdj": 0,
            "Memory": 2**29,
            "MemorySwap": 2**29,
            "PidsLimit": 129,
            "CpuPeriod": 100_000,
            "CpuQuota": 150_000,
            "MaskedPaths": list(MASKED),
            "ReadonlyPaths": list(READ_ONLY),
        },
    }


def test_nothing_of_a_call_is_in_what_the_engines_keep() -> None:
    """Create options stay on the engine's disk and in `inspect`; a bundle stays on ours while the box lives."""
    told = str(docker.container_config(SPEC, Path("/c"))) + str(runtime_spec(SPEC, Path("/r"), Path("/i"), "/g"))
    assert [secret for secret in SECRETS if secret in told] == []


def test_two_boxes_differ_in_their_ids_alone() -> None:
    other = replace(SPEC, id_base=SPEC.id_base + 65_536)
    assert {SPEC.host_uid, other.host_uid} == {601_000, 666_536}
    first, second = (runtime_spec(spec, Path("/r"), Path("/i"), "/g") for spec in (SPEC, other))
    del first["linux"]["uidMappings"], first["linux"]["gidMappings"], second["linux"]["uidMappings"], second["linux"]["gidMappings"]
    assert first == second


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:2375", "ssh://host", "http://localhost", "npipe://x", "", "unix:/x"])
def test_an_engine_elsewhere_is_refused_before_it_is_dialled(url: str) -> None:
    from fumehood.faults import BoxFailed

    with pytest.raises(BoxFailed, match="not on this host"):
        docker.connect(url)
