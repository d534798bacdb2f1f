"""docs/pruning.md from what the pruning benchmark measured."""

PEERS = ("tp_l2", "tp_l2_local", "tp_taylor", "luo_wu", "random_uniform")
def write(lines): ...
