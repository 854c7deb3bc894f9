"""The state as sealed, numbered, incremental copies, for a keeper that is not trusted.

seal       keys from the disk key; a chunk, and a manifest, sealed and opened (pure)
manifest   what a checkpoint holds, as values and as bytes (pure)
packer     chunks become packs; what is there already is not packed again (pure)
scan       a point in time of a file: its data, without its holes
blobs      the keeper, as a port
saver      from snapshots to a manifest that is safe to anchor; what nobody needs any more leaves
restore    from an anchored head back to files

docs/checkpoint.md is the format, so that another program could restore it.
"""
