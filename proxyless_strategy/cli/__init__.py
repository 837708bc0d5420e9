"""The command line `proxyless`."""
