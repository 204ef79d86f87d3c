"""Random numbers that depend on the seed and the query alone, so that shards, resumes and orders of work agree."""

import hashlib
import random

import torch


def seed_of(seed: int, query_id: str) -> int:
    """A 63-bit number drawn from both; `hash()` would differ from one process to the next."""
    digest = hashlib.sha256(f"{seed}:{query_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, query_id: str) -> torch.Generator:
    """A torch generator, on the CPU whatever the model runs on, so that devices agree."""
    return torch.Generator().manual_seed(seed_of(seed, query_id))


def random_for(seed: int, query_id: str) -> random.Random:
    """A Python generator, for shuffles."""
    return random.Random(seed_of(seed, query_id))
