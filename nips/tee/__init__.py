"""What proves which code runs: attestation documents, the NSM, NEC-01 to NEC-05, certificates, and verdicts.

- `attestation`, `cbor`, `nitro_chain`, `anchor`: the bytes of a document and whom they lead back to; `nsm` asks for one;
  `lifetime` says when what is shown holds.
- `nec01` … `nec05`, `container`, `certificates`, `image_release`: the events that carry the proof; `env` is their ``t``.
- `verification` checks all of it, `policies` say what is expected, `verdict` is the outcome.
"""
