"""``make bench-net``: what crosses from an enclave to the internet, by several ways, side by side."""
