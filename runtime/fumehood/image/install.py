"""Installing what was fetched: the bootstrap, then each kind of package, offline in a box.

Every function here takes a folder that ends up as an image's root and files that a lock names. Programs of packages run
only through `namespace` (own user, mount, pid and network namespaces without a link); what we do ourselves with their
bytes (unpacking a wheel) runs there too. The commands are deterministic as far as they can be told to be; what is left
is `normalise`'s.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import posixpath
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.image.fetch import Fetcher, last_words, link_inputs
from fumehood.image.lockfile import Lock, Wheel
from fumehood.image.namespace import Bind, Box, run_in, run_unprivileged, work_in
from fumehood.image.owners import Owners
from fumehood.image.recipe import Recipe
from fumehood.image.tree import Tree, parts_of, unsafe
from fumehood.reasons import Reason

LIMIT_BYTES = 16 * 2**30
LIMIT_FILES = 1_000_000
# Documentation and translations are a third of a small image, and no tool reads them; licences stay.
_DPKG = (
    *("path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*"),
    *("path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "force-unsafe-io"),
)
_APT = (
    *("Dir::Etc::sourcelist=/mnt/sources.list", "Dir::Etc::sourceparts=/dev/null", "Dir::State::lists=/tmp/lists"),
    *("Dir::Cache=/tmp/cache", "Dir::Log=/tmp", "APT::Sandbox::User=root", "Acquire::Languages=none"),
    *("APT::Install-Recommends=false", "Dpkg::Use-Pty=false"),
)
_NPM_HOME = "/usr/local/lib/npm"
# Zip files name things in cp437. Nothing can be imported any more in a box whose `/` is a folder of the store.
codecs.lookup("cp437")


class Installer:
    """Fills `<folder>/rootfs`. `log` takes what the programs say; its end is shown when one fails."""

    def __init__(self, folder: Path, owners: Owners, lock: Lock, log: Path) -> None:
        """Work in `folder`, which is root's and on the store's filesystem."""
        self.folder = folder
        self.rootfs = folder / "rootfs"
        self._owners = owners
        self._lock = lock
        self._log = log

    def bootstrap(self, recipe: Recipe, fetcher: Fetcher, hides: Path) -> None:
        """Make the first root from Debian packages, as the user `fumehood`, with mmdebstrap."""
        self._own_empty(self.rootfs)
        self._package_index(fetcher)
        argv = ["mmdebstrap", "--mode=unshare", "--variant=minbase", "--format=directory", "--quiet"]
        # Every locked package, so that what the lock lists and what is installed cannot differ.
        argv += [f"--include={deb.name}" for deb in self._lock.debian]
        argv += [f"--dpkgopt={option}" for option in _DPKG]
        argv += [str(recipe.suite), "/mnt/rootfs", "deb [trusted=yes] copy:/mnt/debs ./"]
        with self._log.open("ab") as log:
            status = run_unprivileged(argv, self._environment(), log.fileno(), shows=self.folder, hides=hides)
        self._expect(status, "mmdebstrap")

    def debian(self, fetcher: Fetcher) -> None:
        """Install Debian packages with the image's own apt."""
        debs = self._package_index(fetcher)
        (debs / "sources.list").write_text("deb [trusted=yes] file:/mnt ./\n")
        options = " ".join(f"-o{setting}" for setting in _APT)
        # Alternatives link to manuals (Java's do), and where there is no folder for the links to be in, the package fails.
        script = (
            "mkdir -p /tmp/lists/partial /tmp/cache/archives/partial /usr/share/man/man1; "
            f'apt-get -qq {options} update; apt-get -qq -y {options} install "$@"; '
            "rmdir --ignore-fail-on-non-empty /usr/share/man/man1"
        )
        self._run(
            "apt-get",
            ["sh", "-ec", script, "apt", *(deb.name for deb in self._lock.debian)],
            Bind(source=debs, target="mnt"),
        )

    def trees(self, recipe: Recipe, fetcher: Fetcher) -> None:
        """Unpack wheels as plain files where the recipe says."""
        for tree in recipe.trees:
            wheel = self._wheel_of(tree.wheel)
            with fetcher.cached(wheel.sha256).open("rb") as archive:
                work_in_tree(self.folder, self._owners, partial(_unpack_wheel, archive, tree.take))

    def pip(self, recipe: Recipe, fetcher: Fetcher) -> None:
        """Install wheels with the locked pip, which does not stay in the image."""
        unpacked = {self._wheel_of(tree.wheel).name for tree in recipe.trees}
        wheels = [wheel for wheel in self._lock.wheels if wheel.name not in unpacked]
        files = {wheel.file: wheel.sha256 for wheel in (*wheels, *self._lock.tools)}
        inputs = link_inputs(fetcher, self.folder / "wheels", files)
        pip = next(tool.file for tool in self._lock.tools if tool.name == "pip")
        argv = [
            "python3",
            "-m",
            "pip",
            "install",
            "--no-index",
            "--no-deps",
            "--find-links=/mnt",
        ]
        argv += [
            "--break-system-packages",
            "--root-user-action=ignore",
            "--no-cache-dir",
            "--disable-pip-version-check",
        ]
        argv += ["--only-binary=:all:", "--no-warn-script-location", "--quiet"]
        argv += [f"{wheel.name}=={wheel.version}" for wheel in wheels]
        self._run("pip", argv, Bind(source=inputs, target="mnt"), {"PYTHONPATH": f"/mnt/{pip}"})

    def npm(self, recipe: Recipe, fetched: Path, fetcher: Fetcher) -> None:
        """Install npm packages from the cache that `npm_fetch` filled."""
        script = (
            f"mkdir -p {_NPM_HOME} && cd {_NPM_HOME} && cp /mnt/package.json /mnt/package-lock.json . && "
            f"npm ci --offline {_NPM_OPTIONS} && rm -f node_modules/.package-lock.json"
        )
        if recipe.install_scripts:
            script += " && npm rebuild --offline --ignore-scripts=false --logs-max=0 --cache=/mnt/cache"
        settings = (fetched / "npmrc").read_text().splitlines()
        # The registry must be the one that the cache was filled from; what opens it is no business of install scripts.
        (fetched / "npmrc").write_text("".join(f"{line}\n" for line in settings if not _SECRET.search(line)))
        environment = fetcher.tool_environment()
        named = {name: value for name, value in environment.items() if name.lower() == "npm_config_registry"}
        bind = Bind(source=fetched, target="mnt", writable=True)
        self._run("npm", ["sh", "-ec", script], bind, named | _NPM_ENVIRONMENT)

    def own_files(self, recipe: Recipe) -> None:
        """Write the recipe's links and files."""

        def work(target: Tree) -> None:
            for path, text in recipe.files.items():
                target.write(parts_of(path[1:]), io.BytesIO(text.encode()), 0o644)
            for path, text in recipe.append.items():
                target.append(parts_of(path[1:]), text.encode())
            for path, goal in recipe.links.items():
                target.link_symbolically(parts_of(path[1:]), goal)

        work_in_tree(self.folder, self._owners, work)

    def npm_fetch(self, packages: Mapping[str, object], fetcher: Fetcher, *, lock_only: bool = False) -> Path:
        """Run npm with the host's network over a read-only root: fill its cache by integrity, or make a lock."""
        folder = self.folder / "npm"
        self._own_empty(folder)
        for name, text in {**packages, **_npm_settings(fetcher.environment)}.items():
            data = text if isinstance(text, str) else json.dumps(text)
            (folder / name).write_text(data)
            os.chown(folder / name, self._owners.start, self._owners.start)
        command = "install --package-lock-only" if lock_only else "ci"
        script = f"cp -r /mnt /tmp/npm && cd /tmp/npm && npm {command} {_NPM_OPTIONS} && cp -f package-lock.json /mnt/"
        binds = (
            Bind(source=folder, target="mnt", writable=True),
            *(Bind(source=Path(name).resolve(), target=name[1:]) for name in ("/etc/resolv.conf", "/etc/hosts")),
        )
        environment = self._environment() | fetcher.tool_environment() | _NPM_ENVIRONMENT
        environment |= {"HOME": "/tmp", "TMPDIR": "/tmp", "NODE_EXTRA_CA_CERTS": "/mnt/ca.pem", "PATH": _PATH}  # noqa: S108 - the box's
        box = Box(root=self.rootfs, owners=self._owners, binds=binds, read_only=True, network=True)
        with self._log.open("ab") as log:
            status = run_in(box, ["sh", "-ec", script], environment, log.fileno())
        self._expect(status, "npm")
        return folder

    def _run(self, what: str, argv: Sequence[str], bind: Bind, environment: Mapping[str, str] | None = None) -> None:
        box = Box(root=self.rootfs, owners=self._owners, binds=(bind,))
        with self._log.open("ab") as log:
            status = run_in(box, argv, self._environment() | dict(environment or {}), log.fileno())
        self._expect(status, what)

    def _expect(self, status: int, what: str) -> None:
        if status:
            said = self._log.read_text(errors="backslashreplace")[-20_000:]
            raise FumehoodError(Reason.IMAGE_BUILD_FAILED, f"{what} ended with status {status}: {last_words(said, 6)}")

    def _own_empty(self, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        os.chown(folder, self._owners.start, self._owners.start)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": "/tmp",  # noqa: S108 - the box's
            "TMPDIR": "/tmp",  # noqa: S108 - the box's
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "PYTHONHASHSEED": "0",
            "SOURCE_DATE_EPOCH": str(self._lock.epoch),
        }

    def _wheel_of(self, requirement: str) -> Wheel:
        name = requirement_name(requirement)
        return next(wheel for wheel in self._lock.wheels if wheel.name == name)

    def _package_index(self, fetcher: Fetcher) -> Path:
        """A folder with the locked .debs and the index that apt wants beside them."""
        debs = link_inputs(fetcher, self.folder / "debs", {f"{deb.name}.deb": deb.sha256 for deb in self._lock.debian})
        names = [f"{deb.name}.deb" for deb in self._lock.debian]
        # dpkg-deb parses strangers' archives: as the fetcher. Its words are copied, not understood, here.
        script = 'for deb; do dpkg-deb --field "$deb"; printf "\\001"; done'
        done = fetcher.ask(["sh", "-ec", script, "index", *names], cwd=debs)
        self._expect(done.returncode, "dpkg-deb")
        stanzas = done.stdout.split("\001")[:-1]
        packages = "".join(
            f"{stanza.rstrip()}\nFilename: ./{name}\nSize: {(debs / name).stat().st_size}\nSHA256: {deb.sha256}\n\n"
            for stanza, name, deb in zip(stanzas, names, self._lock.debian, strict=True)
        ).encode()
        (debs / "Packages").write_bytes(packages)
        digest = hashlib.sha256(packages).hexdigest()
        # mmdebstrap looks for essential packages of this code name.
        (debs / "Release").write_text(
            "Origin: fumehood\nSuite: bookworm\nCodename: bookworm\nDate: Thu, 01 Jan 1970 00:00:00 UTC\n"
            f"Architectures: {self._lock.architecture}\nSHA256:\n {digest} {len(packages)} Packages\n"
        )
        return debs


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NPM_OPTIONS = "--ignore-scripts --omit=dev --no-audit --no-fund --no-update-notifier --logs-max=0 --cache=/mnt/cache"
_NPM_ENVIRONMENT = {"NPM_CONFIG_USERCONFIG": "/mnt/npmrc", "NPM_CONFIG_LOGLEVEL": "error"}
_SECRET = re.compile(r"^\s*//|_auth|_password|username|^\s*(?:cert|key)\s*=", re.IGNORECASE)
_NPMRCS = ("/usr/etc/npmrc", "/usr/local/etc/npmrc", "/etc/npmrc", "~/.npmrc")
_BUNDLES = ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE")


