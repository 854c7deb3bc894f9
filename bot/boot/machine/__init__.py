"""The machine that an enclave is, before it holds anybody's secret: memory, mounts, clock, and the programs that run on it.

memory, clock, programs are values and verdicts; mounts and boot do what they say.
"""
