"""The Alembic environment of the gateway's store: `env.py` and one module per revision in `versions/`."""
