"""Images as an operator meets them: the store that ships, building again, importing, and what strangers try."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest

from fumehood.image.owners import owners
from fumehood.image.recipe import shipped_recipes
from fumehood.image.store import ImageStore
from fumehood.state import state_folder

pytestmark = pytest.mark.root
NAMES = ("base", "python", "node", "mcp-reference")
COMMANDS = [f"mcp-server-{name}" for name in ("everything", "fetch", "filesystem", "git", "memory", "time")]


@pytest.fixture(scope="module")
def store() -> ImageStore:
    return ImageStore(state_folder(os.environ, 0).images)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other ids can pass through, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="images-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def borrowed(place: Path, store: ImageStore) -> Path:
    """A state folder of our own in which the shipped images are links to the real ones, and their locked files."""
    images = place / "state" / "images"
    (images / "names").mkdir(parents=True)
    for image in store.list():
        mine = images / image.digest.replace(":", "-")
        mine.mkdir()
        (mine / "image.json").write_text(json.dumps({**image.about, "docker_id": None}))
        (mine / "rootfs").symlink_to(store.rootfs(image.digest))
        for name in image.names:
            (images / "names" / name).write_text(image.digest)
    subprocess.run(["cp", "-al", str(store.folder / ".cache"), str(images / ".cache")], check=True)
    return place / "state"


@pytest.fixture
def recipes(place: Path) -> Path:
    """A copy of the recipes and locks that ship."""
    shutil.copytree(shipped_recipes(), place / "recipes")
    return place / "recipes"


def fumehood(state: Path, *argv: str, status: int = 0, **more: str) -> tuple[Any, str]:
    """Run a command with --json; what it printed, parsed, and what it said."""
    # No Docker engine: what these tests make must not stay in it.
    env = {**os.environ, "FUMEHOOD_STATE": str(state), "DOCKER_HOST": "tcp://127.0.0.1:1", **more}
    command = [sys.executable, "-c", "from fumehood.cli.main import main; main()", "image", *argv, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stderr
    return (json.loads(done.stdout) if done.stdout else None), done.stderr


def about(store: ImageStore, name: str) -> tuple[dict[str, Any], Path]:
    image = store.resolve(name)
    assert image is not None, "scripts/build-images makes it"
    known = store.about(image.digest)
    assert known is not None
    return known, store.rootfs(image.digest)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_root_has_mount_points_owners_of_slot_zero_and_nothing_special(store: ImageStore, name: str) -> None:
    root = about(store, name)[1]
    for folder in ("workspace", "tmp", "mnt", "proc", "dev", "run", "sys", ".fumehood"):
        assert (root / folder).is_dir()
        assert not (root / folder).is_symlink()
    start = owners().start
    odd = [
        path
        for folder, folders, files in os.walk(root)
        for path in (Path(folder) / entry for entry in (*folders, *files))
        if not (
            (path.is_symlink() or path.is_dir() or path.is_file())
            and start <= path.lstat().st_uid < start + 65_534
            and start <= path.lstat().st_gid < start + 65_534
            and (path.is_symlink() or path.lstat().st_mode & 0o6000 == 0)
        )
    ]
    assert odd == []


def test_shipped_images_have_their_commands_and_a_user_for_the_box(store: ImageStore) -> None:
    assert "box:x:1000:1000::/tmp:/bin/sh\n" in (about(store, "base")[1] / "etc/passwd").read_text()
    assert (about(store, "python")[1] / "usr/bin/git").is_file()
    assert (about(store, "node")[1] / "usr/local/bin/node").is_file()
    binaries = about(store, "mcp-reference")[1] / "usr/local/bin"
    assert [name for name in COMMANDS if not os.path.lexists(binaries / name)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_image_has_a_bill_of_materials_of_what_its_locks_name(store: ImageStore, name: str) -> None:
    known, root = about(store, name)
    document = json.loads((root.parent / "sbom.json").read_text())
    assert document["metadata"]["component"]["version"] == known["digest"]
    assert len(document["components"]) == len(known["packages"]) > 90
    installed = (root / "var/lib/dpkg/status").read_text()
    listed = {row["name"] for row in known["packages"] if row["type"] == "debian"}
    assert listed == {line.split()[1] for line in installed.splitlines() if line.startswith("Package: ")}


@pytest.mark.docker
@pytest.mark.parametrize("name", NAMES)
def test_the_docker_image_has_one_layer_and_no_configuration(store: ImageStore, name: str) -> None:
    docker = pytest.importorskip("docker")
    client = docker.from_env()
    image = client.images.get(about(store, name)[0]["docker_id"]).attrs
    client.close()
    assert len(image["RootFS"]["Layers"]) == 1
    config = image["Config"] or {}
    unwanted = ("Env", "Cmd", "Entrypoint", "Volumes", "Labels", "Healthcheck", "User", "WorkingDir", "ExposedPorts")
    assert {key: config[key] for key in unwanted if config.get(key)} == {}


def test_building_what_is_up_to_date_reads_and_changes_nothing(store: ImageStore, borrowed: Path) -> None:
    built, said = fumehood(borrowed, "build", *NAMES)
    assert {row["name"]: row["digest"] for row in built} == {name: about(store, name)[0]["digest"] for name in NAMES}
    assert not any(row["built"] for row in built)
    assert "bootstrapping" not in said


def test_the_same_recipe_and_lock_give_the_same_digest(store: ImageStore, place: Path) -> None:
    images = place / "state" / "images"
    images.mkdir(parents=True)
    subprocess.run(["cp", "-al", str(store.folder / ".cache"), str(images / ".cache")], check=True)
    built, said = fumehood(place / "state", "build", "python")
    assert "bootstrapping" in said
    assert {row["name"]: row["digest"] for row in built} == {
        name: about(store, name)[0]["digest"] for name in ("base", "python")
    }
    assert all(row["built"] for row in built)
    assert sorted(path.name for path in images.glob(".staging*")) == []


def test_a_version_that_is_no_longer_to_be_had_is_one_line_with_its_remedy(borrowed: Path, recipes: Path) -> None:
    lock = json.loads((recipes / "python.lock").read_text())
    lock["debian"][0] |= {"version": "0.0.1-nobody-has-this", "sha256": "0" * 64}
    (recipes / "python.lock").write_text(json.dumps(lock))
    _, said = fumehood(borrowed, "build", "python", "--recipes", str(recipes), status=125)
    last = said.splitlines()[-1]
    assert last.startswith("fumehood: image_vanished: python: ")
    assert "0.0.1-nobody-has-this" in last
    assert "fumehood image lock --upgrade python" in last


def test_a_locked_file_with_another_hash_is_not_installed(borrowed: Path, recipes: Path) -> None:
    lock = json.loads((recipes / "python.lock").read_text())
    lock["debian"][0] |= {"sha256": "0" * 64}
    (recipes / "python.lock").write_text(json.dumps(lock))
    _, said = fumehood(borrowed, "build", "python", "--recipes", str(recipes), status=125)
    assert "its SHA-256 differs" in said.splitlines()[-1]
    assert not (borrowed / "images" / ".cache" / ("0" * 64)).exists()


def test_a_hostile_setup_py_is_never_run(borrowed: Path, recipes: Path, place: Path) -> None:
    (place / "wheels").mkdir()
    (place / "wheels").chmod(0o777)
    source = f"open({str(place / 'wheels' / 'owned')!r}, 'w').write('x')\n".encode()
    with tarfile.open(place / "wheels" / "evil_fumehood_test-1.0.tar.gz", "w:gz") as tar:
        for name, data in (
            ("setup.py", source),
            ("PKG-INFO", b"Metadata-Version: 1.0\nName: evil-fumehood-test\nVersion: 1.0\n"),
        ):
            member = tarfile.TarInfo(f"evil_fumehood_test-1.0/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (recipes / "evil.yaml").write_text("name: evil\nextends: python\npip: [evil-fumehood-test]\n")
    options = {"PIP_FIND_LINKS": str(place / "wheels"), "PIP_NO_INDEX": "1"}
    _, said = fumehood(borrowed, "lock", "evil", "--recipes", str(recipes), status=125, **options)
    assert "pip finds no wheels for evil-fumehood-test" in said.splitlines()[-1]
    assert not (place / "wheels" / "owned").exists()


class _Registry(http.server.BaseHTTPRequestHandler):
    """An npm registry with one package, whose postinstall looks around and leaves a note in its folder."""

    script = "(id -u; cat /proc/self/uid_map; cat /proc/net/dev; ls /) > ran"

    def do_GET(self) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            data = json.dumps({"name": "evil", "version": "1.0.0", "scripts": {"postinstall": self.script}}).encode()
            member = tarfile.TarInfo("package/package.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tarball = self.server.tarball = getattr(self.server, "tarball", out.getvalue())  # type: ignore[attr-defined]  # gzip holds the time: one for all
        integrity = "sha512-" + b64encode(sha512(tarball).digest()).decode()
        address = f"http://{self.headers['Host']}/evil/-/evil-1.0.0.tgz"
        version = {"name": "evil", "version": "1.0.0", "hasInstallScript": True}
        version |= {"dist": {"tarball": address, "integrity": integrity}}
        body = {"name": "evil", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        answer = tarball if self.path.endswith(".tgz") else json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_hostile_postinstall_runs_only_when_the_recipe_says_so_and_only_offline_in_a_box(
    borrowed: Path, recipes: Path, registry: str, allowed: bool
) -> None:
    flag = "install_scripts: true\n" if allowed else ""
    (recipes / "evil.yaml").write_text(f"name: evil\nextends: node\n{flag}npm: {{evil: '*'}}\n")
    options = {"npm_config_registry": registry}
    fumehood(borrowed, "lock", "evil", "--recipes", str(recipes), **options)
    assert registry not in (recipes / "evil.lock").read_text()
    fumehood(borrowed, "build", "evil", "--recipes", str(recipes), **options)
    ran = about(ImageStore(borrowed / "images"), "evil")[1] / "usr/local/lib/npm/node_modules/evil/ran"
    assert ran.exists() == allowed
    if allowed:
        said = ran.read_text().splitlines()
        assert said[0] == "0"
        assert said[1].split() == ["0", str(owners().start), "65535"]
        assert [line.split(":")[0].strip() for line in said if ":" in line][-1] == "lo"
        assert {"state", "work", "lib.usr-is-merged"}.isdisjoint(said)


def archive(path: Path, *members: tuple[bytes, str, str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for kind, name, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, 0o4755
            tar.addfile(member)
    return path


def test_importing_a_root_drops_what_is_dangerous_and_can_be_repeated_and_removed(place: Path) -> None:
    state = place / "state"
    path = archive(
        place / "root.tar",
        (tarfile.DIRTYPE, "bin", ""),
        (tarfile.REGTYPE, "bin/su", ""),
        (tarfile.CHRTYPE, "dev/null", ""),
    )
    first, said = fumehood(state, "import", "mine", str(path))
    assert "1 devices, pipes or sockets left out" in said
    again, _ = fumehood(state, "import", "other", str(path))
    assert first["digest"] == again["digest"]
    root = about(ImageStore(state / "images"), "mine")[1]
    assert (root / "bin/su").stat().st_mode & 0o7777 == 0o755
    assert (root / "bin/su").stat().st_uid == owners().start
    assert list((root / "dev").iterdir()) == []
    assert (root / "workspace").is_dir()
    assert fumehood(state, "rm", "mine")[0]["digest"] is None
    assert fumehood(state, "rm", "other")[0]["digest"] == first["digest"]
    assert not root.exists()
    assert fumehood(state, "list")[0] == []


@pytest.mark.parametrize(
    "members",
    [
        [(tarfile.SYMTYPE, "proc", "/etc")],
        [(tarfile.SYMTYPE, "a", "/tmp"), (tarfile.REGTYPE, "a/fumehood-was-here", "")],
        [(tarfile.LNKTYPE, "a", "/etc/shadow")],
        [(tarfile.REGTYPE, "../../names/base", "")],
    ],
)
def test_an_import_that_reaches_out_is_one_line_and_leaves_nothing(
    place: Path, members: list[tuple[bytes, str, str]]
) -> None:
    _, said = fumehood(place / "state", "import", "evil", str(archive(place / "root.tar", *members)), status=125)
    assert said.splitlines()[-1].startswith("fumehood: image_unsafe: ")
    left = [path.name for path in (place / "state" / "images").iterdir() if not path.name.startswith(".")]
    assert left == []
    assert not Path("/tmp/fumehood-was-here").exists()


def test_an_image_that_a_process_has_mounted_is_not_removed(place: Path) -> None:
    state = place / "state"
    digest = fumehood(state, "import", "used", str(archive(place / "root.tar", (tarfile.DIRTYPE, "bin", ""))))[0][
        "digest"
    ]
    root = ImageStore(state / "images").rootfs(digest)
    script = 'mount --bind "$0" /mnt && echo ready && read line'
    user = ["unshare", "--mount", "sh", "-ec", script, str(root)]
    with subprocess.Popen(user, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        _, said = fumehood(state, "rm", "used", status=125)
        process.communicate(b"\n")
    assert "image_in_use" in said
    fumehood(state, "rm", "used")


def test_making_images_without_root_is_refused_by_name(place: Path) -> None:
    command = [sys.executable, "-c", "from fumehood.cli.main import main; main()", "image", "build"]
    env = {**os.environ, "FUMEHOOD_STATE": str(place / "state")}
    done = subprocess.run(command, env=env, user="nobody", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125
    assert "images are made by root" in done.stderr
