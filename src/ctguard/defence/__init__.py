"""Where protectors meet the attacks that they work against: what forges (attacks), and protecting a scan (protect)."""

from ctguard.defence.attacks import attack_generator, lung_attacks, site_attack
from ctguard.defence.protect import PROTECTORS, Protection, check_unmarked, protect_scan

__all__ = [
    "PROTECTORS",
    "Protection",
    "attack_generator",
    "check_unmarked",
    "lung_attacks",
    "protect_scan",
    "site_attack",
]
