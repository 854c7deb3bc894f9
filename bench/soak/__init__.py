"""``make soak``: the whole server under mixed load, attacked, and killed every minute; then its books are compared.

plan      how long, how often, and under which policy
scene     the world of one soak: the real stack, images, a payer's wallet, and what everybody counts
tenants   honest strangers, over the relay and HTTP
attackers dishonest ones, in a process of their own
watch     kills, samples of the process, an honest client's pings, what Docker says ran
books     the checks: our ledger, the wallet's book, what ran, what is left
report    figures and verdict, as printed
"""
