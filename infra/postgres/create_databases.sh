#!/usr/bin/env bash
# Run once by the postgres image, on an empty volume: a database and a login role each for annotations and for MLflow.
set -euo pipefail

create() {
  psql --set=ON_ERROR_STOP=1 --set=role="$1" --set=password="$2" --username postgres <<'SQL'
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
REVOKE CONNECT ON DATABASE :"role" FROM PUBLIC;
SQL
}

create atlas "$ATLAS_DB_PASSWORD"
create mlflow "$MLFLOW_DB_PASSWORD"
