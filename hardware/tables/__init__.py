"""Latency tables: their records, the plausibility of their figures, released dialects, and the tables that ship."""
