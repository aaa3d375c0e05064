"""Labels in a table: CSV and its relatives, and Parquet."""
