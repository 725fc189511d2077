"""SQL behind the ledger: tables, numbered migrations, writes and queries. Only the ledger process imports it.

SQL and SQLAlchemy stay below this folder, so no other process pays for them and none can touch the database.
"""