def work_in_tree(folder: Path, owners: Owners, work: Callable[[Tree], str | None]) -> str:
    """Call `work(tree)` with the tree `<folder>/rootfs`, in a box that sees only `folder`."""

    def inside() -> str | None:
        fd = os.open("/rootfs", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        return work(Tree(fd, limit_bytes=LIMIT_BYTES, limit_files=LIMIT_FILES))

    return work_in(Box(root=folder, owners=owners, system=False), inside)


def requirement_name(requirement: str) -> str:
    """The normalised name in `Some_Name[extra]>=1` (PEP 503)."""
    name = requirement
    for stop in "[<>=!~":
        name = name.split(stop, 1)[0]
    return normalised_name(name)


def normalised_name(name: str) -> str:
    """PEP 503: runs of `-`, `_` and `.` are one `-`, and case does not count."""
    return "-".join(part for part in name.lower().replace("_", "-").replace(".", "-").split("-") if part)


def _unpack_wheel(archive: io.BufferedReader, take: Mapping[str, str], target: Tree) -> None:
    """Copy the named files and folders of a wheel into the tree."""
    with zipfile.ZipFile(archive) as wheel:
        found = dict.fromkeys(take, False)
        for member in wheel.infolist():
            if member.is_dir():
                continue
            for source, goal in take.items():
                if member.filename != source and not member.filename.startswith(source + "/"):
                    continue
                found[source] = True
                kind = member.external_attr >> 28
                if kind not in (0, 8):  # S_IFREG >> 12
                    raise unsafe(f"{member.filename} in the wheel is no regular file")
                mode = 0o755 if member.external_attr >> 16 & 0o111 else 0o644
                path = posixpath.normpath(goal + member.filename[len(source) :])
                with wheel.open(member) as file:
                    target.write(parts_of(path[1:]), file, mode)
        absent = [source for source, there in found.items() if not there]
        if absent:
            raise FumehoodError(Reason.IMAGE_RECIPE_INVALID, f"the wheel has no {', '.join(absent)}")


def _npm_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The machine's npm settings and certificates as two files, for npm in a box that sees neither."""
    home = environment.get("HOME", "/root")
    rcs = [Path(name.replace("~", home)) for name in _NPMRCS]
    text = "".join(rc.read_text(errors="replace") + "\n" for rc in rcs if rc.is_file())
    kept = [
        line for line in text.splitlines() if not line.replace(" ", "").startswith(("cafile=", "prefix=", "cache="))
    ]
    cafiles = [
        line.partition("=")[2].strip() for line in text.splitlines() if line.replace(" ", "").startswith("cafile=")
    ]
    bundles = [
        *cafiles,
        *(environment[name] for name in _BUNDLES if name in environment),
        "/etc/ssl/certs/ca-certificates.crt",
    ]
    bundle = next((Path(name) for name in bundles if Path(name).is_file()), None)
    if bundle is None:
        return {"npmrc": "\n".join(kept) + "\n", "ca.pem": ""}
    return {"npmrc": "\n".join([*kept, "cafile=/mnt/ca.pem"]) + "\n", "ca.pem": bundle.read_text()}
