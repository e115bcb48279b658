"""Where nginx, its headers-more module and openssl are; fetched where they are missing.

Order: NGINX_BIN, PATH, `.tools/nginx/`. That folder is filled from Debian packages lying in `.carry/` or
fetched with apt-get, unpacked beside the system and never over it; their libraries serve these programs
alone. Knows no configuration.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
CARRIED = _ROOT / ".carry"
UNPACKED = _ROOT / ".tools" / "nginx"
PACKAGES = (
    "nginx",
    "libnginx-mod-http-headers-more-filter",
    "openssl",
    "libcrypt1",
    "libpcre2-8-0",
    "libssl3",
    "zlib1g",
)
_HEADERS_MORE = Path("lib/nginx/modules/ngx_http_headers_more_filter_module.so")
_WHAT_TO_DO = f"install nginx and {PACKAGES[1]}, set NGINX_BIN, or put both .deb files into {CARRIED.name}/"


class NginxError(Exception):
    """Nginx cannot be had or does not run; one line."""


@dataclass(frozen=True)
class Programs:
    """What a server needs; `library_folders` are for these programs alone, empty where the system has all."""

    nginx: Path
    openssl: Path
    library_folders: tuple[Path, ...] = ()

    @property
    def headers_more(self) -> Path:
        """The module that rewrites a request's headers, beside the binary as Debian lays them out."""
        return self.nginx.parents[1] / _HEADERS_MORE

    def command(self, program: Path) -> list[str]:
        """How to run one of them; only it sees the libraries, not what starts it."""
        if not self.library_folders:
            return [str(program)]
        return ["env", f"LD_LIBRARY_PATH={os.pathsep.join(map(str, self.library_folders))}", str(program)]


def ensure_programs() -> Programs:
    """The programs, fetched first if the machine lacks them.

    Raises:
        NginxError: There are none and none can be had.
    """
    if named := os.environ.get("NGINX_BIN"):
        return _checked(_of_system(Path(named)))
    found = shutil.which("nginx")
    if found and (programs := _of_system(Path(found).resolve())).headers_more.is_file():
        return programs
    if not (UNPACKED / "usr/sbin/nginx").is_file():
        _fill(UNPACKED)
    return _checked(unpacked_programs(UNPACKED))


def unpacked_programs(folder: Path) -> Programs:
    """The programs in a folder that Debian packages were unpacked into."""
    libraries = sorted({path.parent for path in folder.glob("**/lib*.so.*") if path.is_file()})
    return Programs(folder / "usr/sbin/nginx", folder / "usr/bin/openssl", tuple(libraries))


def unpack(packages: list[Path], folder: Path) -> None:
    """Unpack Debian packages into `folder`.

    Raises:
        NginxError: dpkg-deb is missing or refused one.
    """
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(folder)], f"{package.name} cannot be unpacked")


def _of_system(nginx: Path) -> Programs:
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NginxError("there is no openssl on PATH: install it")
    return Programs(nginx, Path(openssl))


def _checked(programs: Programs) -> Programs:
    for path in (programs.nginx, programs.headers_more):
        if not path.is_file():
            raise NginxError(f"there is no {path}: {_WHAT_TO_DO}")
    return programs


def _fill(folder: Path) -> None:
    """Unpack into a folder of its own and rename it: another process may be doing the same."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        built = Path(scratch) / "nginx"
        built.mkdir()
        unpack(sorted(CARRIED.glob("*.deb")) or _download(Path(scratch)), built)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _download(scratch: Path) -> list[Path]:
    """The packages from apt-get, with package lists of its own if the system's are missing or too old."""
    if shutil.which("apt-get") is None:
        raise NginxError(f"there is no nginx and no apt-get: {_WHAT_TO_DO}")
    download = ["apt-get", "download", *PACKAGES]
    if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode:
        lists, cache = scratch / "lists", scratch / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run(["apt-get", *own, "update"], "apt-get update failed", scratch)
        _run(["apt-get", *own, *download[1:]], "apt-get could not download nginx", scratch)
    return sorted(scratch.glob("*.deb"))


def _run(command: list[str], failure: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NginxError(f"{failure}: there is no {command[0]}: {_WHAT_TO_DO}") from error
    if done.returncode:
        raise NginxError(f"{failure}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}: {_WHAT_TO_DO}")


def main() -> int:
    """Fetch what is missing and say where nginx is."""
    try:
        print(ensure_programs().nginx)
    except NginxError as error:
        print(f"nginx: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
