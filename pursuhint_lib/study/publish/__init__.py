"""What a reader sees: figures, tables, report, pages written from results, and their verification."""
