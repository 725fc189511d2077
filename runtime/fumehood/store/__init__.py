"""SQL behind the ledger: tables, numbered migrations, writes and queries. Only the ledger process imports it.

SQLAlchemy stays below this folder, so no other process pays for it and none can touch the database.
"""
