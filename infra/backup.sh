#!/usr/bin/env bash
# A copy of a campaign's workspace that can be gone on with, taken while people annotate.
#   infra/backup.sh WORKSPACE COPY [DATABASE ...]     DATABASE: an SQLite file outside the workspace that belongs to it
# Restoring is copying it back (docs/operations.md). Left out: what is computed again by itself, and programs' locks.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 WORKSPACE COPY [DATABASE ...]" >&2; exit 2; }
workspace=$1 copy=${2%/}
shift 2
[ -f "$workspace/manifest.jsonl" ] || { echo "$workspace is no workspace: it has no manifest.jsonl" >&2; exit 1; }
[ ! -e "$copy" ] || { echo "$copy exists; a new place is needed" >&2; exit 1; }
for database; do
  [ -f "$database" ] || { echo "$database is no file" >&2; exit 1; }
done
umask 077
mkdir -p "$(dirname "$copy")"
mkdir "$copy.partial" || { echo "another backup goes there, or was killed: then remove $copy.partial" >&2; exit 1; }
trap 'rm -rf "$copy.partial"' EXIT

# Databases first: the files only grow, so whatever a revision speaks of is in the copy. SQLite's own way, not a copy of its files:
# a file copied while somebody writes is no database.
for database in "$workspace"/*.db "$@"; do
  [ -f "$database" ] || continue
  [ ! -e "$copy.partial/$(basename "$database")" ] || { echo "two databases are called $(basename "$database")" >&2; exit 1; }
  "${PYTHON:-python3}" - "$database" "$copy.partial/$(basename "$database")" <<'PY'
import sqlite3
import sys

with sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, timeout=60) as source, sqlite3.connect(sys.argv[2]) as target:
    source.backup(target)
    (answer,) = target.execute("PRAGMA integrity_check").fetchone()
sys.exit(0 if answer == "ok" else f"{sys.argv[1]}: {answer}")
PY
done

tar --directory "$workspace" --create --exclude='./*.db' --exclude='./*.db-*' --exclude=./cache --exclude=./compiled --exclude='*.partial' . \
  | tar --directory "$copy.partial" --extract
mv "$copy.partial" "$copy"
