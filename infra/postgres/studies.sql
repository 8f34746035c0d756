-- The sweeps' studies: MLflow and Optuna each keep a table alembic_version, so not in one database.
CREATE DATABASE studies;
