"""Fetching what a lock names, through the machine's own apt, pip and npm configuration. Nothing fetched is executed.

apt and pip run as the fetcher, an id that owns nothing and may become nobody else; npm runs in a box with the host's
network, because it comes out of the image. What they bring is copied, while it is hashed, into a cache that only root
writes, named by SHA-256; a file whose hash is not the lock's never gets there. So install steps take locked bytes only,
whatever a mirror, a proxy or a download tool did.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.image.lockfile import Deb, Wheel
from fumehood.image.owners import Owners
from fumehood.reasons import Reason

# Images have Debian 12's Python; wheels are chosen for it, whatever Python this host has.
PYTHON = "3.11"
_PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_28", "manylinux_2_31", "manylinux_2_34")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_PASSED_ON = re.compile(
    r"PIP_\w+|npm_config_\w+|NPM_CONFIG_\w+|(?:https?|no|all|ftp)_proxy|(?:HTTPS?|NO|ALL|FTP)_PROXY"
    r"|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS"
)
_PIP_WHEELS = Path("/usr/share/python-wheels")
_FETCH_S = 900
_MAX_FILE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches into `cache` (root's) by way of `scratch` (the fetcher's, gone after the build)."""

    cache: Path
    scratch: Path
    owners: Owners
    environment: Mapping[str, str]

    def cached(self, sha256: str) -> Path:
        """Where a file of this hash is, once fetched."""
        return self.cache / sha256

    def debs(self, wanted: Sequence[Deb], image: str, architecture: str) -> None:
        """Fetch Debian packages. Raises IMAGE_VANISHED when a version is gone."""
        missing = [deb for deb in wanted if not self.cached(deb.sha256).exists()]
        if not missing:
            return
        versions = [f"{deb.name}={deb.version}" for deb in missing]
        folder = self.folder("debs")
        apt = Apt(self, architecture)
        said = apt.run("apt-get", "download", *versions, cwd=folder)
        if said is not None and apt.refresh():
            said = apt.run("apt-get", "download", *versions, cwd=folder)
        if said is not None:
            raise _vanished(said, image, r"Version '(?P<version>[^']+)' for '(?P<name>[^']+)' was not found")
        fetched: dict[str, Path] = {}
        for path in folder.glob("*.deb"):
            name, version, _ = path.name.split("_", 2)
            fetched[f"{name}={version.replace('%3a', ':')}"] = path
        for deb, version in zip(missing, versions, strict=True):
            self._take(fetched.get(version), deb.sha256, version, image)

    def wheels(self, wanted: Iterable[Wheel], image: str, architecture: str) -> None:
        """Fetch wheels. Raises IMAGE_VANISHED when a version is gone."""
        missing = [wheel for wheel in wanted if not self.cached(wheel.sha256).exists()]
        if not missing:
            return
        folder = self.folder("wheels")
        lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in missing]
        (folder / "requirements.txt").write_text("".join(lines))
        said = self.pip_download(
            ["--no-deps", "--require-hashes", "-r", str(folder / "requirements.txt")], folder, architecture
        )
        if said is not None:
            raise _vanished(said, image, r"No matching distribution found for (?P<name>[^ =]+)==(?P<version>\S+)")
        for wheel in missing:
            self._take(folder / wheel.file, wheel.sha256, wheel.file, image)

    def pip_download(self, arguments: Sequence[str], folder: Path, architecture: str) -> str | None:
        """`pip download` of wheels only, for the images' Python; what pip said when it failed, else None."""
        machine = _MACHINES[architecture]
        platforms = [f"--platform={platform}_{machine}" for platform in _PLATFORMS]
        target = ["--implementation=cp", f"--python-version={PYTHON}", "--abi=cp311", "--abi=abi3", "--abi=none"]
        options = [
            "--only-binary=:all:",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--progress-bar=off",
            "--quiet",
        ]
        # Debian's own copy of pip: the environment we run in may lie where the fetcher cannot read.
        bundled = sorted(_PIP_WHEELS.glob("pip-*.whl"))
        environment = {"PYTHONPATH": str(bundled[-1])} if bundled else {}
        return self.run(
            [
                "/usr/bin/python3",
                "-m",
                "pip",
                "download",
                *options,
                *target,
                *platforms,
                f"--dest={folder}",
                *arguments,
            ],
            cwd=folder,
            environment=environment,
        )

    def run(self, argv: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None) -> str | None:
        """Run a download tool as the fetcher; what it said when it failed, else None."""
        done = self.ask(argv, cwd=cwd, environment=environment)
        return None if done.returncode == 0 else done.stdout + done.stderr

    def ask(
        self, argv: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a tool as the fetcher, who can become nobody else."""
        uid = str(self.owners.fetcher)
        drop = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps=-all", "--no-new-privs", "--"]
        try:
            return subprocess.run(
                [*drop, *argv],
                cwd=cwd,
                env=self.tool_environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="backslashreplace",
                timeout=_FETCH_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FumehoodError(Reason.IMAGE_BUILD_FAILED, f"{argv[0]} took more than {_FETCH_S} s") from None

    def tool_environment(self) -> dict[str, str]:
        """A clean environment with the machine's package index, proxy and certificate settings."""
        passed = {name: value for name, value in self.environment.items() if _PASSED_ON.fullmatch(name)}
        home = str(self.folder("home"))
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home, "TMPDIR": home, "LC_ALL": "C.UTF-8"} | passed

    def folder(self, name: str) -> Path:
        """A folder of the fetcher's own."""
        folder = self.scratch / name
        if not folder.exists():
            folder.mkdir(mode=0o755)
            os.chown(folder, self.owners.fetcher, self.owners.fetcher)
        return folder

    def keep(self, path: Path) -> str:
        """Copy a fetched file into the cache under the hash it has; the hash."""
        # O_NOFOLLOW and a type check: the folder is the fetcher's, and root must not read what it points at.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        temporary = self.cache / f".{path.name}.{os.getpid()}"
        digest = hashlib.sha256()
        with os.fdopen(fd, "rb") as source, temporary.open("wb") as copy:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_size > _MAX_FILE_BYTES:
                raise FumehoodError(Reason.IMAGE_BUILD_FAILED, f"{path.name} is no file, or too large")
            while data := source.read(2**20):
                digest.update(data)
                copy.write(data)
        temporary.chmod(0o644)
        temporary.replace(self.cached(digest.hexdigest()))
        return digest.hexdigest()

    def _take(self, path: Path | None, sha256: str, name: str, image: str) -> None:
        if path is None or not path.exists():
            raise FumehoodError(Reason.IMAGE_BUILD_FAILED, f"{name} was not fetched")
        if self.keep(path) != sha256:
            raise FumehoodError(
                Reason.IMAGE_VANISHED,
                f"{image}: {name} is not the file that the lock names (its SHA-256 differs)",
                remedy=f"If a new build of it was to be expected: `fumehood image lock --upgrade {image}`.",
            )


