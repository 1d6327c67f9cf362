"""Where files live: on disks, or in buckets (gs://). No other room knows the difference.

`objects` speaks to the service; `synced` keeps a local folder and one in a bucket equal; `copies`
brings what is read to this host, and takes what is written away; `workdir` does both for the folder
of a run, which `lease` keeps others out of.
"""

from sr1_jax.storage.objects import BucketAway, is_bucket

__all__ = ["BucketAway", "is_bucket"]
