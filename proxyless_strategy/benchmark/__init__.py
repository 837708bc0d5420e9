"""Networks side by side: latency, size, memory, and published accuracy."""
