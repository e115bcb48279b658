# `source bench/gpu/setup.sh` in the checkout's root prepares a machine without a network for the GPU benchmarks:
# packages from .whl/ into /tmp/site, nginx (and curl, which tensorizer runs) from .carry/, bytecode.
# The machine's own torch, transformers and the like are used as they are; nothing is unpacked over the system.

export PYTHONPATH="$PWD:/tmp/site${PYTHONPATH:+:$PYTHONPATH}"

if [ ! -d /tmp/site ]; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --root-user-action ignore --target /tmp/site .whl/*.whl
fi

python3 -m tools.nginx_binary

if ! command -v curl >/dev/null && [ -d .carry/curl ]; then
  mkdir -p /tmp/curl/bin
  for package in .carry/curl/*.deb; do dpkg-deb --extract "$package" /tmp/curl; done
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec /tmp/curl/usr/bin/curl "$@"\n' \
    /tmp/curl/usr/lib/x86_64-linux-gnu:/tmp/curl/lib/x86_64-linux-gnu >/tmp/curl/bin/curl
  chmod +x /tmp/curl/bin/curl
  export PATH="$PATH:/tmp/curl/bin"
fi

# A tmpfs is half of the memory that the machine had when it started, and that may grow later.
if [ "$(id -u)" = 0 ]; then mount -o remount,size=90% /dev/shm || true; fi

# The server tells its version, which an installed package has.
if [ ! -d /tmp/site/coldstream.dist-info ]; then
  mkdir /tmp/site/coldstream.dist-info
  { echo 'Metadata-Version: 2.1'; sed -n '/^\[project\]/,/^description/{s/^name = "\(.*\)"/Name: \1/p;s/^version = "\(.*\)"/Version: \1/p}' pyproject.toml; } \
    >/tmp/site/coldstream.dist-info/METADATA
fi

# Imports are cold start, and an installed package has its bytecode.
python3 -m compileall -q -j 0 /tmp/site app streaming bench tools
