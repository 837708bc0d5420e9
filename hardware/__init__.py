"""What a choice costs: operators, latency tables, and how both are measured on a device."""
