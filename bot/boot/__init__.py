"""From a cold enclave to a server that can be trusted: attestation, standing, escrow, identity."""
