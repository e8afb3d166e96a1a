"""Workers on Ray: shards in; receipts, failures and notices out.

The only user of Ray. Only shard descriptions, receipts and failures travel through it; must not
know plans, rows or pixels.
"""

from ldm_batch.cluster.once import run_once_on_ray
from ldm_batch.cluster.pool import run_on_ray

__all__ = ["run_on_ray", "run_once_on_ray"]
