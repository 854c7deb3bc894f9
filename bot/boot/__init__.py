"""From a cold enclave to a server that can be trusted: attestation, standing, escrow, identity; and the `supervisor`
of programs, which starts them in order and keeps them running."""