class Apt:
    """apt with a state of its own and this machine's sources: nothing of the host's apt is changed, no root needed."""

    def __init__(self, fetcher: Fetcher, architecture: str) -> None:
        """Read the lists that the host has; `refresh` fetches newer ones."""
        self._fetcher = fetcher
        self._folder = fetcher.folder("apt")
        self._lists = Path("/var/lib/apt/lists")
        (self._folder / "status").touch()
        self._architecture = architecture

    def options(self) -> list[str]:
        """Command-line options that point apt at this state."""
        settings = {
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
            "Dir::Cache": str(self._folder / "cache"),
            "Dir::Log": str(self._folder),
            "Dir::State::lists": str(self._lists),
            "Dir::State::status": str(self._folder / "status"),
        }
        if sources := self._fetcher.environment.get("FUMEHOOD_APT_SOURCES"):
            settings |= {"Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "/dev/null"}
        return [f"-o{name}={value}" for name, value in settings.items()]

    def run(self, program: str, *arguments: str, cwd: Path) -> str | None:
        """Run apt-get or apt-cache; what it said when it failed, else None."""
        done = self.ask(program, *arguments, cwd=cwd)
        return None if done.returncode == 0 else done.stdout + done.stderr

    def ask(self, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run apt-get or apt-cache."""
        for folder in ("cache/archives/partial", "lists/partial"):
            self._fetcher.ask(["mkdir", "-p", str(self._folder / folder)], cwd=self._folder)
        return self._fetcher.ask([program, *self.options(), "-qq", *arguments], cwd=cwd)

    def refresh(self) -> bool:
        """Fetch today's lists into our own state; False when that has been done."""
        if self._lists == self._folder / "lists":
            return False
        self._lists = self._folder / "lists"
        said = self.run("apt-get", "update", cwd=self._folder)
        if said is not None:
            raise FumehoodError(Reason.IMAGE_BUILD_FAILED, f"apt-get update failed: {last_words(said)}")
        return True


def link_inputs(fetcher: Fetcher, folder: Path, files: Mapping[str, str]) -> Path:
    """A folder of root's with these names, each a hard link to the cached file of its hash."""
    folder.mkdir(mode=0o755)
    for name, sha256 in files.items():
        os.link(fetcher.cached(sha256), folder / name)
    return folder


def forget_unlocked(cache: Path, locked: set[str]) -> None:
    """Drop cached files that no lock names any more."""
    for path in cache.iterdir():
        if path.name not in locked:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def last_words(said: str, lines: int = 3) -> str:
    """The end of a tool's output as one line that is safe to print."""
    kept = [
        line.strip()
        for line in said.splitlines()
        if line.strip() and not line.startswith(("WARNING", "W:", "npm notice"))
    ]
    text = " / ".join(kept[-lines:]) or "it said nothing"
    return "".join(c if c.isprintable() else "?" for c in text)[-600:]


def _vanished(said: str, image: str, pattern: str) -> FumehoodError:
    gone = re.search(pattern, said)
    if gone is None:
        return FumehoodError(
            Reason.IMAGE_BUILD_FAILED,
            f"{image}: fetching failed: {last_words(said)}",
            remedy="Check the network and try again.",
        )
    return FumehoodError(
        Reason.IMAGE_VANISHED,
        f"{image}: {gone['name']} {gone['version']} is locked but no longer to be had",
        remedy=f"`fumehood image lock --upgrade {image}` takes today's versions.",
    )
