"""Where protectors meet the attacks that they work against: what forges (attacks), and protecting a scan (protect)."""

from ctguard.defence.attacks import attack_generator, lung_attacks, site_attack
from ctguard.defence.combined import SHIELD_SEAL, shield_and_seal
from ctguard.defence.protect import PROTECTORS, Protection, check_unmarked, protect_scan

__all__ = [
    "PROTECTORS",
    "SHIELD_SEAL",
    "Protection",
    "attack_generator",
    "check_unmarked",
    "lung_attacks",
    "protect_scan",
    "shield_and_seal",
    "site_attack",
]
