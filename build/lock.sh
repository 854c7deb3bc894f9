#!/usr/bin/env bash
# Writes the lock files from pyproject.toml: every dependency of dependencies, with hashes.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
.venv/bin/python -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check uv
options=(--quiet --generate-hashes --python-version 3.11 --no-header --no-emit-index-url --no-emit-find-links)
"$tools/bin/uv" pip compile "${options[@]}" pyproject.toml -o build/requirements.lock
"$tools/bin/uv" pip compile "${options[@]}" pyproject.toml --no-strip-extras --extra nfqueue --group dev -o build/requirements-dev.lock
