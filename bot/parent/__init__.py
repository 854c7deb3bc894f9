"""The untrusted side on the host: what an enclave may ask its parent for, and what the operator sees of it.

wire           the messages between them, as values (pure)
conversation   lines and blobs over one stream
server         answers the enclave: claims, a log, blobs; tells it to shut down
store          the blobs in a folder, and their copies on another remote
operator       answers the operator, on a socket of this machine
run            the whole, from its configuration
client         the enclave's end: asks, and believes nothing

Neither side believes the other. Nothing here is measured.
"""
